"""The training loop that every network here shares: polynomial decay, checkpoints after each epoch, resume."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

from irn_pipeline.errors import CheckpointError, DataError, IrnError
from irn_pipeline.runtime.execution import Execution
from irn_pipeline.runtime.store import atomic_path

logger = logging.getLogger(__name__)

OptimizerName = Literal["sgd", "adamw"]
SampleKey = tuple[int, int]
"""(epoch, index): a data set makes its random choices from these two and the seed alone, so that neither the number
of workers nor an interruption changes them."""


class TrainingDiverged(IrnError):
    """A loss stopped being a number."""


@dataclass(frozen=True)
class Schedule:
    """How long, in what portions and how fast a network learns."""

    epochs: int
    batch_size: int
    momentum: float
    weight_decay: float
    power: float = 0.9
    max_gradient_norm: float = 0.0
    optimizer: OptimizerName = "sgd"


class EpochSampler(Sampler[SampleKey]):
    """Every index at most once an epoch, shuffled from (seed, epoch), in whole batches.

    What is left over at the end of an epoch is dropped, as the original does; a set smaller than one batch is repeated
    until it fills one.
    """

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.epoch = 0

    def __len__(self) -> int:
        return max(self.count // self.batch_size, 1) * self.batch_size

    def __iter__(self) -> Iterator[SampleKey]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.count, generator=generator).tolist()
        wanted = len(self)
        while len(order) < wanted:
            order += order[: wanted - len(order)]
        return iter([(self.epoch, index) for index in order[:wanted]])


LossFunction = Callable[[Any], dict[str, Tensor]]


def train(
    *,
    network: nn.Module,
    param_groups: Sequence[dict[str, Any]],
    dataset: Dataset[Any],
    losses_of: LossFunction,
    schedule: Schedule,
    execution: Execution,
    folder: Path,
    name: str,
    collate: Callable[[list[Any]], Any] | None = None,
) -> int:
    """Train a network in place.

    Args:
        network: put in training mode here; already on its device.
        param_groups: groups with their own `lr`, decayed to 0 as (1 - step / steps)^power.
        dataset: answers `SampleKey`s.
        losses_of: batch -> named losses; their sum is minimised.
        schedule: epochs, batch size, momentum, decay.
        execution: workers, seed, progress.
        folder: gets `resume.pt` after every epoch (see `finish_training`) and `losses.jsonl`.
        name: shown by the progress bar.
        collate: how samples become a batch; torch's default when None.

    Returns:
        Number of pictures seen.

    Raises:
        TrainingDiverged: a loss is not finite; the message names the step. The last epoch's state is kept.
    """
    count = len(dataset)  # type: ignore[arg-type]
    if count == 0:
        raise DataError(f"{name}: no picture to train on")
    sampler = EpochSampler(count, schedule.batch_size, execution.seed)
    loader = DataLoader(
        dataset, batch_size=schedule.batch_size, sampler=sampler, collate_fn=collate,
        num_workers=_loader_workers(execution), pin_memory=execution.torch_device().type == "cuda",
    )  # fmt: skip
    optimizer = _optimizer(param_groups, schedule)
    steps = schedule.epochs * len(loader)
    decay = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=steps, power=schedule.power)
    first = _resume(folder, network, optimizer, decay)
    network.train()
    step = first * len(loader)  # the bar does not count when it is not shown
    with tqdm(total=steps, initial=step, desc=name, unit="step", disable=execution.quiet) as bar:
        for epoch in range(first, schedule.epochs):
            sampler.epoch = epoch
            for batch in _batches(loader):
                step += 1
                losses = losses_of(batch)
                total = torch.stack([value.float() for value in losses.values()]).sum()
                values = {key: float(value.detach()) for key, value in losses.items()}
                if not math.isfinite(sum(values.values())):
                    raise TrainingDiverged(
                        f"{name}: the loss is no number at step {step} of {steps} ({values}); lower the learning "
                        f"rate, or use --precision float32; the state after epoch {epoch} is kept in {folder}"
                    )
                optimizer.zero_grad(set_to_none=True)
                total.backward()
                if schedule.max_gradient_norm > 0:
                    nn.utils.clip_grad_norm_(network.parameters(), schedule.max_gradient_norm)
                optimizer.step()
                decay.step()
                bar.update()
                bar.set_postfix({key: f"{value:.3f}" for key, value in values.items()}, refresh=False)
                _log_losses(folder, step, epoch, values)
            _save_resume(folder, epoch + 1, network, optimizer, decay)
    network.eval()
    return count * (schedule.epochs - first)


def _optimizer(param_groups: Sequence[dict[str, Any]], schedule: Schedule) -> torch.optim.Optimizer:
    if schedule.optimizer == "adamw":
        return torch.optim.AdamW(list(param_groups), weight_decay=schedule.weight_decay)
    return torch.optim.SGD(list(param_groups), momentum=schedule.momentum, weight_decay=schedule.weight_decay)


def finish_training(folder: Path) -> None:
    """Remove the resume file once the finished network is written."""
    (folder / "resume.pt").unlink(missing_ok=True)


def _loader_workers(execution: Execution) -> int:
    # On a CPU the network needs the cores itself; one process ahead of it is enough.
    return execution.worker_count if execution.torch_device().type == "cuda" else 1


def _batches(loader: DataLoader[Any]) -> Iterator[Any]:
    try:
        yield from loader
    except IrnError as error:
        # A worker process puts its traceback before the message.
        kind = type(error)
        raise kind(str(error).rpartition(f"{kind.__name__}: ")[2].strip()) from error


def _log_losses(folder: Path, step: int, epoch: int, values: dict[str, float]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    line = {"step": step, "epoch": epoch, "time": round(time.time(), 3), **values}
    with (folder / "losses.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")


def _save_resume(folder: Path, epoch: int, network: nn.Module, optimizer: Any, decay: Any) -> None:
    with atomic_path(folder / "resume.pt") as temporary:
        state = {
            "epoch": epoch, "network": network.state_dict(), "optimizer": optimizer.state_dict(),
            "decay": decay.state_dict(), "random": torch.get_rng_state(),
        }  # fmt: skip
        torch.save(state, temporary)


def _resume(folder: Path, network: nn.Module, optimizer: Any, decay: Any) -> int:
    path = folder / "resume.pt"
    if not path.is_file():
        return 0
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        decay.load_state_dict(state["decay"])
        torch.set_rng_state(state["random"])
    except Exception as error:
        raise CheckpointError(
            f"{path}: damaged or of another network ({type(error).__name__}); delete it to train from the beginning"
        ) from error
    logger.info("%s: going on after epoch %d", folder.name, state["epoch"])
    return int(state["epoch"])
