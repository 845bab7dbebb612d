"""A generated demo set in VOC layout, so that every stage can be tried without a download.

Its pictures imitate photographs of small things on a table or on the ground, which lie apart, touch or overlap.
True masks are written for every picture, for evaluation only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
from PIL import Image

from irn_pipeline.datasets.synthetic_scenes import cast_shadow, make_ground, photograph
from irn_pipeline.datasets.synthetic_shapes import PAINTERS, Sprite
from irn_pipeline.errors import DataError
from irn_pipeline.ops.palette import voc_palette
from irn_pipeline.structures import BACKGROUND, BoolArray, FloatArray, LabelArray

Pixels = TypeVar("Pixels", BoolArray, FloatArray)

DEMO_CLASSES: tuple[str, ...] = tuple(PAINTERS)
"""Names of the demo set's classes, in the order of their class ids."""

_DIAMETERS = ((0.50, 0.66), (0.42, 0.54), (0.38, 0.47), (0.34, 0.42))
"""Smallest and largest object of pictures with 1, 2, 3 and 4 objects, as parts of the picture's short side."""
_COUNT_RATES = (0.2, 0.35, 0.3, 0.15)
"""How often a picture is meant to hold 1, 2, 3 or 4 objects."""
_TWO_CLASSES_RATE = 0.4
"""How often a picture is meant to hold two classes."""
_TOUCH_RATE = 0.5
"""How often an object is meant to touch an earlier one of its class; the others keep a gap of 3 pixels."""
_MIN_INSIDE = 0.85
"""Part of an object that must lie inside the picture's frame."""
_MIN_VISIBLE = 0.75
"""Part of an object that must stay visible when later ones cover it."""
_MAX_TRIES = 40
_JPEG_QUALITY = 90


@dataclass(frozen=True)
class DemoPicture:
    """One generated picture and its truth.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        object_label: (H, W) uint8, 0 background, else 1 + index into `class_ids`.
        class_ids: class of every object, in 0..C-1.
    """

    image: LabelArray
    object_label: LabelArray
    class_ids: tuple[int, ...]

    @property
    def label(self) -> LabelArray:
        """(H, W) uint8, 0 background, class_id + 1."""
        lookup = np.array([BACKGROUND, *(class_id + 1 for class_id in self.class_ids)], np.uint8)
        return lookup[self.object_label]


def generate_demo(
    root: Path,
    *,
    num_images: int = 80,
    num_heldout: int = 30,
    seed: int = 0,
    min_size: tuple[int, int] = (152, 176),
    max_size: tuple[int, int] = (168, 208),
) -> None:
    """Write the demo set: pictures, XML tags, class and object masks, image lists and class names.

    The same seed gives the same bytes; a picture depends on the seed and on its own number only, so a larger
    set begins with the smaller one. Lists are ImageSets/Segmentation/train.txt and val.txt.

    Args:
        root: folder to write to; made when missing. Files of an earlier demo set are written over.
        num_images: training pictures, `train_0000` and so on.
        num_heldout: held-out pictures, `val_0000` and so on.
        seed: 0 or more.
        min_size: smallest (H, W) in pixels, at least 64 each.
        max_size: largest (H, W) in pixels.

    Raises:
        DataError: a count, a size or the seed is impossible, or the folder cannot be written.
    """
    if num_images < 1 or num_heldout < 0 or seed < 0:
        raise DataError(
            f"a demo set needs 1 image or more and no negative number, "
            f"got {num_images} images, {num_heldout} held out, seed {seed}"
        )
    if min(min_size) < 64 or max_size[0] < min_size[0] or max_size[1] < min_size[1]:
        raise DataError(f"demo images need 64 <= min_size <= max_size, got {min_size} and {max_size}")
    try:
        for name in ("JPEGImages", "Annotations", "SegmentationClass", "SegmentationObject"):
            (root / name).mkdir(parents=True, exist_ok=True)
        (root / "ImageSets" / "Segmentation").mkdir(parents=True, exist_ok=True)
        _write_lines(root / "class_names.txt", DEMO_CLASSES)
        for split, (list_name, count) in enumerate((("train", num_images), ("val", num_heldout))):
            image_ids = [f"{list_name}_{index:04d}" for index in range(count)]
            for index, image_id in enumerate(image_ids):
                rng = np.random.default_rng([seed, split, index])
                size = (
                    int(rng.integers(min_size[0], max_size[0] + 1)),
                    int(rng.integers(min_size[1], max_size[1] + 1)),
                )
                _write_picture(root, image_id, make_picture(rng, size))
            _write_lines(root / "ImageSets" / "Segmentation" / f"{list_name}.txt", image_ids)
    except OSError as error:
        raise DataError(f"{root}: the demo set cannot be written ({error}); choose another folder") from None


