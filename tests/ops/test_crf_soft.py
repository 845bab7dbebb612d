"""Dense CRF on probabilities: against all pairs, on pictures whose right answer is plain, and refusals."""

from dataclasses import replace

import numpy as np
import pytest

from irn_pipeline.errors import ShapeError
from irn_pipeline.ops.crf_params import DEEPLAB_CRF, CrfParams
from irn_pipeline.ops.crf_soft import dense_crf_probabilities

pytest.importorskip("pydensecrf")


@pytest.fixture
def halves():
    """A dark and a bright half, 24 x 32."""
    image = np.zeros((24, 32, 3), np.uint8)
    image[:, 16:] = 255
    return image


def two_labels(first):
    return np.stack([first, 1 - np.asarray(first)]).astype(np.float32)


def exact_mean_field(image, probabilities, crf):
    """Mean field of the same model with all N x N pairs: the model itself, without the fast filter."""
    size = image.shape[:2]
    y, x = (axis.ravel().astype(float) for axis in np.indices(size))
    colour = image.reshape(-1, 3).astype(float)
    distance = (y[:, None] - y) ** 2 + (x[:, None] - x) ** 2
    contrast = ((colour[:, None] - colour) ** 2).sum(-1)
    smoothness = np.exp(-distance / 2 / crf.gaussian_sxy**2)
    appearance = np.exp(-distance / 2 / crf.bilateral_sxy**2 - contrast / 2 / crf.bilateral_srgb**2)
    belief = probabilities.reshape(len(probabilities), -1).T.astype(float)
    unary = np.log(belief)
    for _ in range(crf.iterations):
        energy = unary.copy()
        for compat, kernel in ((crf.gaussian_compat, smoothness), (crf.bilateral_compat, appearance)):
            norm = 1 / np.sqrt(kernel.sum(1))
            energy += compat * norm[:, None] * (kernel @ (norm[:, None] * belief))
        belief = np.exp(energy - energy.max(1, keepdims=True))
        belief /= belief.sum(1, keepdims=True)
    return belief.T.reshape(probabilities.shape)


def random_case(seed=0, size=(12, 14), labels=3):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 20, (*size, 3)).astype(np.uint8)
    image[:, size[1] // 2 :] += 60
    probabilities = rng.dirichlet(np.ones(labels), size).transpose(2, 0, 1).astype(np.float32)
    return image, probabilities


def test_agrees_with_exact_mean_field():
    image, probabilities = random_case()
    # Moderate terms, so that beliefs stay away from 0 and 1 and are worth comparing as numbers.
    crf = CrfParams(
        iterations=3, gaussian_sxy=1.0, gaussian_compat=2.5,
        bilateral_sxy=10.0, bilateral_srgb=20.0, bilateral_compat=2.5,
    )  # fmt: skip
    found = dense_crf_probabilities(image, probabilities, crf)
    exact = exact_mean_field(image, probabilities, crf)
    change, error = np.abs(exact - probabilities).mean(), np.abs(found - exact).mean()
    assert change > 0.1
    assert error < 0.1 * change
    assert (found.argmax(0) == exact.argmax(0)).mean() > 0.96


def test_zero_iterations_give_the_probabilities_back():
    image, probabilities = random_case(labels=4)
    found = dense_crf_probabilities(image, probabilities, replace(DEEPLAB_CRF, iterations=0))
    assert found.dtype == np.float32 and found.shape == probabilities.shape
    np.testing.assert_allclose(found, probabilities, atol=2e-5)


def test_label_snaps_to_the_picture_edge_and_sums_to_one(halves):
    blurred = two_labels(np.clip((22 - np.arange(32)) / 8, 0.05, 0.95) * np.ones((24, 1)))
    assert (blurred.argmax(0) != (np.arange(32) >= 16)).any()
    found = dense_crf_probabilities(halves, blurred)
    assert (found.argmax(0) == (np.arange(32) >= 16)).all()
    np.testing.assert_allclose(found.sum(0), 1, atol=1e-5)


def test_a_sure_speck_outlasts_one_that_is_in_doubt(halves):
    first = np.full((24, 32), 0.6, np.float32)
    first[12, 8], doubtful = 1e-5, first.copy()
    doubtful[12, 8] = 0.45
    crf = replace(DEEPLAB_CRF, gaussian_compat=1.0, bilateral_compat=3.0)
    assert dense_crf_probabilities(halves, two_labels(first), crf).argmax(0)[12, 8] == 1
    assert dense_crf_probabilities(halves, two_labels(doubtful), crf).argmax(0)[12, 8] == 0


def test_certain_probabilities_one_label_one_pixel_and_strided_arrays(halves):
    certain = two_labels(np.arange(32)[None].repeat(24, 0) < 16)
    assert np.isfinite(dense_crf_probabilities(halves, certain)).all()
    assert (dense_crf_probabilities(halves, np.ones((1, 24, 32), np.float32)) == 1).all()
    assert dense_crf_probabilities(halves[:1, :1], two_labels([[0.2]])).argmax(0).tolist() == [[1]]
    image, probabilities = random_case()
    flipped = dense_crf_probabilities(image[:, ::-1], probabilities[..., ::-1])
    copied = dense_crf_probabilities(image[:, ::-1].copy(), probabilities[..., ::-1].copy())
    np.testing.assert_array_equal(flipped, copied)


def test_inputs_are_not_changed():
    image, probabilities = random_case()
    before = image.copy(), probabilities.copy()
    image.flags.writeable = probabilities.flags.writeable = False
    dense_crf_probabilities(image, probabilities)
    assert (image == before[0]).all() and (probabilities == before[1]).all()


PICTURE = np.zeros((4, 5, 3), np.uint8)


@pytest.mark.parametrize(
    ("image", "probabilities", "message"),
    [
        (PICTURE.astype(np.float32), np.full((2, 4, 5), 0.5), "uint8"),
        (PICTURE[..., 0], np.full((2, 4, 5), 0.5), "uint8"),
        (PICTURE, np.full((2, 5, 4), 0.5), "4x5"),
        (PICTURE, np.full((4, 5), 0.5), "4x5"),
        (PICTURE, np.zeros((0, 4, 5)), "L >= 1"),
        (PICTURE, np.full((2, 4, 5), 3.0), "softmax"),
        (PICTURE, np.full((2, 4, 5), -0.5), "softmax"),
        (PICTURE, np.full((2, 4, 5), np.nan), "softmax"),
    ],
)
def test_wrong_input_is_refused(image, probabilities, message):
    with pytest.raises(ShapeError, match=message):
        dense_crf_probabilities(image, probabilities.astype(np.float32))
