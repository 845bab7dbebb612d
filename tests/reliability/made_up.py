"""Fast stages that a kill can hit half-way: a training of epochs, and pictures that are written in pieces."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from irn_pipeline.engine.execution import Execution
from irn_pipeline.engine.optimisation import Schedule
from irn_pipeline.engine.runner import run_stage
from irn_pipeline.engine.stage import FitStage, Job, MapStage, Produced, ReduceStage
from irn_pipeline.engine.store import Artifact, RunFolder
from irn_pipeline.engine.training import train
from tests.engine.samples import CountParams, Word, words

PIECES, PIECE = 16, 4096
NUM_PICTURES = 12


def _write_slowly(path: Path, value: str) -> None:
    """The text's hash, repeated; a kill while it is written leaves a part of it."""
    piece = (hashlib.sha256(value.encode()).hexdigest() * (PIECE // 64)).encode()
    with path.open("wb") as stream:
        for _ in range(PIECES):
            stream.write(piece)
            stream.flush()
            time.sleep(0.0005)


def _write_network(path: Path, value: dict[str, Tensor]) -> None:
    # Into an open file: torch writes the name of a path into the file, and that of a temporary one is random.
    with path.open("wb") as stream:
        torch.save(value, stream)


NETWORK: Artifact[Any] = Artifact("network", "fit", ".pt", Path.read_bytes, _write_network, per_image=False)
DRAWN: Artifact[Any] = Artifact("drawn", "draw", ".bin", Path.read_bytes, _write_slowly)
ALL: Artifact[Any] = Artifact("all", "join", ".bin", Path.read_bytes, _write_slowly, per_image=False)


class _Points(Dataset[tuple[Tensor, Tensor]]):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(1000 * key[0] + key[1])
        x = torch.randn(2, generator=generator)
        return x, 2 * x.sum().reshape(1)


def _fit(job: Job[CountParams, Any]) -> int:
    network = nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.2), nn.Linear(4, 1))
    folder = job.run.stage_dir("fit")

    def losses_of(batch: Any, _progress: float) -> dict[str, Tensor]:
        return {"fit": (network(batch[0]) - batch[1]).square().mean()}

    seen = train(
        network=network,
        param_groups=[{"params": list(network.parameters()), "lr": 0.05}],
        dataset=_Points(),
        losses_of=losses_of,
        schedule=Schedule(4, 2, 0.9, 1e-4),
        execution=job.execution,
        folder=folder,
        name="fit",
    )
    job.write(NETWORK, network.state_dict())
    return seen


def _draw(job: Job[CountParams, Any], pending: Sequence[Word]) -> Iterator[Produced]:
    network = job.run.read(NETWORK)
    for word in pending:
        yield Produced(word.image_id, (word.text + hashlib.sha256(network).hexdigest(),))


def _join(job: Job[CountParams, Any]) -> int:
    found = [job.run.read(DRAWN, word.image_id)[:64].decode() for word in job.data.items]
    job.run.write(ALL, " ".join(found))
    return len(found)


@dataclass(frozen=True)
class MadeUp:
    """Runs the three stages."""

    def __call__(self, run_dir: Path) -> int:
        data = words(" ".join("abcdefghijkl"[:NUM_PICTURES]))
        job = Job(RunFolder(run_dir), CountParams(), data, Execution(quiet=True, device="cpu", seed=3))
        for stage in (
            FitStage("fit", "Fit.", CountParams, writes=(NETWORK,), fit=_fit),
            MapStage("draw", "Draw.", CountParams, reads=(NETWORK,), writes=(DRAWN,), run=_draw),
            ReduceStage("join", "Join.", CountParams, reads=(DRAWN,), writes=(ALL,), run=_join),
        ):
            run_stage(stage, job)
        return 0
