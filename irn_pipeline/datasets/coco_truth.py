"""True masks of a COCO file: polygons and run lengths become instances, a label and ignored pixels."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as rle

from irn_pipeline.datasets.coco_entries import whole_number
from irn_pipeline.datasets.images import read_image_size
from irn_pipeline.errors import DataError
from irn_pipeline.files.regular import open_regular, size_of
from irn_pipeline.structures import BACKGROUND, IGNORE, BoolArray, GroundTruth, Instances, LabelArray

_LONGEST_RUN = 2**32
_MOST_MASK_BYTES = 2**32
"""Of all masks of one picture, one byte a pixel and object."""
_LONGEST_OUTLINE = 2**22
"""Pixels along all polygons of an object: pycocotools reserves about 100 bytes for each."""


@dataclass(frozen=True, slots=True)
class TrueObject:
    """One annotation of a COCO file, its values unchecked.

    Attributes:
        name: "annotation" and its id, for messages.
        category: id of its category.
        crowd: stands for a group; its pixels are ignored.
        segmentation: (start, end) in bytes of polygons in the file, run lengths, or None.
        box: (x, y, width, height) in pixels, or None.
    """

    name: str
    category: int
    crowd: bool
    segmentation: Any
    box: Any


@dataclass(frozen=True, slots=True)
class TruePicture:
    """A picture, its annotations and its EXIF orientation; its size is what `picture_size` found."""

    path: Path
    size: tuple[int, int] | str | None
    objects: tuple[TrueObject, ...]
    orientation: int | None = None


@dataclass(frozen=True)
class CocoTruths:
    """Reads true masks from a COCO file, picture by picture.

    Attributes:
        coco_json: the file.
        class_of: category id -> class id, for the classes that are used.
        pictures: image id -> its annotations.
        has_masks: whether there are any: a picture without annotations is then known to be background.
    """

    coco_json: Path
    class_of: dict[int, int]
    pictures: dict[str, TruePicture]
    has_masks: bool = True

    def ground_truth(self, image_id: str) -> GroundTruth | None:
        """True masks of one picture.

        Classes that are not used are background. Where objects overlap, the label is that of the smallest, since
        it lies in front as a rule. Crowds, and the boxes of objects without a mask, are ignored where no other
        object is.

        Returns:
            Label, instances (R objects in the order of the file) and crowds; None for an unknown picture and for
            one without any mask.

        Raises:
            DataError: the picture cannot be read or has another size, or a mask is damaged.
        """
        picture = self.pictures.get(image_id)
        if picture is None:
            return None
        objects = [entry for entry in picture.objects if entry.category in self.class_of]
        if all(entry.segmentation is None for entry in objects) and (objects or not self.has_masks):
            return None
        if isinstance(picture.size, str):
            raise DataError(picture.size)
        size = read_image_size(picture.path, picture.orientation)
        if picture.size not in (None, size):
            raise DataError(
                f"{picture.path}: {size[0]}x{size[1]} pixels (height x width), but {self.coco_json} says "
                f"{picture.size}; the masks must belong to the image as it is stored, or as it is shown"
            )
        if len(objects) * size[0] * size[1] > _MOST_MASK_BYTES:
            raise DataError(
                f"{self.coco_json}: {len(objects)} objects in {picture.path}, {size[0]}x{size[1]} pixels, whose masks "
                f"would take more than {_MOST_MASK_BYTES >> 30} GiB; cut the image, or remove annotations"
            )
        sure: list[tuple[BoolArray, int]] = []
        unsure: list[tuple[BoolArray, int]] = []
        for entry in objects:
            mask, class_id = self._mask(entry, size), self.class_of[entry.category]
            if mask is None:
                unsure.append((_box(entry.box, size), class_id))
            else:
                (unsure if entry.crowd else sure).append((mask, class_id))
        instances, crowds = _instances(sure, size), _instances(unsure, size)
        ignore = np.any(crowds.masks, axis=0) & ~np.any(instances.masks, axis=0)
        label = _paint(instances)
        label[ignore] = IGNORE
        return GroundTruth(label, instances, ignore, crowds)

    def _mask(self, entry: TrueObject, size: tuple[int, int]) -> BoolArray | None:
        """(H, W) bool; None where there is no mask."""
        if entry.segmentation is None:
            return None
        where = f"{self.coco_json}: {entry.name}"
        if isinstance(entry.segmentation, dict):
            runs = _run_lengths(entry.segmentation, size, where)
        else:
            runs = rle.merge(rle.frPyObjects(self._polygons(entry.segmentation, size, where), *size))
        return np.asarray(rle.decode(runs), np.bool_)

    def _polygons(self, segmentation: Any, size: tuple[int, int], where: str) -> list[list[float]]:
        if isinstance(segmentation, tuple):
            start, end = segmentation
            try:
                with open_regular(self.coco_json) as file:
                    if not 0 <= start < end <= size_of(file):
                        raise ValueError("its place is not in the file")
                    file.seek(start)
                    segmentation = json.loads(file.read(end - start))
            except (OSError, ValueError, RecursionError):
                raise DataError(
                    f"{where}: its polygons are damaged, or the file has changed; write it again"
                ) from None
        polygons = _as_polygons(segmentation)
        problem = ""
        if polygons is None or not all(_is_polygon(points, size) for points in polygons):
            problem = f"no polygons of a {size[0]}x{size[1]} image"
        elif not any(len(points) >= 6 for points in polygons):
            problem = "its polygons have fewer than three points"
        elif size != (1, 1) and _are_fractions(polygons):
            problem = "its polygons lie within one pixel: coordinates from 0 to 1 are fractions of the image"
        if problem or polygons is None:
            raise DataError(
                f"{where}: {problem}; expected [[x, y, x, y, x, y, ...], ...] in pixels, or run lengths"
            )
        if sum(map(_outline, polygons)) > _LONGEST_OUTLINE:
            raise DataError(
                f"{where}: its polygons have an outline of more than {_LONGEST_OUTLINE} pixels; expected the outline "
                "of an object, or run lengths"
            )
        # A point or a line beside a polygon covers no pixel; of four numbers, pycocotools would make a box.
        return [points for points in polygons if len(points) >= 6]


def _as_polygons(segmentation: Any) -> list[list[float]] | None:
    """Lists x, y, x, y ...; also from [[x, y], [x, y], ...], which is one polygon or is in the place of one.

    Numbers may be texts. None where a value is no number.
    """
    if not isinstance(segmentation, list):
        return None
    if len(segmentation) >= 3 and all(_is_pair(point) for point in segmentation):
        segmentation = [segmentation]
    polygons: list[list[float]] = []
    for points in segmentation:
        if not isinstance(points, list):
            return None
        numbers = [*itertools.chain(*points)] if points and all(map(_is_pair, points)) else points
        try:
            polygons.append([float(value) if isinstance(value, str) else value for value in numbers])
        except ValueError:
            return None
    return polygons


def _is_pair(point: Any) -> bool:
    return (
        isinstance(point, list) and len(point) == 2 and all(isinstance(v, int | float | str) for v in point)
    )


def _is_polygon(points: list[Any], size: tuple[int, int]) -> bool:
    """Whether these are x, y pairs at most one picture's length outside; tools round, but do not go further."""
    if len(points) % 2 or not all(type(value) in (int, float) for value in points):
        return False
    limits = size[1], size[0]
    # NaN fails every comparison.
    return all(-limits[place % 2] <= value <= 2 * limits[place % 2] for place, value in enumerate(points))


