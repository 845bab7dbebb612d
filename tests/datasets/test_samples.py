"""Training samples of the classifier and of IRNet: every pixel of a crop says where in the picture it comes from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from irn_pipeline.datasets.samples import ClassificationSamples, RelationSamples
from irn_pipeline.errors import DataError
from irn_pipeline.structures import IGNORE, IMAGENET_MEAN, IMAGENET_STD, ImageRecord, ImageSet, LabelArray

HEIGHT, WIDTH = 40, 60
EPOCHS = 24


@pytest.fixture
def record(tmp_path: Path) -> ImageRecord:
    """A picture whose red is 4 * column and whose green is 5 * row; blue is full."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    pixels = np.stack([4 * columns, 5 * rows, np.full_like(rows, 255)], axis=-1)
    Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "a.png")
    return ImageRecord("a", tmp_path / "a.png", (0, 2))


def label_of(_image_id: str = "a") -> LabelArray:
    """A label that tells all blocks of 4 x 4 pixels apart."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return (rows // 4 * 15 + columns // 4).astype(np.uint8)


def classification(record: ImageRecord, *, side: tuple[int, int] = (60, 60), crop: int = 32, seed: int = 0):
    images = ImageSet(("cat", "dog", "car"), (record,))
    return ClassificationSamples(images, long_side=side, crop=crop, seed=seed)


def relation(record: ImageRecord, *, scales=(1.0, 1.0), crop: int = 32, seed: int = 0, read=label_of):
    return RelationSamples((record,), read_label=read, scales=scales, crop=crop, seed=seed)


def coordinates(sample: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row and column that each pixel comes from, and which pixels are no padding: padding is 0 after normalisation."""
    inside = (sample != 0).any(0).numpy()
    mean, std = (np.array(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    red, green, blue = np.rint((sample.numpy() * std + mean) * 255)
    assert (blue[inside] == 255).all()
    return green / 5, red / 4, inside


def check_window(sample: Tensor, crop: int) -> tuple[bool, tuple[int, int]]:
    """Assert that a sample is one window of the picture, as large as possible; whether it is mirrored, its corner."""
    rows, columns, inside = coordinates(sample)
    extent = (min(HEIGHT, crop), min(WIDTH, crop))
    assert inside.sum() == extent[0] * extent[1]
    places = np.argwhere(inside)
    (top, left), (bottom, right) = places.min(0), places.max(0) + 1
    assert (bottom - top, right - left) == extent
    rows, columns = rows[top:bottom, left:right], columns[top:bottom, left:right]
    assert (np.diff(rows, axis=0) == 1).all() and (np.diff(rows, axis=1) == 0).all()
    step = np.unique(np.diff(columns, axis=1))
    assert step.tolist() in ([1.0], [-1.0]) and (np.diff(columns, axis=0) == 0).all()
    assert rows.min() >= 0 and rows.max() < HEIGHT and columns.min() >= 0 and columns.max() < WIDTH
    # Where it lies in the picture, and where in the square if that is larger.
    return bool(step[0] < 0), (int(rows[0, 0]) + 100 * int(top), int(columns.min()) + 100 * int(left))


@pytest.mark.parametrize("crop", [32, 48, 80])
@pytest.mark.parametrize("make", [classification, relation])
def test_crops_are_windows_of_the_picture_or_of_its_mirror(record: ImageRecord, make, crop: int) -> None:
    made = make(record, crop=crop)
    found = []
    for epoch in range(EPOCHS):
        sample = made[epoch, 0][0]
        assert sample.shape == (3, crop, crop)
        assert sample.dtype == torch.float32
        found.append(check_window(sample, crop))
    mirrored = [flipped for flipped, _ in found]
    assert EPOCHS // 4 < sum(mirrored) < 3 * EPOCHS // 4
    assert len({place for _, place in found}) > EPOCHS // 2


@pytest.mark.parametrize("crop", [32, 80])
def test_labels_are_those_of_the_pixels_shown(record: ImageRecord, crop: int) -> None:
    made = relation(record, crop=crop)
    for epoch in range(EPOCHS):
        sample, label = made[epoch, 0]
        assert label.shape == (crop // 4, crop // 4)
        assert label.dtype == torch.uint8
        rows, columns, inside = (array[2::4, 2::4] for array in coordinates(sample))
        assert (label.numpy()[~inside] == IGNORE).all()
        expected = label_of()[rows[inside].astype(int), columns[inside].astype(int)]
        assert np.array_equal(label.numpy()[inside], expected)


def test_classes_are_those_of_the_picture(record: ImageRecord) -> None:
    classes = classification(record)[0, 0][1]
    assert classes.dtype == torch.float32
    assert classes.tolist() == [1, 0, 1]


def test_the_long_side_is_between_both_limits_and_the_proportion_stays(record: ImageRecord) -> None:
    sizes = set()
    for epoch in range(60):
        inside = coordinates_of_extent(classification(record, side=(21, 24), crop=32)[epoch, 0][0])
        sizes.add(inside)
    assert sizes == {(14, 21), (15, 22), (15, 23), (16, 24)}


def test_the_scale_is_between_both_limits(record: ImageRecord) -> None:
    made = relation(record, scales=(0.5, 1.5), crop=96)
    widths = []
    for epoch in range(60):
        sample, label = made[epoch, 0]
        height, width = coordinates_of_extent(sample)
        assert abs(height - width * HEIGHT / WIDTH) <= 1
        widths.append(width)
        cells = int((label != IGNORE).sum())
        assert abs(cells - height * width / 16) <= (height + width) / 4 + 1
    assert 30 <= min(widths) < 36
    assert 84 < max(widths) <= 90


def coordinates_of_extent(sample: Tensor) -> tuple[int, int]:
    """(H, W) of what is no padding."""
    inside = (sample != 0).any(0)
    return int(inside.any(1).sum()), int(inside.any(0).sum())


@pytest.mark.parametrize("make", [classification, relation])
def test_choices_depend_on_seed_epoch_and_index_only(record: ImageRecord, make) -> None:
    made = make(record)
    first = made[3, 0]
    made[7, 0]
    for ours, again in zip(first, make(record)[3, 0], strict=True):
        assert torch.equal(ours, again)
    samples = [made[epoch, 0][0] for epoch in range(4)] + [make(record, seed=1)[3, 0][0]]
    assert not any(torch.equal(samples[3], other) for other in (*samples[:3], samples[4]))


def test_labels_of_another_picture_are_refused(record: ImageRecord) -> None:
    made = relation(record, read=lambda _: np.zeros((HEIGHT + 1, WIDTH), np.uint8))
    with pytest.raises(DataError, match="40x60 pixels, its confident label is for 41x60"):
        made[0, 0]