def make_picture(rng: np.random.Generator, size: tuple[int, int]) -> DemoPicture:
    """Generate one picture with 1 to 4 objects of 1 or 2 classes.

    Args:
        rng: source of every choice.
        size: (H, W) in pixels.
    """
    scene = make_ground(rng, size)
    light = rng.uniform(0, 2 * np.pi)
    count = 1 + int(rng.choice(len(_COUNT_RATES), p=_COUNT_RATES))
    kinds = rng.permutation(len(DEMO_CLASSES))[: 2 if count > 1 and rng.random() < _TWO_CLASSES_RATE else 1]
    object_label = np.zeros(size, np.uint8)
    placed: list[_Placed] = []
    for class_id in map(int, [*kinds, *rng.choice(kinds, count - len(kinds))]):
        diameter = round(min(size) * rng.uniform(*_DIAMETERS[count - 1]))
        sprite = PAINTERS[DEMO_CLASSES[class_id]](rng, diameter, light)
        corner = _find_room(rng, object_label, sprite, class_id, placed)
        if corner is None:
            continue
        shift = [round(-0.05 * diameter * toward) for toward in (np.sin(light), np.cos(light))]
        fallen = (corner[0] + shift[0], corner[1] + shift[1])
        scene = cast_shadow(scene, _on_canvas(sprite.alpha, fallen, size), 0.55)
        scene = scene * (1 - _on_canvas(sprite.alpha, corner, size)[..., None]) + _on_canvas(
            sprite.colour, corner, size
        )
        placed.append(_Placed(class_id, corner, diameter, int(sprite.mask.sum())))
        object_label[_on_canvas(sprite.mask, corner, size)] = len(placed)
    class_ids = tuple(one.class_id for one in placed)
    return DemoPicture(photograph(rng, scene, light), object_label, class_ids)


@dataclass(frozen=True)
class _Placed:
    class_id: int
    corner: tuple[int, int]
    diameter: int
    area: int


def _find_room(
    rng: np.random.Generator, object_label: LabelArray, sprite: Sprite, class_id: int, placed: list[_Placed]
) -> tuple[int, int] | None:
    """Top and left of a place where the object and all earlier ones stay visible enough, or None."""
    size = (object_label.shape[0], object_label.shape[1])
    diameter = len(sprite.alpha)
    reach = round(0.1 * diameter)
    likes = [one for one in placed if one.class_id == class_id]
    touching = bool(likes) and rng.random() < _TOUCH_RATE
    near = np.asarray(cv2.dilate(object_label, np.ones((7, 7), np.uint8)), np.uint8)
    before = np.bincount(object_label.ravel(), minlength=len(placed) + 1)[1:]
    for _ in range(_MAX_TRIES):
        if touching:
            other = likes[int(rng.integers(len(likes)))]
            angle, distance = rng.uniform(0, 2 * np.pi), rng.uniform(0.36, 0.48) * (diameter + other.diameter)
            middle = (other.diameter - diameter) / 2
            top = other.corner[0] + round(middle + distance * np.sin(angle))
            left = other.corner[1] + round(middle + distance * np.cos(angle))
        else:
            top, left = (int(rng.integers(-reach, side - diameter + reach + 1)) for side in size)
        mask = _on_canvas(sprite.mask, (top, left), size)
        if mask.sum() < _MIN_INSIDE * sprite.mask.sum():
            continue
        if not touching and not near[mask].any():
            return top, left
        hidden = np.bincount(object_label[mask], minlength=len(placed) + 1)[1:]
        enough = all(
            left_over >= _MIN_VISIBLE * one.area
            for left_over, one in zip(before - hidden, placed, strict=True)
        )
        if touching and hidden.any() and enough:
            return top, left
    return None


def _on_canvas(pixels: Pixels, corner: tuple[int, int], size: tuple[int, int]) -> Pixels:
    """Lay (D, D, ...) pixels on an empty (H, W, ...) picture, cut off at its frame."""
    diameter = len(pixels)
    rows, columns = (
        slice(max(start, 0), max(min(start + diameter, side), 0))
        for start, side in zip(corner, size, strict=True)
    )
    canvas = np.zeros((*size, *pixels.shape[2:]), pixels.dtype)
    canvas[rows, columns] = pixels[
        rows.start - corner[0] : rows.stop - corner[0], columns.start - corner[1] : columns.stop - corner[1]
    ]
    return canvas


def _write_picture(root: Path, image_id: str, picture: DemoPicture) -> None:
    quality = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
    # imencode and not imwrite: only the first takes paths of any script on every system.
    _, encoded = cv2.imencode(".jpg", cv2.cvtColor(picture.image, cv2.COLOR_RGB2BGR), quality)
    (root / "JPEGImages" / f"{image_id}.jpg").write_bytes(encoded.tobytes())
    for folder, label in (("SegmentationClass", picture.label), ("SegmentationObject", picture.object_label)):
        stored = Image.fromarray(label).convert("P")
        stored.putpalette(voc_palette().tobytes())
        stored.save(root / folder / f"{image_id}.png")
    objects = [f"  <object><name>{DEMO_CLASSES[class_id]}</name></object>" for class_id in picture.class_ids]
    height, width = picture.object_label.shape
    lines = [
        "<annotation>",
        f"  <filename>{image_id}.jpg</filename>",
        f"  <size><width>{width}</width><height>{height}</height><depth>3</depth></size>",
        *objects,
        "</annotation>",
    ]
    _write_lines(root / "Annotations" / f"{image_id}.xml", lines)


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    path.write_bytes("".join(f"{line}\n" for line in lines).encode())
