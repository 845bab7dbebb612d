"""Dense CRF and confident labels on pictures whose right answer is plain."""

from dataclasses import replace

import numpy as np
import pytest

from irn_pipeline.errors import ShapeError
from irn_pipeline.ops.crf import CrfParams, confident_label, dense_crf


@pytest.fixture
def halves():
    """A dark and a bright half, 24 x 32."""
    image = np.zeros((24, 32, 3), np.uint8)
    image[:, 16:] = 255
    return image


def exact_mean_field(image, label, num_labels, crf):
    """Mean field of the same model with all N x N pairs: the model itself, without the fast filter."""
    y, x = (axis.ravel().astype(float) for axis in np.indices(label.shape))
    colour = image.reshape(-1, 3).astype(float)
    distance = (y[:, None] - y) ** 2 + (x[:, None] - x) ** 2
    kernels = [
        (crf.gaussian_compat, np.exp(-distance / 2 / crf.gaussian_sxy**2)),
        (
            crf.bilateral_compat,
            np.exp(
                -distance / 2 / crf.bilateral_sxy**2
                - ((colour[:, None] - colour) ** 2).sum(-1) / 2 / crf.bilateral_srgb**2
            ),
        ),
    ]
    unary = np.where(
        label.ravel()[:, None] == np.arange(num_labels),
        np.log(crf.confidence),
        np.log((1 - crf.confidence) / (num_labels - 1)),
    )
    belief = np.exp(unary)
    belief /= belief.sum(1, keepdims=True)
    for _ in range(crf.iterations):
        energy = unary.copy()
        for compat, kernel in kernels:
            norm = 1 / np.sqrt(kernel.sum(1))
            energy += compat * norm[:, None] * (kernel @ (norm[:, None] * belief))
        belief = np.exp(energy - energy.max(1, keepdims=True))
        belief /= belief.sum(1, keepdims=True)
    return belief.argmax(1).reshape(label.shape)


def test_label_snaps_to_the_picture_edge(halves):
    label = np.zeros((24, 32), int)
    label[:, 19:] = 1  # three columns too few
    assert (dense_crf(halves, label, 2) == (np.arange(32) >= 16)).all()


def test_speckle_is_removed(halves):
    label = np.zeros((24, 32), int)
    label[5, 5] = label[12, 20] = 2
    assert not dense_crf(halves, label, 3).any()


def test_agrees_with_exact_mean_field():
    rng = np.random.default_rng(3)
    image = rng.integers(0, 20, (12, 14, 3)).astype(np.uint8)
    image[:, 7:] += 60
    label = (np.arange(14) + rng.integers(-3, 4, (12, 1)) >= 7).astype(int)
    label[rng.random(label.shape) < 0.1] = 2
    crf = CrfParams(iterations=5, bilateral_srgb=20.0, bilateral_sxy=10.0)
    assert (dense_crf(image, label, 3, crf) == exact_mean_field(image, label, 3, crf)).mean() > 0.98


def test_zero_iterations_keep_the_label(halves):
    label = np.random.default_rng(0).integers(0, 3, (24, 32))
    assert (dense_crf(halves, label, 3, replace(CrfParams(), iterations=0)) == label).all()


def test_one_label_one_pixel_and_strided_arrays(halves):
    assert not dense_crf(halves, np.zeros((24, 32), int), 1).any()
    assert dense_crf(halves[:1, :1], np.array([[2]]), 3).tolist() == [[2]]
    label = np.zeros((24, 32), np.uint8)
    label[:, 18:] = 1
    flipped = dense_crf(halves[:, ::-1], label[:, ::-1], 2)
    assert (flipped == dense_crf(halves[:, ::-1].copy(), label[:, ::-1].copy(), 2)).all()
    frozen = halves.copy()
    frozen.flags.writeable = False
    assert (dense_crf(frozen, label, 2) == dense_crf(halves, label, 2)).all()


def test_inputs_are_not_changed(halves):
    image, label = halves.copy(), np.ones((24, 32), int)
    dense_crf(image, label, 2)
    assert (image == halves).all() and (label == 1).all()


def test_confident_label_marks_doubtful_pixels(halves):
    cam = np.zeros((2, 24, 32), np.float32)
    cam[1, :, 16:] = 0.9  # sure foreground
    cam[0, :, :16] = 0.1  # between the thresholds: unsure
    label = confident_label(halves, cam, np.array([3, 7]))
    assert (label[:, 16:] == 8).all() and (label[:, :16] == 255).all()
    cam[0] = 0.01
    assert (confident_label(halves, cam, np.array([3, 7]))[:, :16] == 0).all()


def test_confident_label_equals_two_separate_refinements():
    rng = np.random.default_rng(5)
    image = np.kron(rng.integers(0, 255, (4, 5, 3)), np.ones((6, 6, 1))).astype(np.uint8)
    cam = np.kron(rng.random((2, 4, 5)), np.ones((1, 6, 6))).astype(np.float32)
    cam[:, :8] *= 0.1
    seeds = [np.where(cam.max(0) > t, cam.argmax(0) + 1, 0) for t in (0.4, 0.1)]
    foreground, background = (dense_crf(image, seed, 3) for seed in seeds)
    expected = np.where(foreground > 0, np.array([0, 1, 6])[foreground], np.where(background == 0, 0, 255))
    label = confident_label(image, cam, np.array([0, 5]), fg_threshold=0.4, bg_threshold=0.1)
    assert label.dtype == np.uint8 and (label == expected).all()
    assert len(np.unique(label)) > 2


def test_confident_label_without_classes_is_background(halves):
    assert not confident_label(halves, np.zeros((0, 24, 32), np.float32), np.zeros(0, int)).any()


@pytest.mark.parametrize(
    ("image", "label", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), np.zeros((4, 4), int), "uint8"),
        (np.zeros((4, 4), np.uint8), np.zeros((4, 4), int), "uint8"),
        (np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5), int), "4x4"),
        (np.zeros((4, 4, 3), np.uint8), np.full((4, 4), 2), "0..1"),
        (np.zeros((4, 4, 3), np.uint8), np.full((4, 4), -1), "0..1"),
    ],
)
def test_wrong_input_is_refused(image, label, message):
    with pytest.raises(ShapeError, match=message):
        dense_crf(image, label, 2)


def test_confident_label_refuses_other_numbers_of_classes(halves):
    with pytest.raises(ShapeError, match="2 classes"):
        confident_label(halves, np.zeros((1, 24, 32), np.float32), np.array([1, 2]))
