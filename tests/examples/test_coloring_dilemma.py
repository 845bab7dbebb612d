"""The coloring dilemma in small: nine dots and 40 steps are enough for both networks to show what they can do."""

import sys
from itertools import combinations

import numpy as np
import pytest
import torch

from examples import coloring_dilemma as example

SMALL = {"dots": 3, "steps": 40}


@pytest.mark.parametrize("padding", ["zeros", "circular"])
def test_only_a_semi_convolution_colours_identical_dots(padding):
    plain = example.run(example.Experiment(semi=False, padding=padding, **SMALL))
    semi = example.run(example.Experiment(semi=True, padding=padding, **SMALL))
    assert plain.rand_index < 0.1
    assert semi.rand_index > 0.95
    # The network that fails has the lower loss: a model must not be chosen by it.
    assert plain.losses[-1] < 0.1 * semi.losses[-1]
    assert semi.losses[-1] < 0.1 * semi.losses[0]


def test_same_experiment_gives_the_same_outcome_and_leaves_the_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, second = (example.run(example.Experiment(semi=True, dots=2, steps=2)) for _ in range(2))
    assert first.losses == second.losses
    assert np.array_equal(first.clusters, second.clusters)
    assert torch.equal(torch.rand(1), expected)


def test_convolution_plus_position_is_constant_on_every_hat_of_a_wave():
    # Multiples of 2^-10 have no rounding: the slope is exact, and so must be the answer.
    inside = np.arange(2, 1022) / 1024
    for k in range(-3, 4):
        for side in (-1, 1):
            assert (example.semi_convolved_wave(2 * k + side * inside) == 2 * k).all()


def test_wave_is_the_papers_and_its_convolution_alone_repeats_with_it():
    u = np.array([-1, -0.5, 0, 0.25, 1])
    assert example.wave(u).tolist() == np.minimum(1 - u, 1 + u).tolist() == [0, 0.5, 1, 0.75, 0]
    u = np.arange(2, 1022) / 1024
    assert np.array_equal(example.wave(u), example.wave(u + 2))
    local = example.semi_convolved_wave(u) - u
    assert np.array_equal(local, example.semi_convolved_wave(u + 6) - (u + 6))


def test_dots_are_identical_and_apart():
    masks = example.dot_masks(2, radius=1, pitch=4)
    # The centre of the first lies between pixels 1 and 2: four pixels are within 1 of it.
    assert masks[0].astype(int).tolist() == [
        [0] * 8,
        [0, 1, 1, 0, 0, 0, 0, 0],
        [0, 1, 1, 0, 0, 0, 0, 0],
        *[[0] * 8 for _ in range(5)],
    ]
    assert np.array_equal(masks[3], np.roll(masks[0], (4, 4), (0, 1)))
    assert masks.sum(0).max() == 1


def brute_rand_index(first, second):
    """Counts pairs of things that both, one or none of the partitions put together."""
    pairs = [(first[i] == first[j], second[i] == second[j]) for i, j in combinations(range(len(first)), 2)]
    both, in_first, in_second = (sum(x) for x in ([a and b for a, b in pairs], *zip(*pairs, strict=True)))
    chance = in_first * in_second / len(pairs)
    return (both - chance) / ((in_first + in_second) / 2 - chance)


def test_rand_index_by_hand():
    # Of 6 pairs the parts put 2 and 2 together, none both: (0 - 2/3) / (2 - 2/3).
    assert example.adjusted_rand_index(np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])) == pytest.approx(
        -1 / 2
    )
    assert example.adjusted_rand_index(np.array([0, 0, 1, 1]), np.array([9, 9, 4, 4])) == 1
    assert example.adjusted_rand_index(np.zeros(4, int), np.zeros(4, int)) == 1


def test_rand_index_equals_counting_pairs():
    rng = np.random.default_rng(0)
    for _ in range(20):
        first, second = rng.integers(0, 4, (2, 30))
        assert example.adjusted_rand_index(first, second) == pytest.approx(brute_rand_index(first, second))


def test_grouping_finds_separate_heaps_and_survives_identical_points():
    heaps = np.repeat(np.arange(6), 20)
    points = np.stack([10.0 * heaps, -3.0 * heaps], 1).astype(np.float32)
    points += np.random.default_rng(0).standard_normal(points.shape, np.float32) / 10
    assert example.adjusted_rand_index(heaps, example.group(points, 6)) == 1
    assert len(example.group(np.ones((30, 8), np.float32), 5)) == 30


def test_command_draws_a_picture(tmp_path, monkeypatch):
    command = ["coloring_dilemma.py", "--out", str(tmp_path / "new"), "--dots", "2", "--steps", "2"]
    monkeypatch.setattr(sys, "argv", command)
    assert example.main() == 0
    assert (tmp_path / "new" / "coloring_dilemma.png").read_bytes().startswith(b"\x89PNG")


def test_command_refuses_too_few_dots(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["coloring_dilemma.py", "--out", str(tmp_path), "--dots", "1"])
    with pytest.raises(SystemExit):
        example.main()
    assert "--dots must be at least 2" in capsys.readouterr().err


def test_a_missing_matplotlib_is_told_before_any_training(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(example.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(example, "run", lambda experiment: pytest.fail("has begun to train"))
    monkeypatch.setattr("sys.argv", ["coloring_dilemma.py", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as stopped:
        example.main()
    assert stopped.value.code == 2
    assert "pip install 'irn_pipeline[examples]'" in capsys.readouterr().err
