"""Permutohedral lattice against a slow twin written from the definition, and against an exact Gaussian."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from irn_pipeline.errors import ConfigError, ShapeError
from irn_pipeline.ops.permutohedral import build_lattice, filter_values


def simplex(feature):
    """Corners (tuples that sum to 0) and weights of one feature, from the definition, in float64."""
    d = len(feature)
    axes = np.array([[1.0] * (j + 1) + [-(j + 1.0)] + [0.0] * (d - j - 1) for j in range(d)])
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)  # an orthonormal basis of the plane of sum 0
    point = (feature * np.sqrt(2 / 3) * (d + 1)) @ axes
    nearest = np.round(point / (d + 1)).astype(int) * (d + 1)
    # Too large a sum: take d + 1 from the coordinates that were rounded up most, and the other way round.
    excess = nearest.sum() // (d + 1)
    order = np.argsort(point - nearest)
    if excess > 0:
        nearest[order[:excess]] -= d + 1
    elif excess < 0:
        nearest[order[excess:]] += d + 1
    rest = point - nearest
    order = np.argsort(-rest)
    falling = rest[order] / (d + 1)
    weights = np.concatenate([[1 - falling[0] + falling[-1]], (falling[:-1] - falling[1:])[::-1]])
    corners = []
    for remainder in range(d + 1):
        corner = nearest + remainder
        corner[order[d + 1 - remainder :]] -= d + 1
        corners.append(tuple(int(c) for c in corner))
    return corners, weights


def slow_filter(features, values):
    """Splat, blur and slice with a dictionary of corners."""
    d = len(features)
    placed = [simplex(feature) for feature in features.T.astype(float)]
    field = dict.fromkeys(itertools.chain.from_iterable(corners for corners, _ in placed), 0.0)
    for (corners, weights), value in zip(placed, values, strict=True):
        for corner, weight in zip(corners, weights, strict=True):
            field[corner] += weight * value
    for axis in range(d + 1):
        step = np.full(d + 1, -1)
        step[axis] = d
        field = {
            corner: value
            + sum(field.get(tuple(int(c) for c in corner + sign * step), 0.0) for sign in (-1, 1)) / 2
            for corner, value in field.items()
        }
    gain = 1 / (1 + 2.0**-d)
    return np.array([gain * sum(w * field[c] for c, w in zip(*p, strict=True)) for p in placed]), len(field)


@pytest.mark.parametrize(("dimensions", "spread"), [(1, 5), (2, 3), (3, 2), (5, 1), (5, 6), (6, 1)])
def test_equals_the_slow_twin(dimensions, spread):
    rng = np.random.default_rng(dimensions)
    features = rng.uniform(-spread, spread, (dimensions, 150)).astype(np.float32)
    values = rng.random(150).astype(np.float32)
    lattice = build_lattice(features)
    expected, num_corners = slow_filter(features, values)
    assert lattice.num_corners == num_corners
    assert np.allclose(filter_values(lattice, values), expected, rtol=1e-4)


def test_table_grows():
    features = np.random.default_rng(0).uniform(-40, 40, (5, 300)).astype(np.float32)
    lattice = build_lattice(features)
    corners = {corner for feature in features.T.astype(float) for corner in simplex(feature)[0]}
    assert lattice.num_corners == len(corners) > 1500  # far more than there are points
    assert sorted(set(lattice.corners.ravel().tolist())) == list(range(len(corners)))


def test_smooths_like_a_gaussian():
    y, x = (axis.ravel() for axis in np.indices((24, 30)))
    features = np.stack([x / 3, y / 3]).astype(np.float32)
    kernel = np.exp(-((x[:, None] - x) ** 2 + (y[:, None] - y) ** 2) / 18)
    values = (np.sin(x / 4) + (y > 11)).astype(np.float32)
    lattice = build_lattice(features)
    smoothed = filter_values(lattice, values) / filter_values(lattice, np.ones_like(values))
    assert np.abs(smoothed - kernel @ values / kernel.sum(1)).max() < 0.08
    assert np.abs(values - kernel @ values / kernel.sum(1)).max() > 0.5


def test_distant_points_do_not_mix():
    lattice = build_lattice(np.array([[0.0, 50.0], [0.0, 0.0]], np.float32))
    first, second = filter_values(lattice, np.array([1.0, 0.0], np.float32))
    assert first > 0 and second == 0


def test_equal_points_share_one_simplex():
    lattice = build_lattice(np.full((5, 300), 7.3, np.float32))
    assert lattice.num_corners == 6
    filtered = filter_values(lattice, np.arange(300, dtype=np.float32))
    assert np.allclose(filtered, filtered[0]) and filtered[0] > 0


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    dimensions=st.sampled_from([2, 5]),
    points=st.integers(0, 300),
    spread=st.sampled_from([0.0, 0.1, 3.0, 90.0]),
)
def test_shares_and_linearity(seed, dimensions, points, spread):
    rng = np.random.default_rng(seed)
    lattice = build_lattice(rng.uniform(-spread, spread, (dimensions, points)).astype(np.float32))
    assert lattice.corners.shape == lattice.weights.shape == (points, dimensions + 1)
    assert np.allclose(lattice.weights.sum(1), 1, atol=1e-4) and (lattice.weights >= -1e-4).all()
    a, b = rng.random((2, points)).astype(np.float32)
    both = filter_values(lattice, a + 2 * b)
    assert np.allclose(both, filter_values(lattice, a) + 2 * filter_values(lattice, b), rtol=1e-3, atol=1e-4)


def test_features_need_not_be_contiguous_and_are_not_changed():
    features = np.random.default_rng(1).random((200, 5)).astype(np.float32)
    before = features.copy()
    assert (build_lattice(features.T).corners == build_lattice(features.T.copy()).corners).all()
    assert (features == before).all()


@pytest.mark.parametrize(
    ("features", "error", "message"),
    [
        (np.zeros(5, np.float32), ShapeError, "float32"),
        (np.zeros((2, 5)), ShapeError, "float64"),
        (np.zeros((7, 5), np.float32), ShapeError, r"\(7, 5\)"),
        (np.zeros((0, 5), np.float32), ShapeError, r"\(0, 5\)"),
        (np.array([[np.nan]], np.float32), ShapeError, "finite"),
        (np.array([[0.0], [-np.inf]], np.float32), ShapeError, "finite"),
        (np.full((5, 3), 1e5, np.float32), ConfigError, "larger standard deviation"),
    ],
)
def test_wrong_features_are_refused(features, error, message):
    with pytest.raises(error, match=message):
        build_lattice(features)


@pytest.mark.parametrize("values", [np.zeros(4, np.float32), np.zeros(3), np.zeros((3, 1), np.float32)])
def test_wrong_values_are_refused(values):
    lattice = build_lattice(np.zeros((2, 3), np.float32))
    with pytest.raises(ShapeError, match="3 points"):
        filter_values(lattice, values)
