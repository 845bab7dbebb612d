"""Learning rates over the steps of a training."""

from __future__ import annotations

import pytest
import torch

from irn_pipeline.engine.optimisation import Phase, Schedule
from irn_pipeline.engine.training import TrainingState


def schedule(**more: object) -> Schedule:
    return Schedule(epochs=1, batch_size=1, momentum=0.9, weight_decay=0.0, **more)  # type: ignore[arg-type]


def test_polynomial_decay_ends_at_nothing():
    factors = [schedule(power=2.0).rate(step, 4) for step in range(5)]
    assert factors == [1.0, 0.5625, 0.25, 0.0625, 0.0]


def test_milestones_divide_by_ten():
    factors = [schedule(milestones=(0.5, 0.75)).rate(step, 8) for step in range(8)]
    assert factors == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01])


def test_a_rate_can_stay_as_it_is():
    assert [schedule(power=0.0).rate(step, 4) for step in range(4)] == [1.0] * 4


def test_warm_up_rises_to_the_full_rate():
    factors = [schedule(milestones=(0.9,), warmup_steps=3).rate(step, 40) for step in range(5)]
    assert factors == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_warm_up_takes_a_tenth_at_most():
    assert schedule(milestones=(0.9,), warmup_steps=500).rate(1, 10) == 1.0
    assert schedule(milestones=(0.9,), warmup_steps=500).rate(0, 10) == 0.5


def test_every_group_keeps_its_own_rate():
    groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr": lr} for lr in (0.1, 1.0)]
    made = TrainingState(torch.nn.Module(), groups, schedule(power=1.0), 4)
    made.optimizer.step()
    made.step()
    assert [group["lr"] for group in made.optimizer.param_groups] == pytest.approx([0.075, 0.75])


def test_the_decay_equals_torchs_polynomial():
    groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr": 0.1}]
    ours, torchs = (TrainingState(torch.nn.Module(), groups, schedule(), 10) for _ in range(2))
    peer = torch.optim.lr_scheduler.PolynomialLR(torchs.optimizer, total_iters=10, power=0.9)
    for _ in range(9):
        ours.optimizer.step(), torchs.optimizer.step(), ours.step(), peer.step()
        assert ours.decay.get_last_lr() == pytest.approx(peer.get_last_lr())


def test_the_rate_falls_anew_in_each_phase() -> None:
    made = schedule(power=1.0, later=(Phase(2, 4, lr_factor=0.1), Phase(1, 1, lr_factor=0.01)))
    factors = [made.rate(step, 4, 2, 1) for step in range(8)]
    assert factors == pytest.approx([1, 0.75, 0.5, 0.25, 0.1, 0.05, 0.01, 0])
    assert [made.phase_at(epoch) for epoch in range(5)] == [0, 1, 1, 2, 2]
    assert made.all_epochs == 4


@pytest.mark.parametrize(("name", "kind"), [("adam", "Adam"), ("adamw", "AdamW"), ("sgd", "SGD")])
def test_optimizers_are_those_of_torch(name: str, kind: str) -> None:
    groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr": 0.1}]
    made = TrainingState(torch.nn.Module(), groups, schedule(optimizer=name), 4)
    assert type(made.optimizer).__name__ == kind