def _are_fractions(polygons: list[list[float]]) -> bool:
    """Whether all values are about 0 to 1 and not whole, for whole ones may outline the picture's first pixel."""
    values = [value for points in polygons for value in points]
    return all(-0.1 < value < 1.1 for value in values) and any(value % 1 for value in values)


def _outline(points: list[float]) -> float:
    """Pixels along a closed polygon, in whichever direction is longer, and one for each corner."""
    xs, ys = points[::2], points[1::2]
    steps = zip(xs, ys, [*xs[1:], *xs[:1]], [*ys[1:], *ys[:1]], strict=True)
    return sum(max(abs(x - u), abs(y - v)) + 1 for x, y, u, v in steps)


def _run_lengths(segmentation: dict[str, Any], size: tuple[int, int], where: str) -> dict[str, Any]:
    """A run-length code that is safe to decode: pycocotools returns unset memory where the runs are too short."""
    counts, given = segmentation.get("counts"), segmentation.get("size")
    runs = _unpacked(counts) if isinstance(counts, str) else _whole_numbers(counts)
    if not runs or _whole_numbers(given) != list(size) or sum(runs) != size[0] * size[1]:
        raise DataError(
            f"{where}: no run lengths of a {size[0]}x{size[1]} image; expected that size (height, width), and "
            f"counts whose sum is {size[0] * size[1]}"
        )
    return dict(rle.frPyObjects({"counts": runs, "size": list(size)}, *size))


def _whole_numbers(values: Any) -> list[int]:
    """The numbers of a list; none where one is impossible as a run or a side."""
    numbers = [whole_number(value) for value in values] if isinstance(values, list) else []
    possible = [number for number in numbers if number is not None and 0 <= number < _LONGEST_RUN]
    return possible if len(possible) == len(numbers) else []


def _unpacked(text: str) -> list[int]:
    """Run lengths of COCO's compressed text; none where it is damaged. pycocotools reads damaged text beyond its end.

    A character from "0" on carries 5 bits and, by 32, whether more follow; from the fourth run on a value is the
    difference to the run before the last (`rleFrString` of the COCO API).
    """
    runs: list[int] = []
    value = shift = 0
    for mark in text:
        bits = ord(mark) - 48
        if not 0 <= bits < 64 or shift > 35:
            return []
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    return runs if not shift and all(0 <= run < _LONGEST_RUN for run in runs) else []


def _box(box: Any, size: tuple[int, int]) -> BoolArray:
    """(H, W) bool pixels that a box touches; none where there is no usable box."""
    covered = np.zeros(size, np.bool_)
    if isinstance(box, list) and len(box) == 4 and all(isinstance(v, int | float) for v in box):
        # Compared before it becomes a float, which a whole number of 400 digits cannot.
        x, y, width, height = (float(min(max(value, 0), 10**9)) for value in box)
        if math.isfinite(x + y + width + height):
            covered[int(y) : math.ceil(y + height), int(x) : math.ceil(x + width)] = True
    return covered


def _instances(found: list[tuple[BoolArray, int]], size: tuple[int, int]) -> Instances:
    stack = np.array([mask for mask, _ in found], np.bool_).reshape(len(found), *size)
    class_ids = np.array([class_id for _, class_id in found], np.int64)
    return Instances(np.ones(len(found), np.float32), stack, class_ids)


def _paint(instances: Instances) -> LabelArray:
    """(H, W) uint8 label; small objects are painted over large ones."""
    label = np.full(instances.size, BACKGROUND, np.uint8)
    for place in np.argsort(-instances.masks.sum((1, 2)), kind="stable"):
        label[instances.masks[place]] = instances.class_ids[place] + 1
    return label
