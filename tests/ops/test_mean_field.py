"""Mean field of several runs at once against the textbook iteration with whole matrices."""

import numpy as np
import pytest

from irn_pipeline.errors import ConfigError, ShapeError
from irn_pipeline.ops.mean_field import mean_field, pairwise_model
from irn_pipeline.ops.permutohedral import build_lattice, filter_values


def lattices(rng, size, spread=3.0):
    """Appearance and smoothness lattices of a random picture."""
    y, x = (axis.ravel() for axis in np.indices(size))
    positions = np.stack([x, y]).astype(np.float32)
    colours = rng.uniform(0, spread, (3, positions.shape[1])).astype(np.float32)
    return build_lattice(np.concatenate([positions / 8, colours])), build_lattice(positions / 2)


def textbook(pair, compats, labels, num_labels, confidence, iterations):
    """Log beliefs (N, L) of one run: every label has its channel, every filter is a matrix, in float64."""
    pixels = len(labels)
    messages = np.zeros((pixels, pixels))
    for lattice, compat in zip(pair, compats, strict=True):
        kernel = np.stack([filter_values(lattice, row) for row in np.eye(pixels, dtype=np.float32)], axis=1)
        norm = 1 / np.sqrt(kernel.astype(float).sum(1) + 1e-20)
        messages += compat * norm[:, None] * kernel * norm
    unary = np.full((pixels, num_labels), np.log((1 - confidence) / (num_labels - 1)))
    unary[np.arange(pixels), labels] = np.log(confidence)
    energy = unary
    for _ in range(iterations):
        belief = np.exp(energy - energy.max(1, keepdims=True))
        energy = unary + messages @ (belief / belief.sum(1, keepdims=True))
    return energy


@pytest.mark.parametrize(
    ("runs", "num_labels"), [(1, 2), (2, 2), (2, 3), (1, 5), (2, 4), (2, 5), (3, 4), (2, 12)]
)
def test_equals_the_textbook(runs, num_labels):
    rng = np.random.default_rng(runs * 100 + num_labels)
    pair = lattices(rng, (11, 13), 1.0)
    stripes = np.arange(143) % 13 * min(num_labels, 3) // 13
    labels = np.where(rng.random((runs, 143)) < 0.5, stripes, rng.integers(0, num_labels, (runs, 143)))
    confidence = 1.4 / num_labels  # unsure enough for the neighbours to overrule it
    model = pairwise_model(*pair, appearance_compat=8, smoothness_compat=2)
    refined = mean_field(model, labels, num_labels, confidence=confidence, iterations=6)
    assert refined.shape == labels.shape
    assert (refined != labels).mean() > 0.05
    for seed, found in zip(labels, refined, strict=True):
        energy = textbook(pair, (8, 2), seed, num_labels, confidence, 6)
        best = np.sort(energy, axis=1)
        clear = best[:, -1] - best[:, -2] > 1e-3
        assert clear.mean() > 0.95
        assert (energy.argmax(1) == found)[clear].all()


def test_runs_do_not_touch_one_another():
    rng = np.random.default_rng(2)
    model = pairwise_model(*lattices(rng, (20, 21)), appearance_compat=10, smoothness_compat=3)
    labels = rng.integers(0, 4, (3, 420))
    together = mean_field(model, labels, 4, confidence=0.7, iterations=5)
    for seed, found in zip(labels, together, strict=True):
        assert (mean_field(model, seed[None], 4, confidence=0.7, iterations=5)[0] == found).all()


def test_without_iterations_the_unary_decides():
    rng = np.random.default_rng(3)
    model = pairwise_model(*lattices(rng, (9, 30)), appearance_compat=10, smoothness_compat=3)
    labels = rng.integers(0, 2, (2, 270))
    assert (mean_field(model, labels, 2, confidence=0.7, iterations=0) == labels).all()
    assert (mean_field(model, labels, 2, confidence=0.3, iterations=0) == 1 - labels).all()
    tied = mean_field(model, labels, 2, confidence=0.5, iterations=0)
    assert not tied.any()  # the lowest of equally probable labels


def test_without_weight_the_terms_do_nothing():
    rng = np.random.default_rng(4)
    model = pairwise_model(*lattices(rng, (9, 9)), appearance_compat=0, smoothness_compat=0)
    labels = rng.integers(0, 3, (2, 81))
    assert (mean_field(model, labels, 3, confidence=0.7, iterations=10) == labels).all()


def test_huge_weights_stay_finite():
    rng = np.random.default_rng(5)
    model = pairwise_model(*lattices(rng, (16, 16), 0.0), appearance_compat=1e4, smoothness_compat=1e4)
    labels = (rng.random((1, 256)) < 0.2).astype(int) * 2
    assert not mean_field(model, labels, 3, confidence=0.999999, iterations=10).any()


def test_lattices_that_do_not_fit_are_refused():
    rng = np.random.default_rng(6)
    appearance, smoothness = lattices(rng, (4, 5))
    for wrong in ((smoothness, appearance), (appearance, lattices(rng, (4, 4))[1])):
        with pytest.raises(ShapeError, match="corners"):
            pairwise_model(*wrong, appearance_compat=1, smoothness_compat=1)
    with pytest.raises(ConfigError, match="gaussian_compat -1"):
        pairwise_model(appearance, smoothness, appearance_compat=1, smoothness_compat=-1)


@pytest.mark.parametrize(
    ("labels", "num_labels", "confidence", "iterations", "error"),
    [
        (np.zeros(20, int), 2, 0.7, 1, ShapeError),
        (np.zeros((1, 19), int), 2, 0.7, 1, ShapeError),
        (np.full((1, 20), 2), 2, 0.7, 1, ShapeError),
        (np.full((1, 20), -1), 2, 0.7, 1, ShapeError),
        (np.zeros((1, 20), int), 1, 0.7, 1, ShapeError),
        (np.zeros((1, 20), int), 40_000, 0.7, 1, ShapeError),
        (np.zeros((1, 20), int), 2, 1.0, 1, ConfigError),
        (np.zeros((1, 20), int), 2, 0.7, -1, ConfigError),
    ],
)
def test_wrong_labels_are_refused(labels, num_labels, confidence, iterations, error):
    model = pairwise_model(
        *lattices(np.random.default_rng(7), (4, 5)), appearance_compat=1, smoothness_compat=1
    )
    with pytest.raises(error):
        mean_field(model, labels, num_labels, confidence=confidence, iterations=iterations)
