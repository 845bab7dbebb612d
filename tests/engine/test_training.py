"""The training loop on one linear layer: interruption, divergence, small sets."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from irn_pipeline.engine.batches import EpochSampler
from irn_pipeline.engine.execution import Execution
from irn_pipeline.engine.optimisation import Phase, Schedule
from irn_pipeline.engine.ranks import Ranks
from irn_pipeline.engine.training import TrainingDiverged, train
from irn_pipeline.errors import CheckpointError, ConfigError, DataError

QUIET = Execution(device="cpu", quiet=True, seed=3)


class Points(Dataset[tuple[Tensor, Tensor]]):
    """x and 2 x + noise that depends on (epoch, index) alone."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
        epoch, index = key
        generator = torch.Generator().manual_seed(1000 * epoch + index)
        x = torch.randn(2, generator=generator)
        return x, 2 * x.sum().reshape(1)


class Learner:
    """A network, its loss, and a step at which the loss misbehaves."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.2), nn.Linear(4, 1))
        self.calls = 0
        self.progress: list[float] = []
        self.fail_at = 0
        self.failure: Callable[[Tensor], Tensor] | None = None

    def losses(self, batch: Any, progress: float) -> dict[str, Tensor]:
        x, y = batch
        self.calls += 1
        self.progress.append(progress)
        loss = (self.network(x) - y).square().mean()
        if self.calls == self.fail_at and self.failure is not None:
            loss = self.failure(loss)
        return {"fit": loss}

    def train(
        self,
        folder: Path,
        *,
        count: int = 8,
        epochs: int = 3,
        max_norm: float = 0.0,
        ema: float = 0.0,
        patience: float = 0.0,
        **more: Any,
    ) -> int:
        return train(
            network=self.network,
            param_groups=[{"params": list(self.network.parameters()), "lr": 0.05}],
            dataset=Points(count),
            losses_of=self.losses,
            schedule=Schedule(
                epochs, 4, 0.9, 1e-4, max_gradient_norm=max_norm, ema_decay=ema, patience=patience
            ),
            execution=QUIET,
            folder=folder,
            name="test",
            **more,
        )

    def weights(self) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self.network.parameters()])


def interrupt(_: Tensor) -> Tensor:
    raise KeyboardInterrupt


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_an_interrupted_training_ends_where_an_undisturbed_one_does(tmp_path: Path, ema: float) -> None:
    torch.manual_seed(5)
    undisturbed = Learner()
    assert undisturbed.train(tmp_path / "a", ema=ema) == 24
    stopped = Learner()
    stopped.fail_at, stopped.failure = 4, interrupt
    with pytest.raises(KeyboardInterrupt):
        stopped.train(tmp_path / "b", ema=ema)
    assert (tmp_path / "b" / "resume.pt").is_file()
    again = Learner()
    assert not torch.allclose(again.weights(), undisturbed.weights())
    assert again.train(tmp_path / "b", ema=ema) == 16
    assert again.calls == 4
    assert torch.allclose(again.weights(), undisturbed.weights(), rtol=0, atol=1e-6)
    assert not again.network.training


def test_the_log_holds_every_step(tmp_path: Path) -> None:
    Learner().train(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "losses.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["epoch"] for line in lines] == [0, 0, 1, 1, 2, 2]
    assert all(line["fit"] > 0 for line in lines)


def test_the_log_of_an_interrupted_epoch_is_not_kept_twice(tmp_path: Path) -> None:
    stopped = Learner()
    stopped.fail_at, stopped.failure = 4, interrupt
    with pytest.raises(KeyboardInterrupt):
        stopped.train(tmp_path)
    with (tmp_path / "losses.jsonl").open("a") as stream:
        stream.write('{"step": 3, "epo')  # killed while it wrote
    Learner().train(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "losses.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]


def test_losses_are_told_how_much_is_done(tmp_path: Path) -> None:
    learner = Learner()
    learner.train(tmp_path)
    assert learner.progress == [step / 6 for step in range(6)]


def test_the_average_of_the_weights_is_what_is_left(tmp_path: Path) -> None:
    plain, averaged = Learner(), Learner()
    seen: list[Tensor] = []

    def remember(batch: Any, progress: float) -> dict[str, Tensor]:
        seen.append(averaged.weights())
        return Learner.losses(averaged, batch, progress)

    torch.manual_seed(1)
    plain.train(tmp_path / "a")
    torch.manual_seed(1)
    averaged.losses = remember  # type: ignore[method-assign]
    averaged.train(tmp_path / "b", ema=0.5)
    expected = seen[1]  # the average starts with the weights after the first step
    for weights in [*seen[2:], plain.weights()]:
        expected = 0.5 * expected + 0.5 * weights
    assert torch.allclose(averaged.weights(), expected, atol=1e-6)
    assert not torch.allclose(averaged.weights(), plain.weights(), atol=1e-4)


def test_what_is_measured_after_an_epoch_is_recorded(tmp_path: Path) -> None:
    calls: list[tuple[int, bool]] = []

    def measure(epochs: int, network: nn.Module) -> dict[str, float]:
        calls.append((epochs, network.training))
        return {"ap50": 0.25 * epochs} if epochs != 2 else {}

    learner = Learner()
    learner.train(tmp_path, after_epoch=measure)
    assert calls == [(1, False), (2, False), (3, False)]
    lines = [json.loads(line) for line in (tmp_path / "validation.jsonl").read_text().splitlines()]
    assert [(line["step"], line["ap50"]) for line in lines] == [(2, 0.25), (6, 0.75)]


class Judge:
    """A validation with given figures, which remembers the weights that it saw."""

    def __init__(self, figures: list[float]) -> None:
        self.figures = figures
        self.weights: dict[int, Tensor] = {}

    def __call__(self, epochs: int, network: nn.Module) -> dict[str, float]:
        self.weights[epochs] = torch.cat([p.detach().flatten() for p in network.parameters()])
        return {"ap": self.figures[epochs - 1], "loss": -1.0 * epochs}


PATIENT: dict[str, Any] = {"patience": 0.3, "judged_by": ("other", "ap")}  # of 10 epochs: 3


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_a_training_that_no_longer_improves_ends_with_its_best_weights(tmp_path: Path, ema: float) -> None:
    learner, judge = Learner(), Judge([0.1, 0.5, 0.3, 0.6, 0.6, 0.2, 0.5, 0.9, 0.9, 0.9])
    seen = learner.train(tmp_path, epochs=10, ema=ema, after_epoch=judge, **PATIENT)
    assert sorted(judge.weights) == [1, 2, 3, 4, 5, 6, 7] and seen == 7 * 8
    torch.testing.assert_close(learner.weights(), judge.weights[4])


def test_a_training_that_improves_to_the_end_is_not_stopped(tmp_path: Path) -> None:
    learner, judge = Learner(), Judge([0.1 * epoch for epoch in range(10)])
    assert learner.train(tmp_path, epochs=10, after_epoch=judge, **PATIENT) == 80
    torch.testing.assert_close(learner.weights(), judge.weights[10])


def test_patience_waits_for_a_first_success(tmp_path: Path) -> None:
    learner, judge = Learner(), Judge([0, 0, 0, 0, 0.1, 0, 0, 0, 0, 0])
    assert learner.train(tmp_path, epochs=10, after_epoch=judge, **PATIENT) == 8 * 8
    torch.testing.assert_close(learner.weights(), judge.weights[5])


def test_the_best_weights_and_the_patience_survive_an_interruption(tmp_path: Path) -> None:
    figures = [0.1, 0.9, 0.3, 0.6, 0.6, 0.2, 0.5, 0.9, 0.9, 0.9]
    stopped, judge = Learner(), Judge(figures)
    stopped.fail_at, stopped.failure = 7, interrupt  # in the fourth epoch
    with pytest.raises(KeyboardInterrupt):
        stopped.train(tmp_path, epochs=10, after_epoch=judge, **PATIENT)
    again, later = Learner(), Judge(figures)
    assert again.train(tmp_path, epochs=10, after_epoch=later, **PATIENT) == 2 * 8
    assert sorted(later.weights) == [4, 5]
    torch.testing.assert_close(again.weights(), judge.weights[2])


def test_one_process_reads_the_samples_of_all_epochs(tmp_path: Path) -> None:
    """Starting one anew costs seconds an epoch; ours is not the one that reads."""

    class Readers(Points):
        def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
            return torch.zeros(2), torch.tensor([float(os.getpid())], dtype=torch.float64)

    seen: set[int] = set()

    def note(batch: Any, _progress: float) -> dict[str, Tensor]:
        seen.update(int(pid) for pid in batch[1].flatten().tolist())
        return {"fit": network(batch[0]).square().mean()}

    network = nn.Linear(2, 1)
    train(
        network=network, param_groups=[{"params": list(network.parameters()), "lr": 0.05}], dataset=Readers(8),
        losses_of=note, schedule=Schedule(3, 4, 0.9, 1e-4), execution=QUIET, folder=tmp_path, name="test",
    )  # fmt: skip
    assert len(seen) == 1
    assert os.getpid() not in seen


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_the_training(tmp_path: Path, value: float) -> None:
    learner = Learner()
    learner.fail_at, learner.failure = 4, lambda loss: loss * value
    with pytest.raises(TrainingDiverged, match="not a number at step 4 of 6") as caught:
        learner.train(tmp_path, picture_names=lambda batch: ["a", "b"])
    assert "lower the learning rate" in str(caught.value)
    assert "images a, b" in str(caught.value)
    assert torch.isfinite(learner.weights()).all()
    assert (tmp_path / "resume.pt").is_file()


def one_of(count: int, rank: int) -> Ranks:
    ranks = Ranks()
    ranks.count, ranks.rank = count, rank
    return ranks


@pytest.mark.parametrize(("count", "batch", "processes"), [(13, 4, 2), (12, 6, 3), (3, 8, 4), (5, 1, 1)])
def test_processes_divide_every_batch(count: int, batch: int, processes: int) -> None:
    whole = EpochSampler(count, batch, seed=7)
    parts = [EpochSampler(count, batch, seed=7, ranks=one_of(processes, rank)) for rank in range(processes)]
    for sampler in (whole, *parts):
        sampler.epoch = 2
    order, share = list(whole), batch // processes
    for start in range(0, len(whole), batch):
        step = start // batch
        seen = [key for part in parts for key in list(part)[step * share : (step + 1) * share]]
        assert seen == order[start : start + batch]
    assert {len(part) for part in parts} == {len(list(parts[0]))} == {len(whole) // processes}


def test_a_batch_that_cannot_be_divided(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a batch of 4 images cannot be divided among 3 .* --batch-size 6"):
        Learner().train(tmp_path, ranks=one_of(3, 0))


def test_a_set_smaller_than_a_batch(tmp_path: Path) -> None:
    learner = Learner()
    assert learner.train(tmp_path, count=3, epochs=2) == 6
    assert learner.calls == 2


def test_an_empty_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no images to train on"):
        Learner().train(tmp_path, count=0)


def test_a_damaged_resume_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "resume.pt").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=r"resume\.pt.*delete it"):
        Learner().train(tmp_path)


def test_gradients_are_shortened(tmp_path: Path) -> None:
    free, bound = Learner(), Learner()
    start = free.weights()
    free.train(tmp_path / "a", count=4, epochs=1)
    bound.train(tmp_path / "b", count=4, epochs=1, max_norm=1e-3)
    # One step of SGD at rate 0.05 moves by the gradient and the weight decay, both times the rate.
    assert (bound.weights() - start).norm() <= 0.05 * (1e-3 + 1e-4 * start.norm()) + 1e-7
    assert (free.weights() - start).norm() > 10 * (bound.weights() - start).norm()


@pytest.mark.parametrize(("count", "batch", "expected"), [(10, 4, 8), (8, 4, 8), (3, 4, 4), (1, 4, 4)])
def test_the_sampler_gives_whole_batches(count: int, batch: int, expected: int) -> None:
    sampler = EpochSampler(count, batch, seed=1)
    keys = list(sampler)
    assert len(keys) == len(sampler) == expected
    assert {epoch for epoch, _ in keys} == {0}
    indices = [index for _, index in keys]
    assert set(indices) <= set(range(count))
    assert len(set(indices)) == min(count, expected)
    assert list(sampler) == keys


def test_the_sampler_shuffles_by_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        sampler = EpochSampler(50, 50, seed)
        sampler.epoch = epoch
        return [index for _, index in sampler]

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)


@pytest.mark.parametrize(("optimizer", "lr"), [("sgd", 0.05), ("adamw", 0.2)])
def test_both_optimizers_learn_a_line(tmp_path, optimizer, lr):
    torch.manual_seed(0)
    network = nn.Linear(2, 1)

    def losses(batch: Any, _progress: float) -> dict[str, Tensor]:
        x, y = batch
        return {"fit": (network(x) - y).square().mean()}

    train(
        network=network,
        param_groups=[{"params": list(network.parameters()), "lr": lr}],
        dataset=Points(32),
        losses_of=losses,
        schedule=Schedule(25, 8, 0.9, 0.0, optimizer=optimizer),
        execution=QUIET,
        folder=tmp_path,
        name="line",
    )
    lines = [json.loads(line)["fit"] for line in (tmp_path / "losses.jsonl").read_text().splitlines()]
    assert len(lines) == 100
    assert lines[-1] < 0.01 * lines[0]
    assert torch.allclose(network.weight, torch.full((1, 2), 2.0), atol=0.1)


class Watched(nn.Module):
    """A batch norm and a record of what each step was like: size of the batch, epochs in it, norms in training."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.line = nn.BatchNorm1d(2), nn.Linear(2, 1)
        self.seen: list[tuple[int, bool]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append((len(x), self.norm.training))
        result: Tensor = self.line(self.norm(x))
        return result


@pytest.mark.parametrize("stop_at", [0, 2, 6])
def test_phases_have_batches_and_norms_of_their_own_and_go_on_after_an_interruption(
    tmp_path: Path, stop_at: int
) -> None:
    def run(folder: Path, stop: int) -> tuple[Watched, int]:
        torch.manual_seed(0)
        network = Watched()

        def losses(batch: Any, progress: float) -> dict[str, Tensor]:
            x, y = batch
            if stop and len(network.seen) == stop:
                raise KeyboardInterrupt
            return {"fit": (network(x) - y).square().mean()}

        count = train(
            network=network, param_groups=[{"params": list(network.parameters()), "lr": 0.05}],
            dataset=Points(8), losses_of=losses, execution=QUIET, folder=folder, name="test",
            schedule=Schedule(1, 4, 0.9, 1e-4, later=(Phase(2, 2, lr_factor=0.1, fixed_norms=True),)),
        )  # fmt: skip
        return network, count

    undisturbed, count = run(tmp_path / "a", 0)
    assert undisturbed.seen == [(4, True)] * 2 + [(2, False)] * 8
    assert count == 24
    lines = [json.loads(line) for line in (tmp_path / "a" / "losses.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0] * 2 + [1] * 4 + [2] * 4
    if stop_at:
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "b", stop_at)
        again, _ = run(tmp_path / "b", 0)
        assert again.seen == undisturbed.seen[stop_at:]
        for ours, theirs in zip(again.state_dict().values(), undisturbed.state_dict().values(), strict=True):
            assert torch.allclose(ours, theirs, rtol=0, atol=1e-6)
