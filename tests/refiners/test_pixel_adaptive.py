"""PAMR and PAR: against loops over pixels and neighbours, and what must hold of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from irn_pipeline.errors import ConfigError, ShapeError
from irn_pipeline.refiners.neighbours import DILATIONS, deviation, offsets, shifted
from irn_pipeline.refiners.pamr_maths import pamr, pamr_weights, unambiguous_masks
from irn_pipeline.refiners.par import par, par_label, par_weights
from irn_pipeline.structures import IGNORE

BOTH = pytest.mark.parametrize("refine", [pamr, par])
WEIGHTS = pytest.mark.parametrize("weigh", [pamr_weights, par_weights])


def some(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def values_around(image: np.ndarray, row: int, column: int, dilations) -> tuple[np.ndarray, np.ndarray]:
    """(S, C) values of the neighbours with the border replicated, and (S,) distances in pixels."""
    height, width = image.shape[1:]
    values, distances = [], []
    for dy, dx in offsets(dilations):
        y, x = np.clip(row + dy, 0, height - 1), np.clip(column + dx, 0, width - 1)
        values.append(image[:, y, x])
        distances.append(np.hypot(dy, dx))
    return np.array(values), np.array(distances)


def softmax(values: np.ndarray) -> np.ndarray:
    shares = np.exp(values - values.max())
    return shares / shares.sum()


def pamr_weights_by_hand(image: np.ndarray, row: int, column: int, dilations) -> np.ndarray:
    own = image[:, row, column]
    values, _ = values_around(image, row, column, dilations)
    sd = np.vstack([values, [own] * len(dilations)]).std(0, ddof=1)
    return softmax((-np.abs(values - own) / (0.1 * sd + 1e-8)).mean(1))


def par_weights_by_hand(image: np.ndarray, row: int, column: int, dilations) -> np.ndarray:
    values, distances = values_around(image, row, column, dilations)
    contrast = np.abs(values - image[:, row, column]) / (values.std(0, ddof=1) + 1e-8) / 0.3
    far = distances / (distances.std(ddof=1) + 1e-8) / 0.3
    return softmax(-(contrast**2).mean(1)) + 0.01 * softmax(-(far**2))


@pytest.mark.parametrize("dilations", [(1,), (1, 3), DILATIONS])
@pytest.mark.parametrize(
    ("weigh", "by_hand"), [(pamr_weights, pamr_weights_by_hand), (par_weights, par_weights_by_hand)]
)
def test_weights_are_those_of_a_loop(weigh, by_hand, dilations):
    image = some(3, 5, 7)
    weights = weigh(image, dilations)
    for row in range(5):
        for column in range(7):
            expected = by_hand(image.double().numpy(), row, column, dilations)
            np.testing.assert_allclose(weights[:, row, column].numpy(), expected, atol=1e-5)


def test_there_are_eight_neighbours_a_distance_and_the_pixel_is_none():
    steps = offsets(DILATIONS)
    assert len(set(steps)) == 48
    assert (0, 0) not in steps
    assert {max(abs(dy), abs(dx)) for dy, dx in steps} == set(DILATIONS)


def test_shifted_maps_replicate_the_border():
    maps = torch.arange(6.0).view(1, 2, 3)
    right, far_up_left = shifted(maps, [(0, 1), (-24, -24)])
    assert right.tolist() == [[[1, 2, 2], [4, 5, 5]]]
    assert far_up_left.tolist() == [[[0, 0, 0], [0, 0, 0]]]


def test_a_small_deviation_of_large_values_is_not_lost():
    image = 0.5 + 1e-4 * some(1, 4, 5)
    steps = offsets((1, 2))
    found = deviation(image, steps)
    for row in range(4):
        for column in range(5):
            values, _ = values_around(image.double().numpy(), row, column, (1, 2))
            assert float(found[0, row, column]) == pytest.approx(values.std(ddof=1), rel=1e-2)
    assert float(deviation(torch.full((1, 4, 5), 0.3), steps).max()) == 0


@pytest.mark.parametrize(("refine", "growth"), [(pamr, 1.0), (par, 1.01)])
def test_a_constant_map_is_kept_but_for_the_growth(refine, growth):
    maps = torch.full((1, 5, 7), 0.4)
    found = refine(some(3, 12, 16), maps, iterations=6)
    torch.testing.assert_close(found, torch.full((1, 12, 16), 0.4 * growth**6))


def test_values_of_pamr_stay_between_the_maps_extremes():
    maps = some(4, 12, 16, seed=3)
    found = pamr(some(3, 12, 16), maps)
    assert (found.amax((1, 2)) <= maps.amax((1, 2)) + 1e-6).all()
    assert (found.amin((1, 2)) >= maps.amin((1, 2)) - 1e-6).all()


@WEIGHTS
def test_scale_and_offset_of_the_picture_do_not_matter(weigh):
    image = some(3, 12, 16)
    torch.testing.assert_close(weigh(255 * image - 40), weigh(image), atol=1e-4, rtol=0)


def test_a_flat_picture_has_even_weights():
    weights = pamr_weights(torch.full((3, 6, 7), 0.7))
    torch.testing.assert_close(weights, torch.full_like(weights, 1 / 48))


@WEIGHTS
def test_weights_sum_to_one_or_a_hundredth_more(weigh):
    total = weigh(some(3, 6, 7)).sum(0)
    torch.testing.assert_close(total, torch.full_like(total, 1.01 if weigh is par_weights else 1.0))


@BOTH
@pytest.mark.parametrize("axis", [-1, -2])
def test_a_mirrored_picture_gives_the_mirrored_maps(refine, axis):
    image, maps = some(3, 12, 17), some(2, 4, 5, seed=1)
    torch.testing.assert_close(
        refine(image.flip(axis), maps.flip(axis)), refine(image, maps).flip(axis), atol=1e-5, rtol=1e-4
    )


@BOTH
def test_an_impulse_leaves_its_pixel(refine):
    """But at the border, where the pixel is among its own neighbours."""
    image = some(3, 50, 51)
    for row, column in ((25, 24), (24, 26)):
        maps = torch.zeros(1, 50, 51)
        maps[0, row, column] = 1
        assert float(refine(image, maps, iterations=1)[0, row, column]) == 0
    corner = torch.zeros(1, 50, 51)
    corner[0, 0, 0] = 1
    assert float(refine(image, corner, iterations=1)[0, 0, 0]) > 0


@BOTH
def test_maps_do_not_mix(refine):
    image, maps = some(3, 12, 16), some(3, 12, 16, seed=1)
    for found, alone in zip(refine(image, maps), maps, strict=True):
        torch.testing.assert_close(found, refine(image, alone[None])[0])


@BOTH
def test_refined_maps_end_at_the_edge_of_the_object(refine):
    image = torch.zeros(3, 40, 40)
    image[:, 10:30, 10:30] = 1
    image += 0.02 * some(3, 40, 40)
    inside = image[0] > 0.5
    maps = torch.zeros(1, 40, 40)
    maps[:, 14:36, 14:36] = 1
    found = refine(image, maps)[0]
    before = ((maps[0] > 0.5) & inside).sum() / ((maps[0] > 0.5) | inside).sum()
    cut = (found[inside].mean() + found[~inside].mean()) / 2
    after = ((found > cut) & inside).sum() / ((found > cut) | inside).sum()
    assert float(before) < 0.5
    assert float(after) > 0.9


@BOTH
def test_no_map_and_no_iteration(refine):
    image = some(3, 6, 7)
    assert refine(image, torch.zeros(0, 2, 2)).shape == (0, 6, 7)
    maps = some(2, 6, 7)
    torch.testing.assert_close(refine(image, maps, iterations=0), maps)


def test_masks_are_unambiguous():
    # Columns: sure background, sure class, both, none, weak class alone.
    maps = torch.tensor(
        [[[1.0, 0.0, 0.8, 0.5, 0.0]], [[0.0, 0.9, 0.8, 0.3, 0.0]], [[0.0, 0.0, 0.0, 0.0, 0.19]]]
    )
    found = unambiguous_masks(maps)
    assert found[:, 0].int().tolist() == [[1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 0, 0, 0]]
    with pytest.raises(ShapeError, match="background first"):
        unambiguous_masks(maps[:0])


def flat_label(score: float, size=(8, 8), **options) -> np.ndarray:
    """Label of one class that has the same score everywhere."""
    return par_label(some(3, *size), torch.full((1, *size), score), np.array([4]), **options)


def test_label_is_class_background_or_unknown():
    assert (flat_label(0.9) == 5).all()
    assert (flat_label(0.1) == 0).all()
    assert (flat_label(0.5) == IGNORE).all()
    assert (flat_label(0.5, backgrounds=(0.4, 0.3)) == 5).all()


def test_outside_the_box_is_unknown():
    label = flat_label(0.9, box=(1, 4, 2, 7))
    assert (label[1:4, 2:7] == 5).all()
    assert (label == 5).sum() == 15
    assert (label != 5).sum() == (label == IGNORE).sum()


def test_label_of_odd_and_tiny_pictures_and_of_no_class():
    assert flat_label(0.9, size=(1, 3)).shape == (1, 3)
    assert flat_label(0.9, size=(9, 7)).shape == (9, 7)
    none = par_label(some(3, 6, 5), torch.zeros(0, 6, 5), np.zeros(0, np.int64))
    assert none.tolist() == np.zeros((6, 5)).tolist()


def test_what_does_not_fit_is_refused():
    image = some(3, 6, 7)
    for refine in (pamr, par):
        with pytest.raises(ShapeError, match="maps must be"):
            refine(image, image[0])
        with pytest.raises(ConfigError, match="at least 1 pixel"):
            refine(image, image, dilations=(0, 1))
        with pytest.raises(ConfigError, match="at least 1 pixel"):
            refine(image, image, dilations=())
    with pytest.raises(ShapeError, match="cams must be"):
        par_label(image, image, np.array([1]))
    with pytest.raises(ConfigError, match="background score"):
        flat_label(0.9, backgrounds=(0.2, 0.5))
