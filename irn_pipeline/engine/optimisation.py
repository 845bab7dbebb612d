"""How long, in what portions and how fast a network learns. Nothing here imports torch: stages declare with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

OptimizerName = Literal["sgd", "adamw", "adam"]
ScheduleName = Literal["poly", "steps", "constant"]
"""How the learning rate falls: steadily to zero, by a factor of 10 at milestones, or never."""
MILESTONES = (2 / 3, 8 / 9)
"""Of `steps` where nothing else is given: those of detectron's schedules."""


@dataclass(frozen=True)
class Phase:
    """A part of a training.

    Attributes:
        epochs: passes over the data.
        batch_size: samples a step.
        lr_factor: the learning rate at its beginning, relative to that of the training.
        fixed_norms: whether batch norms keep their statistics.
    """

    epochs: int
    batch_size: int
    lr_factor: float = 1.0
    fixed_norms: bool = False


@dataclass(frozen=True)
class Schedule:
    """How long, in what portions and how fast a network learns.

    Attributes:
        epochs: passes over the data.
        batch_size: samples a step.
        momentum: of SGD.
        weight_decay: L2 penalty of SGD and Adam, decoupled decay of AdamW.
        power: the rate falls as (1 - step / steps)^power when there are no milestones; 0 for a constant rate.
        milestones: fractions of the training in (0, 1) at which the rate is divided by 10, instead.
        warmup_steps: the rate rises linearly over this many first steps, at most a tenth of the training.
        max_gradient_norm: longer gradients are shortened to this norm; 0 for never.
        optimizer: which.
        ema_decay: of the exponential moving average of the weights; 0 for none.
        later: phases behind the first, which `epochs` and `batch_size` describe; the rate falls in each anew.
        patience: fraction of the steps without a better validation after which the training stops, with the best
            weights; 0 for never. It counts from the first figure above 0.
    """

    epochs: int
    batch_size: int
    momentum: float
    weight_decay: float
    power: float = 0.9
    milestones: tuple[float, ...] = ()
    warmup_steps: int = 0
    max_gradient_norm: float = 0.0
    optimizer: OptimizerName = "sgd"
    ema_decay: float = 0.0
    later: tuple[Phase, ...] = ()
    patience: float = 0.0

    @property
    def phases(self) -> tuple[Phase, ...]:
        """All of them."""
        return Phase(self.epochs, self.batch_size), *self.later

    @property
    def all_epochs(self) -> int:
        """Passes over the data in all phases."""
        return sum(phase.epochs for phase in self.phases)

    def phase_at(self, epoch: int) -> int:
        """Position of the phase that an epoch belongs to; the last one for epochs beyond the end."""
        ends = [sum(phase.epochs for phase in self.phases[: n + 1]) for n in range(len(self.phases))]
        return min(sum(epoch >= end for end in ends), len(ends) - 1)

    def rate(self, step: int, *steps: int) -> float:
        """What the learning rates are multiplied by: a factor in [0, 1].

        Args:
            step: number of the finished steps.
            steps: of each phase.
        """
        for phase, length in zip(self.phases[:-1], steps, strict=False):
            if step < length:
                return phase.lr_factor * self._rate_within(step, length)
            step -= length
        return self.phases[-1].lr_factor * self._rate_within(step, steps[-1])

    def _rate_within(self, step: int, steps: int) -> float:
        rise = min((step + 1) / (min(self.warmup_steps, steps // 10) + 1), 1.0)
        if self.milestones:
            return float(rise * 0.1 ** sum(step >= milestone * steps for milestone in self.milestones))
        return float(rise * max(1 - step / steps, 0.0) ** self.power)
