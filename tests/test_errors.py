"""Want of memory is never called a damaged file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from irn_pipeline.artifacts import read_checkpoint
from irn_pipeline.engine.optimisation import Schedule
from irn_pipeline.engine.training import TrainingState
from irn_pipeline.errors import CheckpointError, MemoryExhausted, is_out_of_memory, require_memory
from irn_pipeline.nn.backbone import read_state_dict
from irn_pipeline.refiners import sam


def resumed(path: Path) -> int:
    network = torch.nn.Linear(1, 1)
    groups = [{"params": list(network.parameters()), "lr": 0.1}]
    return TrainingState(network, groups, Schedule(1, 1, 0.0, 0.0), 1).resume(path.parent)


def sam_model(path: Path) -> object:
    pytest.importorskip("transformers")
    (path.parent / "config.json").write_text('{"model_type": "sam"}')
    (path.parent / "model.safetensors").write_bytes(b"x")
    return sam.prepare(sam.SamParams(sam_checkpoint=str(path.parent)), torch.device("cpu"))


READERS = {
    "checkpoint": ("irn_pipeline.artifacts.load_torch", read_checkpoint),
    "weights": ("irn_pipeline.nn.backbone.load_torch", read_state_dict),
    "training": ("irn_pipeline.engine.training.load_torch", resumed),
    "sam": ("transformers.AutoConfig.from_pretrained", sam_model),
}


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
@pytest.mark.parametrize(("name", "read"), READERS.values(), ids=READERS)
def test_want_of_memory_is_told_as_such(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    read: Callable[[Path], object],
    error: Exception,
) -> None:
    def refuse(*arguments: object, **options: object) -> object:
        raise error

    path = tmp_path / "resume.pt"
    path.write_bytes(b"x")
    pytest.importorskip(name.partition(".")[0])
    monkeypatch.setattr(name, refuse)
    with pytest.raises(MemoryExhausted, match="not enough memory to load it"):
        read(path)


@pytest.mark.parametrize(("name", "read"), READERS.values(), ids=READERS)
def test_a_damaged_file_is_told_as_such(tmp_path: Path, name: str, read: Callable[[Path], object]) -> None:
    path = tmp_path / "resume.pt"
    path.write_bytes(b"x")
    with pytest.raises(CheckpointError):
        read(path)


def test_other_errors_are_passed_over() -> None:
    require_memory(ValueError("damaged"), "x")
    assert not is_out_of_memory(CheckpointError("out of memory, says the file"))
