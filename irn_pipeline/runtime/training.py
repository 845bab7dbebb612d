"""The training loop that every network here shares: checkpoints after each epoch, resume, a record of the losses."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

from irn_pipeline.errors import CheckpointError, DataError, IrnError
from irn_pipeline.foreign.files import open_regular
from irn_pipeline.foreign.torch_file import load_torch
from irn_pipeline.runtime.events import TrainingLog
from irn_pipeline.runtime.execution import Execution
from irn_pipeline.runtime.optimisation import Schedule, learning_rates, make_optimizer
from irn_pipeline.runtime.store import atomic_path

logger = logging.getLogger(__name__)

SampleKey = tuple[int, int]
"""(epoch, index): a data set makes its random choices from these two and the seed alone, so that neither the number
of workers nor an interruption changes them."""


class TrainingDiverged(IrnError):
    """A loss stopped being a number."""


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


LossFunction = Callable[[Any, float], dict[str, Tensor]]
"""(batch, fraction of the training that is done) -> named losses."""


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
    picture_names: Callable[[Any], Sequence[str]] | None = None,
    after_epoch: Callable[[int, nn.Module], Mapping[str, float]] | None = None,
) -> int:
    """Train a network in place; with an averaging schedule it ends with the averaged weights.

    Args:
        network: put in training mode here; already on its device.
        param_groups: groups with their own `lr`, changed by the schedule.
        dataset: answers `SampleKey`s.
        losses_of: batch and progress -> named losses; their sum is minimised.
        schedule: epochs, batch size, optimiser, decay.
        execution: workers, seed, progress.
        folder: gets `resume.pt` after every epoch (see `finish_training`) and `losses.jsonl`.
        name: shown by the progress bar.
        collate: how samples become a batch; torch's default when None.
        picture_names: ids of a batch's pictures, for messages.
        after_epoch: called with the number of finished epochs and the network (the averaged one where there is one);
            what it returns goes to `validation.jsonl`.

    Returns:
        Number of pictures seen.

    Raises:
        TrainingDiverged: a loss is not finite; the message names the step and the pictures. The last epoch's state
            is kept.
    """
    count = len(dataset)  # type: ignore[arg-type]
    if count == 0:
        raise DataError(f"{name}: no picture to train on")
    sampler = EpochSampler(count, schedule.batch_size, execution.seed)
    loader = DataLoader(
        dataset, batch_size=schedule.batch_size, sampler=sampler, collate_fn=collate,
        num_workers=_loader_workers(execution), pin_memory=execution.torch_device().type == "cuda",
    )  # fmt: skip
    steps = schedule.epochs * len(loader)
    optimizer = make_optimizer(param_groups, schedule)
    averaged = _averaged(network, schedule)
    state = _State(network, optimizer, learning_rates(optimizer, schedule, steps), averaged)
    first = state.resume(folder)
    step = first * len(loader)  # the bar does not count when it is not shown
    log = TrainingLog(folder, done=step, tensorboard=execution.tensorboard)
    with tqdm(total=steps, initial=step, desc=name, unit="step", disable=execution.quiet) as bar:
        for epoch in range(first, schedule.epochs):
            sampler.epoch = epoch
            network.train()
            for batch in _batches(loader):
                losses = losses_of(batch, step / steps)
                step += 1
                total = torch.stack([value.float() for value in losses.values()]).sum()
                values = {key: float(value.detach()) for key, value in losses.items()}
                if not math.isfinite(sum(values.values())):
                    pictures = f", pictures {', '.join(picture_names(batch))}" if picture_names else ""
                    raise TrainingDiverged(
                        f"{name}: the loss is no number at step {step} of {steps}{pictures} ({values}); lower the "
                        f"learning rate, or use --precision float32; the state after epoch {epoch} is kept in {folder}"
                    )
                optimizer.zero_grad(set_to_none=True)
                total.backward()
                if schedule.max_gradient_norm > 0:
                    nn.utils.clip_grad_norm_(network.parameters(), schedule.max_gradient_norm)
                optimizer.step()
                state.decay.step()
                if averaged is not None:
                    averaged.update_parameters(network)
                bar.update()
                bar.set_postfix({key: f"{value:.3f}" for key, value in values.items()}, refresh=False)
                log.add("losses", step, epoch, values)
            state.save(folder, epoch + 1)
            if after_epoch is not None:
                judged = (network if averaged is None else averaged.module).eval()
                found = after_epoch(epoch + 1, judged)
                if found:
                    log.add("validation", step, epoch, found)
    log.close()
    if averaged is not None:
        network.load_state_dict(averaged.module.state_dict())
    network.eval()
    return count * (schedule.epochs - first)


def finish_training(folder: Path) -> None:
    """Remove the resume file once the finished network is written."""
    (folder / "resume.pt").unlink(missing_ok=True)


def _averaged(network: nn.Module, schedule: Schedule) -> AveragedModel | None:
    if schedule.ema_decay <= 0:
        return None
    return AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(schedule.ema_decay), use_buffers=True)


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


class _State:
    """All that a training needs to go on after an interruption."""

    def __init__(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        decay: torch.optim.lr_scheduler.LRScheduler,
        averaged: AveragedModel | None,
    ) -> None:
        self.network, self.optimizer, self.decay, self.averaged = network, optimizer, decay, averaged

    def save(self, folder: Path, epoch: int) -> None:
        with atomic_path(folder / "resume.pt") as temporary:
            state = {
                "epoch": epoch, "network": self.network.state_dict(), "optimizer": self.optimizer.state_dict(),
                "decay": self.decay.state_dict(), "random": torch.get_rng_state(),
                "random_cuda": torch.cuda.get_rng_state_all(),
                "averaged": None if self.averaged is None else self.averaged.state_dict(),
            }  # fmt: skip
            torch.save(state, temporary)

    def resume(self, folder: Path) -> int:
        """The number of finished epochs; 0 where there is nothing to resume."""
        path = folder / "resume.pt"
        if not path.is_file():
            return 0
        try:
            with open_regular(path) as stream:
                state = load_torch(stream)
            self.network.load_state_dict(state["network"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.decay.load_state_dict(state["decay"])
            torch.set_rng_state(state["random"])
            if len(state["random_cuda"]) == torch.cuda.device_count():
                torch.cuda.set_rng_state_all(state["random_cuda"])
            if self.averaged is not None:
                self.averaged.load_state_dict(state["averaged"])
            epoch = int(state["epoch"])
        except Exception as error:
            raise CheckpointError(
                f"{path}: damaged or of another network ({type(error).__name__}); delete it to train from the "
                "beginning"
            ) from error
        logger.info("%s: going on after epoch %d", folder.name, epoch)
        return epoch
