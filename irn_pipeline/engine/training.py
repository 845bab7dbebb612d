"""The training loop that every network here shares: checkpoints after each epoch, resume, a record of the losses."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset

from irn_pipeline.engine.batches import Batches
from irn_pipeline.engine.execution import Execution
from irn_pipeline.engine.optimisation import Schedule
from irn_pipeline.engine.progress import progress_bar
from irn_pipeline.engine.ranks import ALONE, Ranks
from irn_pipeline.engine.store import RESUME_NAME
from irn_pipeline.engine.training_log import TrainingLog
from irn_pipeline.errors import CheckpointError, ConfigError, DataError, IrnError, require_memory
from irn_pipeline.files.atomic import atomic_path
from irn_pipeline.files.regular import open_regular
from irn_pipeline.files.torch_file import load_torch

logger = logging.getLogger(__name__)
LossFunction = Callable[[Any, float], dict[str, Tensor]]
"""(batch, fraction of the training that is done) -> named losses."""


class TrainingDiverged(IrnError):
    """A loss stopped being a number."""


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
    judged_by: Sequence[str] = (),
    shown: Callable[[Mapping[str, float]], Mapping[str, float]] | None = None,
    ranks: Ranks = ALONE,
) -> int:
    """Train a network in place; with an averaging schedule it ends with the averaged weights, with patience the best.

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
        judged_by: names of figures of `after_epoch`; the first that it returns decides what weights are better, for
            `Schedule.patience`.
        shown: what of the losses, means over all processes, goes to the bar and to `losses.jsonl`; all when None.
        ranks: the processes that train together.

    Returns:
        Number of pictures seen, by all processes together.

    Raises:
        ConfigError: the batch cannot be divided among the processes.
        DataError: the data set is empty.
        TrainingDiverged: a loss is not finite; the message names the step and the pictures. The last epoch's state
            is kept.
    """
    count = len(dataset)  # type: ignore[arg-type]
    if count == 0:
        raise DataError(f"{name}: no images to train on")
    for size in (phase.batch_size for phase in schedule.phases):
        if size % ranks.count:
            raise ConfigError(
                f"{name}: a batch of {size} images cannot be divided among {ranks.count} processes; give "
                f"--batch-size {-(-size // ranks.count) * ranks.count}, or another number of processes"
            )
    on_gpu = execution.torch_device().type == "cuda"
    batches = Batches(count, schedule, execution.seed, ranks)
    # One set of workers for all epochs: forking anew costs seconds of imports there, and of copied pages here. On a CPU
    # the network needs the cores itself, and one process ahead of it is enough. With a generator of its own, starting
    # them draws no number that a resumed training would lack.
    loader = DataLoader(
        dataset, batch_sampler=batches, collate_fn=collate,
        num_workers=execution.worker_count if on_gpu else 1, pin_memory=on_gpu, persistent_workers=True,
        generator=torch.Generator(),
    )  # fmt: skip
    steps = sum(batches.phase_steps)
    state = TrainingState(network, param_groups, schedule, *batches.phase_steps)
    first = state.resume(folder)
    # The bar does not count when it is not shown.
    step, done = batches.steps_before(first), first - 1
    module, optimizer = ranks.parallel(_Step(network, losses_of), state.optimizer)
    log = TrainingLog(folder, done=step, tensorboard=execution.tensorboard) if ranks.is_first else None
    with progress_bar(name, total=steps, done=step, unit="step", quiet=execution.quiet) as bar:
        for epoch in range(first, schedule.all_epochs):
            # Only the first process knows.
            if schedule.patience and bool(ranks.mean(torch.tensor(float(state.is_over(step)))) > 0):
                break
            done = batches.epoch = epoch
            network.train()
            if schedule.phases[schedule.phase_at(epoch)].fixed_norms:
                _fix_norms(network)
            for batch in _batches(loader):
                losses = module(batch, step / steps)
                step += 1
                parts = torch.stack([value.float() for value in losses.values()])
                values = dict(zip(losses, ranks.mean(parts.detach()).tolist(), strict=True))
                if not math.isfinite(sum(values.values())):
                    here = not bool(parts.isfinite().all())
                    names = picture_names(batch) if picture_names is not None and here else ()
                    pictures = f", images {', '.join(names)}" if names else ""
                    raise TrainingDiverged(
                        f"{name}: the loss is not a number at step {step} of {steps}{pictures} ({values}); lower the "
                        f"learning rate, or use --precision float32; the state after epoch {epoch} is kept in {folder}"
                    )
                optimizer.zero_grad(set_to_none=True)
                ranks.backward(parts.sum())
                if schedule.max_gradient_norm > 0:
                    nn.utils.clip_grad_norm_(network.parameters(), schedule.max_gradient_norm)
                optimizer.step()
                state.step()
                bar.update()
                told = values if shown is None else shown(values)
                bar.set_postfix({key: f"{value:.3f}" for key, value in told.items()}, refresh=False)
                if log is not None:
                    log.add("losses", step, epoch, told)
            if log is None:
                continue
            state.save(folder, epoch + 1)
            found = after_epoch(epoch + 1, state.judged().eval()) if after_epoch is not None else None
            if found:
                log.add("validation", step, epoch, found)
                figure = next((found[key] for key in judged_by if key in found), None)
                if schedule.patience and figure is not None and state.is_best(figure, step):
                    state.save(folder, epoch + 1)
    if log is not None:
        log.close()
    if state.best is not None:
        logger.info(
            "%s: %d of %d steps; the weights are those of step %d", name, step, steps, state.best["step"]
        )
    network.load_state_dict(state.judged().state_dict() if state.best is None else state.best["network"])
    network.eval()
    return count * (done + 1 - first)


def _fix_norms(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def _batches(loader: DataLoader[Any]) -> Iterator[Any]:
    try:
        yield from loader
    except IrnError as error:
        # A worker process puts its traceback before the message.
        kind = type(error)
        raise kind(str(error).rpartition(f"{kind.__name__}: ")[2].strip()) from error


class TrainingState:
    """All that a training needs to go on after an interruption."""

    def __init__(
        self, network: nn.Module, param_groups: Sequence[dict[str, Any]], schedule: Schedule, *steps: int
    ) -> None:
        self.network = network
        groups = [dict(group) for group in param_groups]  # torch writes into them
        self.optimizer: torch.optim.Optimizer
        if schedule.optimizer in ("adam", "adamw"):
            kind = torch.optim.Adam if schedule.optimizer == "adam" else torch.optim.AdamW
            self.optimizer = kind(groups, weight_decay=schedule.weight_decay)
        else:
            self.optimizer = torch.optim.SGD(
                groups, momentum=schedule.momentum, weight_decay=schedule.weight_decay
            )
        self.decay = LambdaLR(self.optimizer, lambda step: schedule.rate(step, *steps))
        self.best: dict[str, Any] | None = None
        self.patience = schedule.patience * sum(steps)
        self.averaged: AveragedModel | None = None
        if schedule.ema_decay > 0:
            average = get_ema_multi_avg_fn(schedule.ema_decay)
            self.averaged = AveragedModel(network, multi_avg_fn=average, use_buffers=True)

    def judged(self) -> nn.Module:
        """The network as it would be if the training ended now."""
        return self.network if self.averaged is None else self.averaged.module

    def step(self) -> None:
        """Follow a step of the optimiser: learning rates, average of the weights."""
        self.decay.step()
        if self.averaged is not None:
            self.averaged.update_parameters(self.network)

    def is_best(self, figure: float, step: int) -> bool:
        """Whether these weights have the best figure so far; then they are kept. A figure of 0 is none yet."""
        if figure <= (0.0 if self.best is None else self.best["figure"]):
            return False
        weights = {key: value.detach().cpu().clone() for key, value in self.judged().state_dict().items()}
        self.best = {"figure": figure, "step": step, "network": weights}
        return True

    def is_over(self, step: int) -> bool:
        """Whether the figure has not become better for as long as the schedule's patience."""
        return self.best is not None and step - self.best["step"] >= self.patience

    def save(self, folder: Path, epoch: int) -> None:
        """Write `resume.pt` after `epoch` finished epochs."""
        state = {
            "epoch": epoch, "network": self.network.state_dict(), "optimizer": self.optimizer.state_dict(),
            "decay": self.decay.state_dict(), "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state_all(),
            "averaged": None if self.averaged is None else self.averaged.state_dict(), "best": self.best,
        }  # fmt: skip
        with atomic_path(folder / RESUME_NAME) as temporary:
            torch.save(state, temporary)

    def resume(self, folder: Path) -> int:
        """Take over the state of `resume.pt`; returns the number of finished epochs, 0 where there is no such file.

        Raises:
            CheckpointError: the file is damaged or of another network.
        """
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
            self.best = state.get("best")
            epoch = int(state["epoch"])
        except Exception as error:
            require_memory(error, path)
            raise CheckpointError(
                f"{path}: damaged or of another network ({type(error).__name__}); delete it to train from the "
                "beginning"
            ) from error
        logger.info("%s: going on after epoch %d", folder.name, epoch)
        return epoch
