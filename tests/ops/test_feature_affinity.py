"""Spreading maps over cells of like features, against a loop and against what must hold of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from irn_pipeline.errors import ConfigError, ShapeError
from irn_pipeline.ops.feature_affinity import feature_affinity, spread_maps


def features(*shapes: tuple[int, int, int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def by_hand(stages: list[np.ndarray], power: float) -> np.ndarray:
    """The formula, pair by pair, of stages that are on one grid."""
    flat = [stage.reshape(len(stage), -1).T for stage in stages]
    count = len(flat[0])
    weights = np.zeros((count, count))
    for i in range(count):
        for j in range(count):
            likes = [f[i] @ f[j] / (np.linalg.norm(f[i]) * np.linalg.norm(f[j])) for f in flat]
            weights[i, j] = np.prod([max(like, 0) for like in likes]) ** power
        weights[i] /= weights[i].sum()
    return weights


@pytest.mark.parametrize("power", [0.5, 1, 2, 3.5])
def test_weights_are_those_of_the_formula(power: float) -> None:
    stages = features((6, 4, 5), (3, 4, 5))
    expected = by_hand([stage.double().numpy() for stage in stages], power)
    np.testing.assert_allclose(feature_affinity(stages, power).numpy(), expected, atol=1e-5)


def test_finer_stages_are_averaged_to_the_last_ones_grid() -> None:
    fine, coarse = features((3, 4, 6), (5, 2, 3))
    averaged = fine.reshape(3, 2, 2, 3, 2).mean((2, 4))
    torch.testing.assert_close(feature_affinity([fine, coarse], 2), feature_affinity([averaged, coarse], 2))


def test_brightness_of_features_does_not_matter_and_unlike_cells_are_not_asked() -> None:
    stage = torch.zeros(2, 2, 4)
    stage[0, :, :2], stage[1, :, 2:] = 1, 7
    stage[0, 1, :2] = 5
    maps = torch.zeros(1, 2, 4)
    maps[0, 0, 0] = 1
    spread = spread_maps([maps], [stage], 2)
    # The four like cells share the one cell's value; the others are the ground.
    torch.testing.assert_close(
        spread[0], torch.tensor([[0.25, 0.25, 0, 0], [0.25, 0.25, 0, 0]]), atol=1e-6, rtol=0
    )


def test_scales_are_summed_on_the_grid() -> None:
    stages = features((4, 3, 5))
    maps = torch.rand(2, 3, 5, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(spread_maps([maps, maps], stages, 2), 2 * spread_maps([maps], stages, 2))
    larger = maps.repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert spread_maps([maps, larger], stages, 2).shape == (2, 3, 5)


@pytest.mark.parametrize("power", [0.5, 1, 2, 8])
def test_values_stay_within_the_maps(power: float) -> None:
    stages = features((8, 6, 7), (4, 6, 7))
    maps = torch.rand(3, 6, 7, generator=torch.Generator().manual_seed(2))
    spread = spread_maps([maps], stages, power)
    assert spread.min() == 0
    assert (spread.amax((1, 2)) <= maps.amax((1, 2)) - maps.amin((1, 2)) + 1e-5).all()


def test_a_map_without_ground_stays() -> None:
    maps = torch.full((1, 3, 4), 0.6)
    torch.testing.assert_close(spread_maps([maps], features((5, 3, 4)), 2), maps)
    one_cell = spread_maps([torch.full((1, 1, 1), 0.6)], features((5, 1, 1)), 2)
    torch.testing.assert_close(one_cell, torch.full((1, 1, 1), 0.6))


def test_cells_without_features_keep_their_value() -> None:
    stage = features((5, 2, 2))[0].abs()
    stage[:, 0, 0] = 0
    weights = feature_affinity([stage], 2)
    assert weights.isfinite().all()
    assert weights[0].tolist() == [1, 0, 0, 0]


def test_no_class_gives_no_map() -> None:
    assert spread_maps([torch.zeros(0, 4, 4)], features((5, 2, 3)), 2).shape == (0, 2, 3)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ShapeError, match="a stage"):
        feature_affinity([], 1)
    with pytest.raises(ShapeError, match="a stage"):
        feature_affinity([torch.zeros(3, 4)], 1)
    with pytest.raises(ShapeError, match="no map"):
        spread_maps([], features((5, 2, 3)), 2)
    for power in (0, -1, float("inf"), float("nan")):
        with pytest.raises(ConfigError, match="above 0"):
            feature_affinity(features((5, 2, 3)), power)
