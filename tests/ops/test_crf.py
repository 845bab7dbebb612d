"""Dense CRF and confident labels on pictures whose right answer is plain."""

import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from irn_pipeline.errors import ConfigError, ShapeError
from irn_pipeline.ops import crf as crf_module
from irn_pipeline.ops.crf_params import CrfParams

BACKENDS = ("lattice", "pydensecrf")


@pytest.fixture(params=BACKENDS)
def backend(request):
    """Every test of behaviour holds for both, where both can be installed."""
    if request.param == "pydensecrf":
        pytest.importorskip("pydensecrf")
    return request.param


@pytest.fixture
def dense_crf(backend):
    return partial(crf_module.dense_crf, backend=backend)


@pytest.fixture
def confident_label(backend):
    return partial(crf_module.confident_label, backend=backend)


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


def test_label_snaps_to_the_picture_edge(dense_crf, halves):
    label = np.zeros((24, 32), int)
    label[:, 19:] = 1  # three columns too few
    assert (dense_crf(halves, label, 2) == (np.arange(32) >= 16)).all()


def test_speckle_is_removed(dense_crf, halves):
    label = np.zeros((24, 32), int)
    label[5, 5] = label[12, 20] = 2
    assert not dense_crf(halves, label, 3).any()


def test_agrees_with_exact_mean_field(dense_crf):
    rng = np.random.default_rng(3)
    image = rng.integers(0, 20, (12, 14, 3)).astype(np.uint8)
    image[:, 7:] += 60
    label = (np.arange(14) + rng.integers(-3, 4, (12, 1)) >= 7).astype(int)
    label[rng.random(label.shape) < 0.1] = 2
    crf = CrfParams(iterations=5, bilateral_srgb=20.0, bilateral_sxy=10.0)
    assert (dense_crf(image, label, 3, crf) == exact_mean_field(image, label, 3, crf)).mean() > 0.98


def test_zero_iterations_keep_the_label(dense_crf, halves):
    label = np.random.default_rng(0).integers(0, 3, (24, 32))
    assert (dense_crf(halves, label, 3, replace(CrfParams(), iterations=0)) == label).all()


def test_one_label_one_pixel_and_strided_arrays(dense_crf, halves):
    assert not dense_crf(halves, np.zeros((24, 32), int), 1).any()
    assert dense_crf(halves[:1, :1], np.array([[2]]), 3).tolist() == [[2]]
    label = np.zeros((24, 32), np.uint8)
    label[:, 18:] = 1
    flipped = dense_crf(halves[:, ::-1], label[:, ::-1], 2)
    assert (flipped == dense_crf(halves[:, ::-1].copy(), label[:, ::-1].copy(), 2)).all()
    frozen = halves.copy()
    frozen.flags.writeable = False
    assert (dense_crf(frozen, label, 2) == dense_crf(halves, label, 2)).all()


def test_inputs_are_not_changed(dense_crf, halves):
    image, label = halves.copy(), np.ones((24, 32), int)
    dense_crf(image, label, 2)
    assert (image == halves).all() and (label == 1).all()


def test_confident_label_marks_doubtful_pixels(confident_label, halves):
    cam = np.zeros((2, 24, 32), np.float32)
    cam[1, :, 16:] = 0.9  # sure foreground
    cam[0, :, :16] = 0.1  # between the thresholds: unsure
    label = confident_label(halves, cam, np.array([3, 7]))
    assert (label[:, 16:] == 8).all() and (label[:, :16] == 255).all()
    cam[0] = 0.01
    assert (confident_label(halves, cam, np.array([3, 7]))[:, :16] == 0).all()


def test_confident_label_equals_two_separate_refinements(dense_crf, confident_label):
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


def test_confident_label_without_classes_is_background(confident_label, halves):
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
def test_wrong_input_is_refused(dense_crf, image, label, message):
    with pytest.raises(ShapeError, match=message):
        dense_crf(image, label, 2)


def test_confident_label_refuses_other_numbers_of_classes(confident_label, halves):
    with pytest.raises(ShapeError, match="2 classes"):
        confident_label(halves, np.zeros((1, 24, 32), np.float32), np.array([1, 2]))


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (37, 1), (2, 3), (45, 61)])
@pytest.mark.parametrize("num_labels", [2, 3, 4, 6])
def test_backends_agree(size, num_labels):
    pytest.importorskip("pydensecrf")
    rng = np.random.default_rng(size[1] + num_labels)
    y, x = np.indices(size)
    scene = np.stack([40 * (y > size[0] / 2), 90 * (x > size[1] / 3), 2 * x], axis=-1)
    image = (scene + rng.integers(0, 12, (*size, 3))).astype(np.uint8)
    label = (np.clip(x * num_labels // size[1] + rng.integers(-1, 2, size), 0, num_labels - 1)).astype(int)
    ours, reference = (crf_module.dense_crf(image, label, num_labels, backend=name) for name in BACKENDS)
    # The reference library fills its last vector with made-up pixels at the origin, which tiny pictures feel.
    assert (ours == reference).mean() >= (0.999 if image.size > 1000 else 0.9)


@pytest.mark.parametrize("colour", [0, 255])
def test_backends_agree_on_a_flat_picture(colour):
    pytest.importorskip("pydensecrf")
    image = np.full((40, 50, 3), colour, np.uint8)
    high_res_cam = np.zeros((2, 40, 50), np.float32)
    high_res_cam[0, 5:20, 5:20] = 0.8
    high_res_cam[1, 15:35, 25:45] = 0.2
    ours, reference = (
        crf_module.confident_label(image, high_res_cam, np.array([2, 4]), backend=name) for name in BACKENDS
    )
    assert (ours == reference).mean() >= 0.999


def test_empty_picture_gives_an_empty_label(dense_crf):
    assert dense_crf(np.zeros((0, 5, 3), np.uint8), np.zeros((0, 5), int), 3).shape == (0, 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"confidence": 1.0}, "confidence"),
        ({"confidence": 0.0}, "confidence"),
        ({"iterations": -1}, "iterations"),
        ({"gaussian_sxy": 0.0}, "gaussian_sxy"),
        ({"bilateral_srgb": float("nan")}, "bilateral_srgb"),
        ({"bilateral_compat": -3.0}, "bilateral_compat"),
    ],
)
def test_impossible_parameters_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        CrfParams(**change)


def test_unknown_backend_and_too_small_deviation_are_refused(halves):
    label = np.zeros((24, 32), int)
    with pytest.raises(ConfigError, match="lattice, pydensecrf"):
        crf_module.dense_crf(halves, label, 2, backend="opencv")
    with pytest.raises(ConfigError, match="larger standard deviation"):
        crf_module.dense_crf(halves, label, 2, CrfParams(bilateral_srgb=0.01))


def test_reference_that_is_not_installed_is_told(halves, monkeypatch):
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)
    label = np.zeros((24, 32), int)
    with pytest.raises(ConfigError, match="pydensecrf2, which is not installed; use --crf-backend lattice"):
        crf_module.dense_crf(halves, label, 2, backend="pydensecrf")
    assert not crf_module.dense_crf(halves, label, 2).any(), "the other backend does not need it"
