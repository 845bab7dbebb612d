from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.training_sample import plain_sample
from irn_pipeline.datasets.mask_samples import MaskSamples, SegmentationTarget, collate_lists
from irn_pipeline.errors import DataError
from irn_pipeline.ops.cutouts import CutTruth
from irn_pipeline.structures import GroundTruth, ImageRecord, Instances

SIZE = (60, 80)


def whole_truth(size: tuple[int, int] = SIZE) -> GroundTruth:
    """Two rectangles, coloured in the picture like their index; one single pixel of a third."""
    masks = np.zeros((3, *size), bool)
    masks[0, 10:30, 5:25] = masks[1, 35:55, 50:75] = masks[2, 2, 2] = True
    label = masks[0] * 1 + masks[1] * 2 + masks[2] * 3
    ignore = np.zeros(size, bool)
    ignore[0] = True
    scores = np.array([0.5, 1.0, 0.25], np.float32)
    return GroundTruth(label.astype(np.uint8), Instances(scores, masks, np.arange(3)), ignore)


def truth(_image_id: str, size: tuple[int, int] = SIZE) -> CutTruth:
    return CutTruth.of(whole_truth(size))


@pytest.fixture
def record(tmp_path: Path) -> ImageRecord:
    image = np.zeros((*SIZE, 3), np.uint8)
    for index, mask in enumerate(whole_truth().instances.masks[:2]):
        image[mask] = 80 * (index + 1)
    cv2.imwrite(str(tmp_path / "a.png"), image)
    return ImageRecord("a", tmp_path / "a.png", (0, 1, 2))


def samples(record: ImageRecord, **more) -> MaskSamples:
    settings = {"read_target": truth, "scales": (1.0, 1.0), "seed": 0} | more
    return MaskSamples((record,), **settings)


def agree(pixels: torch.Tensor, target: SegmentationTarget) -> float:
    """Share of the mask pixels that show the colour of their instance, away from edges, where resizing blends."""
    right = [torch.ones(1)]
    for mask, class_id in zip(target.masks, target.class_ids.tolist(), strict=True):
        inside = torch.from_numpy(
            cv2.erode(mask.numpy().astype(np.uint8), np.ones((7, 7), np.uint8), borderValue=0)
        ).bool()
        right.append(((pixels[0][inside] * 255 - 80 * (class_id + 1)).abs() < 12).float())
    return float(torch.cat(right).mean())


@pytest.mark.parametrize("crop", [0, 48, 96])
@pytest.mark.parametrize("scales", [(1.0, 1.0), (0.5, 1.5)])
def test_masks_stay_on_their_objects(record, crop, scales):
    made = samples(record, crop=crop, scales=scales)
    for epoch in range(20):
        pixels, target = made[epoch, 0]
        assert pixels.shape[-2:] == target.ignore.shape == target.label.shape == target.masks.shape[1:]
        assert pixels.dtype == torch.float32
        assert 0 <= pixels.min() <= pixels.max() <= 1
        assert agree(pixels, target) > 0.99
        assert (target.label[target.ignore] == 255).all()
        assert (target.masks.sum(0) <= 1).all()
        if crop:
            assert pixels.shape[-2:] == (crop, crop)


def test_a_pixel_that_is_no_example_is_no_background_either(record):
    _, target = samples(record)[0, 0]
    assert target.class_ids.tolist() == [0, 1]
    assert target.weights.tolist() == [0.5, 1.0]
    assert int(target.ignore[1:].sum()) == 1
    assert int((target.label == 255).sum()) == SIZE[1] + 1


def test_padding_is_ignored(record):
    _, target = samples(record, crop=128)[0, 0]
    assert int((~target.ignore).sum()) == SIZE[0] * SIZE[1] - SIZE[1] - 1


def test_object_centred_crops_hold_an_object(record):
    made = samples(record, crop=32, object_centred=1.0, scales=(2.0, 2.0))
    assert all(len(made[epoch, 0][1].masks) > 0 for epoch in range(30))
    random = samples(record, crop=32, object_centred=0.0, scales=(2.0, 2.0))
    assert any(len(random[epoch, 0][1].masks) == 0 for epoch in range(30))


def test_choices_depend_on_seed_epoch_and_index_only(record):
    made = samples(record, crop=32, scales=(0.5, 1.5))
    first = made[3, 0][0]
    made[7, 0]
    assert torch.equal(made[3, 0][0], first)
    assert not torch.equal(made[4, 0][0], first)
    assert not torch.equal(samples(record, crop=32, scales=(0.5, 1.5), seed=1)[3, 0][0], first)


def test_no_instance_at_all(record):
    def nothing(_image_id: str) -> CutTruth:
        whole = GroundTruth(np.zeros(SIZE, np.uint8), Instances.empty(SIZE), np.zeros(SIZE, bool))
        return CutTruth.of(whole)

    _, target = samples(record, read_target=nothing, crop=48)[0, 0]
    assert target.masks.shape == (0, 48, 48)


def test_labels_of_another_picture_are_refused(record):
    with pytest.raises(DataError, match="60x80 pixels, its masks are for 61x80"):
        samples(record, read_target=partial(truth, size=(61, 80)))[0, 0]


def test_a_batch_keeps_sizes_apart(record):
    made = samples(record, scales=(0.5, 1.5))
    images, targets = collate_lists([made[0, 0], made[1, 0]])
    assert images[0].shape != images[1].shape
    assert [t.image_id for t in targets] == ["a", "a"]


@settings(deadline=None, max_examples=60)
@given(
    size=st.tuples(st.integers(8, 40), st.integers(8, 40)),
    low=st.floats(0.3, 1.7),
    high=st.floats(0.3, 1.7),
    crop=st.sampled_from([0, 8, 24, 64]),
    centred=st.sampled_from([0.0, 0.5, 1.0]),
    epoch=st.integers(0, 1000),
)
def test_samples_are_those_of_whole_masks_scaled_mirrored_and_then_cropped(
    size, low, high, crop, centred, epoch
):
    rng = np.random.default_rng(epoch)
    image = torch.from_numpy(rng.integers(0, 256, (3, *size), np.uint8))
    masks = rng.random((5, *size)) < rng.random((5, 1, 1)) ** 2  # they overlap, and some are empty
    masks[0] = False
    whole = GroundTruth(
        rng.choice(np.array([0, 1, 255], np.uint8), size),
        Instances(rng.random(5, np.float32), masks, np.arange(5)),
        rng.random(size) < 0.1,
    )
    scales = (min(low, high), max(low, high))
    made = MaskSamples(
        (), read_target=lambda _: CutTruth.of(whole), scales=scales, crop=crop, object_centred=centred, seed=0
    )
    pixels, target = made._sample(ImageRecord("a", Path("a"), ()), image, np.random.default_rng(epoch))
    expected = plain_sample(image, whole, scales, crop, np.random.default_rng(epoch), centred)
    for ours, theirs in zip(
        (pixels, target.masks, target.weights, target.ignore, target.label), expected, strict=True
    ):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)
    kept = [int(np.flatnonzero(whole.instances.scores == weight)[0]) for weight in target.weights]
    assert target.class_ids.tolist() == kept
