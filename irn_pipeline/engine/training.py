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

from irn_pipeline.engine.events import TrainingLog
from irn_pipeline.engine.execution import Execution
from irn_pipeline.engine.optimisation import Schedule, learning_rates, make_optimizer
from irn_pipeline.engine.progress import progress_bar
from irn_pipeline.engine.ranks import ALONE, Ranks
from irn_pipeline.engine.store import RESUME_NAME, atomic_path
from irn_pipeline.errors import CheckpointError, ConfigError, DataError, IrnError
from irn_pipeline.files.regular import open_regular
from irn_pipeline.files.torch_file import load_torch

logger = logging.getLogger(__name__)

SampleKey = tuple[int, int]
"""(epoch, index): a data set makes its random choices from these two and the seed alone, so that neither the number
of workers nor an interruption changes them."""


class TrainingDiverged(IrnError):
    """A loss stopped being a number."""


class EpochSampler(Sampler[SampleKey]):
    """Every index at most once an epoch, shuffled from (seed, epoch), in whole batches.

    What is left over at the end of an epoch is dropped, as the original does; a set smaller than one batch is repeated
    until it fills one. Of several processes, each gets its part of every batch: together they see the batches that
    one would see.

    Args:
        count: indices.
        batch_size: of all processes together.
        seed: of the order.
        ranks: the processes.
    """

    def __init__(self, count: int, batch_size: int, seed: int, ranks: Ranks = ALONE) -> None:
        self.count, self.batch_size, self.seed, self.ranks = count, batch_size, seed, ranks
        self.epoch = 0

    def __len__(self) -> int:
        return self._wanted() // self.ranks.count

    def _wanted(self) -> int:
        return max(self.count // self.batch_size, 1) * self.batch_size

    def __iter__(self) -> Iterator[SampleKey]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.count, generator=generator).tolist()
        wanted, part = self._wanted(), self.batch_size // self.ranks.count
        while len(order) < wanted:
            order += order[: wanted - len(order)]
        mine = range(self.ranks.rank * part, wanted, self.batch_size)
        return iter([(self.epoch, index) for start in mine for index in order[start : start + part]])


LossFunction = Callable[[Any, float], dict[str, Tensor]]
"""(batch, fraction of the training that is done) -> named losses."""


