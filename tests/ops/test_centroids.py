"""Centroids against a plain twin and on fields whose end can be read off."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from irn_pipeline.errors import IrnError, ShapeError
from irn_pipeline.ops.instance_map import find_centroids


def plain_centroids(displacement, iterations):
    """Every cell, every step, floor and ceil looked up: slow and obvious."""
    height, width = displacement.shape[1:]
    y, x = np.indices((height, width), dtype=np.float32)
    for _ in range(iterations):
        y0, x0, y1, x1 = (a.astype(int) for a in (np.floor(y), np.floor(x), np.ceil(y), np.ceil(x)))
        fy, fx = y - np.floor(y), x - np.floor(x)
        step = [
            d[y0, x0] * ((1 - fy) * (1 - fx))
            + d[y0, x1] * ((1 - fy) * fx)
            + d[y1, x0] * (fy * (1 - fx))
            + d[y1, x1] * (fy * fx)
            for d in displacement
        ]
        y, x = np.clip(y + step[0], 0, height - 1), np.clip(x + step[1], 0, width - 1)
    return np.round(np.stack([y, x])).astype(np.int64)


def to_centres(height, width, centres):
    """Field that points from each cell to the nearest centre."""
    grid = np.indices((height, width), dtype=np.float32)
    offsets = np.array(centres, np.float32)[:, :, None, None] - grid
    nearest = (offsets**2).sum(1).argmin(0)
    return np.take_along_axis(offsets, nearest[None, None], 0)[0]


def test_exact_field_leads_to_its_centres():
    centroids = find_centroids(to_centres(9, 20, [(4, 3), (2, 15)]))
    assert centroids.dtype == np.int64
    assert (centroids[:, :, :9] == np.array([4, 3])[:, None, None]).all()
    assert (centroids[:, :, 11:] == np.array([2, 15])[:, None, None]).all()


def test_no_displacement_leaves_every_cell_where_it_is():
    assert (find_centroids(np.zeros((2, 3, 5), np.float32)) == np.indices((3, 5))).all()


def test_cells_stop_at_the_border():
    field = np.zeros((2, 4, 6), np.float32)
    field[0], field[1] = -0.3, 7
    centroids = find_centroids(field)
    assert (centroids[0] == 0).all() and (centroids[1] == 5).all()


def test_positions_between_cells_are_interpolated_and_rounded_at_the_end():
    field = np.zeros((2, 1, 3), np.float32)
    field[1, 0] = [0.5, 0.1, 0]
    # From cell 0: 0 -> 0.5 -> 0.5 + (0.5 + 0.1) / 2 = 0.8
    assert find_centroids(field, 1)[1, 0].tolist() == [0, 1, 2]
    assert find_centroids(field, 2)[1, 0].tolist() == [1, 1, 2]


def test_no_iterations():
    assert (find_centroids(np.ones((2, 2, 3), np.float32), 0) == np.indices((2, 3))).all()


@pytest.mark.parametrize("iterations", [1, 9, 10, 11, 120])
@pytest.mark.parametrize("smooth", [0.8, 2, 4])
def test_equals_the_plain_twin(iterations, smooth):
    rng = np.random.default_rng(int(10 * smooth))
    noise = np.stack([gaussian_filter(n, smooth) for n in rng.normal(0, 12, (2, 23, 31))])
    field = (0.6 * to_centres(23, 31, [(5, 6), (17, 22), (6, 25)]) + noise).astype(np.float32)
    assert (find_centroids(field, iterations) == plain_centroids(field, iterations)).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1)])
def test_grids_of_one_row_or_column(shape):
    field = np.random.default_rng(1).normal(0, 1, (2, *shape)).astype(np.float32)
    assert (find_centroids(field, 50) == plain_centroids(field, 50)).all()


def test_strided_input_is_not_changed():
    field = np.random.default_rng(2).normal(0, 1, (2, 8, 12)).astype(np.float32)
    before = field.copy()
    assert (find_centroids(field[:, :, ::2], 20) == plain_centroids(before[:, :, ::2], 20)).all()
    assert (field == before).all()


@pytest.mark.parametrize("shape", [(3, 4, 4), (4, 4), (2, 0, 4)])
def test_wrong_shape_is_refused(shape):
    with pytest.raises(ShapeError, match="displacement"):
        find_centroids(np.zeros(shape, np.float32))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_diverged_field_is_refused(value):
    field = np.zeros((2, 3, 3), np.float32)
    field[1, 2, 0] = value
    with pytest.raises(IrnError, match="diverged"):
        find_centroids(field)
