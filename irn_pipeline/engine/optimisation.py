"""How fast a network learns: optimiser, and learning rate over the steps of a training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

OptimizerName = Literal["sgd", "adamw"]


@dataclass(frozen=True)
class Schedule:
    """How long, in what portions and how fast a network learns.

    Attributes:
        epochs: passes over the data.
        batch_size: samples a step.
        momentum: of SGD.
        weight_decay: L2 penalty of SGD, decoupled decay of AdamW.
        power: the rate falls as (1 - step / steps)^power when there are no milestones.
        milestones: fractions of the training in (0, 1) at which the rate is divided by 10, instead.
        warmup_steps: the rate rises linearly over this many first steps, at most a tenth of the training.
        max_gradient_norm: longer gradients are shortened to this norm; 0 for never.
        optimizer: which.
        ema_decay: of the exponential moving average of the weights; 0 for none.
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


def make_optimizer(param_groups: Sequence[dict[str, Any]], schedule: Schedule) -> torch.optim.Optimizer:
    """The optimiser that the schedule names, over groups with their own `lr`."""
    groups = [dict(group) for group in param_groups]  # torch writes into them
    if schedule.optimizer == "adamw":
        return torch.optim.AdamW(groups, weight_decay=schedule.weight_decay)
    return torch.optim.SGD(groups, momentum=schedule.momentum, weight_decay=schedule.weight_decay)


def rate_factor(schedule: Schedule, step: int, steps: int) -> float:
    """What the learning rates are multiplied by.

    Args:
        schedule: decay and warm-up.
        step: finished steps.
        steps: of the whole training.

    Returns:
        A factor in [0, 1].
    """
    warmup = min(schedule.warmup_steps, steps // 10)
    rise = min((step + 1) / (warmup + 1), 1.0)
    if schedule.milestones:
        passed = sum(step >= milestone * steps for milestone in schedule.milestones)
        return float(rise * 0.1**passed)
    return float(rise * max(1 - step / steps, 0.0) ** schedule.power)


def learning_rates(
    optimizer: torch.optim.Optimizer, schedule: Schedule, steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """The scheduler that sets every group's rate, step by step."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_factor(schedule, step, steps))