class _Step(nn.Module):
    """Losses as the output of a module that holds the network: what averages gradients over processes wants one."""

    def __init__(self, network: nn.Module, losses_of: LossFunction) -> None:
        super().__init__()
        self.network, self.losses_of = network, losses_of

    def forward(self, batch: Any, progress: float) -> dict[str, Tensor]:
        return self.losses_of(batch, progress)


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
    ranks: Ranks = ALONE,
) -> int:
    """Train a network in place; with an averaging schedule it ends with the averaged weights.

    Several processes divide each batch among them and average their gradients. The result is that of one process
    where the losses are means over pictures, or over counts that `Ranks.mean` makes common.

    Args:
        network: put in training mode here; already on its device.
        param_groups: groups with their own `lr`, changed by the schedule.
        dataset: answers `SampleKey`s.
        losses_of: batch and progress -> named losses; their sum is minimised.
        schedule: epochs, batch size, optimiser, decay.
        execution: workers, seed, progress.
        folder: gets `losses.jsonl`, and after every epoch `resume.pt`, which the engine removes once the stage is
            recorded as done.
        name: shown by the progress bar.
        collate: how samples become a batch; torch's default when None.
        picture_names: ids of a batch's pictures, for messages.
        after_epoch: called with the number of finished epochs and the network (the averaged one where there is one);
            what it returns goes to `validation.jsonl`. Of several processes, the first does it.
        ranks: the processes that train together.

    Returns:
        Number of pictures seen, by all processes together.

    Raises:
        ConfigError: the batch cannot be divided among the processes.
        TrainingDiverged: a loss is not finite; the message names the step and the pictures. The last epoch's state
            is kept.
    """
    count = len(dataset)  # type: ignore[arg-type]
    if count == 0:
        raise DataError(f"{name}: no picture to train on")
    if schedule.batch_size % ranks.count:
        raise ConfigError(
            f"{name}: a batch of {schedule.batch_size} pictures cannot be divided among {ranks.count} processes; "
            f"give --batch-size {-(-schedule.batch_size // ranks.count) * ranks.count}, or another number of processes"
        )
    sampler = EpochSampler(count, schedule.batch_size, execution.seed, ranks)
    # One set of workers for all epochs: forking anew costs seconds of imports there, and of copied pages here. With a
    # generator of its own, starting them draws no number that a resumed training would lack.
    loader = DataLoader(
        dataset, batch_size=schedule.batch_size // ranks.count, sampler=sampler, collate_fn=collate,
        num_workers=_loader_workers(execution), pin_memory=execution.torch_device().type == "cuda",
        persistent_workers=True, generator=torch.Generator(),
    )  # fmt: skip
    steps = schedule.epochs * len(loader)
    optimizer = make_optimizer(param_groups, schedule)
    averaged = _averaged(network, schedule)
    state = _State(network, optimizer, learning_rates(optimizer, schedule, steps), averaged)
    first = state.resume(folder)
    step = first * len(loader)  # the bar does not count when it is not shown
    module, stepper = ranks.parallel(_Step(network, losses_of), optimizer)
    log = TrainingLog(folder, done=step, tensorboard=execution.tensorboard) if ranks.is_first else None
    with progress_bar(name, total=steps, done=step, unit="step", quiet=execution.quiet) as bar:
        for epoch in range(first, schedule.epochs):
            sampler.epoch = epoch
            network.train()
            for batch in _batches(loader):
                losses = module(batch, step / steps)
                step += 1
                parts = torch.stack([value.float() for value in losses.values()])
                values = dict(zip(losses, ranks.mean(parts.detach()).tolist(), strict=True))
                if not math.isfinite(sum(values.values())):
                    here = not bool(parts.isfinite().all())
                    names = picture_names(batch) if picture_names and here else ()
                    pictures = f", pictures {', '.join(names)}" if names else ""
                    raise TrainingDiverged(
                        f"{name}: the loss is no number at step {step} of {steps}{pictures} ({values}); lower the "
                        f"learning rate, or use --precision float32; the state after epoch {epoch} is kept in {folder}"
                    )
                stepper.zero_grad(set_to_none=True)
                ranks.backward(parts.sum())
                if schedule.max_gradient_norm > 0:
                    nn.utils.clip_grad_norm_(network.parameters(), schedule.max_gradient_norm)
                stepper.step()
                state.decay.step()
                if averaged is not None:
                    averaged.update_parameters(network)
                bar.update()
                bar.set_postfix({key: f"{value:.3f}" for key, value in values.items()}, refresh=False)
                if log is not None:
                    log.add("losses", step, epoch, values)
            if log is None:
                continue
            state.save(folder, epoch + 1)
            if after_epoch is not None:
                judged = (network if averaged is None else averaged.module).eval()
                found = after_epoch(epoch + 1, judged)
                if found:
                    log.add("validation", step, epoch, found)
    if log is not None:
        log.close()
    if averaged is not None:
        network.load_state_dict(averaged.module.state_dict())
    network.eval()
    return count * (schedule.epochs - first)


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
        with atomic_path(folder / RESUME_NAME) as temporary:
            state = {
                "epoch": epoch, "network": self.network.state_dict(), "optimizer": self.optimizer.state_dict(),
                "decay": self.decay.state_dict(), "random": torch.get_rng_state(),
                "random_cuda": torch.cuda.get_rng_state_all(),
                "averaged": None if self.averaged is None else self.averaged.state_dict(),
            }  # fmt: skip
            torch.save(state, temporary)

    def resume(self, folder: Path) -> int:
        """The number of finished epochs; 0 where there is nothing to resume."""
        path = folder / RESUME_NAME
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
