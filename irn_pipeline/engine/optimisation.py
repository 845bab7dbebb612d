"""How long, in what portions and how fast a network learns. Nothing here imports torch: stages declare with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

OptimizerName = Literal["sgd", "adamw"]
ScheduleName = Literal["poly", "steps", "constant"]
"""How the learning rate falls: steadily to zero, by a factor of 10 at milestones, or never."""
MILESTONES = (2 / 3, 8 / 9)
"""Of `steps` where nothing else is given: those of detectron's schedules."""


@dataclass(frozen=True)
class Schedule:
    """How long, in what portions and how fast a network learns.

    Attributes:
        epochs: passes over the data.
        batch_size: samples a step.
        momentum: of SGD.
        weight_decay: L2 penalty of SGD, decoupled decay of AdamW.
        power: the rate falls as (1 - step / steps)^power when there are no milestones; 0 for a constant rate.
        milestones: fractions of the training in (0, 1) at which the rate is divided by 10, instead.
        warmup_steps: the rate rises linearly over this many first steps, at most a tenth of the training.
        max_gradient_norm: longer gradients are shortened to this norm; 0 for never.
        optimizer: which.
        ema_decay: of the exponential moving average of the weights; 0 for none.
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
    patience: float = 0.0

    def rate(self, step: int, steps: int) -> float:
        """What the learning rates are multiplied by after `step` of `steps`: a factor in [0, 1]."""
        rise = min((step + 1) / (min(self.warmup_steps, steps // 10) + 1), 1.0)
        if self.milestones:
            return float(rise * 0.1 ** sum(step >= milestone * steps for milestone in self.milestones))
        return float(rise * max(1 - step / steps, 0.0) ** self.power)
