"""Labels and instances as indexed PNGs, as in Pascal VOC's SegmentationClass and SegmentationObject."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from irn_pipeline.errors import DataError, ShapeError
from irn_pipeline.ops.palette import voc_palette
from irn_pipeline.structures import IGNORE, Instances, IntArray, LabelArray, background_name

MAX_OBJECTS = IGNORE - 1
"""Objects that fit into an 8-bit map: 0 is background, and 255 stands for "unknown" in VOC's readers."""


@dataclass(frozen=True)
class ObjectMap:
    """Instances as one map of object ids.

    Attributes:
        ids: (H, W) uint8, 0 background, 1..N the objects.
        positions: (N,) of object 1..N among the instances.
        left_out: instances for which there was no id left.
    """

    ids: LabelArray
    positions: IntArray
    left_out: int


def object_map(instances: Instances, size: tuple[int, int]) -> ObjectMap:
    """Paint instances in ascending order of score, so that the best is on top where they overlap.

    Ids follow the order of the instances. Beyond 254 instances the ones of lowest score are left out.

    Raises:
        ShapeError: the masks are not of the picture's size.
    """
    if len(instances) and instances.size != size:
        raise ShapeError(f"masks of a {size[0]}x{size[1]} image must have its size, got {instances.size}")
    ascending = np.argsort(instances.scores, kind="stable")[-MAX_OBJECTS:]
    positions = np.sort(ascending).astype(np.int64)
    ids = np.zeros(size, np.uint8)
    for position in ascending:
        ids[instances.masks[position]] = np.searchsorted(positions, position) + 1
    return ObjectMap(ids, positions, len(instances) - len(positions))


def labelmap(class_names: Sequence[str]) -> list[str]:
    """Lines of CVAT's and Datumaro's labelmap.txt: the classes and their colours in the PNGs.

    Raises:
        DataError: a name cannot be written in this format, which has no marks of quotation.

    Example:
        >>> labelmap(["cat"])
        ['# label:color_rgb:parts:actions', 'background:0,0,0::', 'cat:128,0,0::']
    """
    for name in class_names:
        if ":" in name or name.startswith("#"):
            raise DataError(f"its format has no place for the class name {name!r}")
    names = (background_name(class_names), *class_names)
    colours = voc_palette().tolist()
    lines = [f"{name}:{r},{g},{b}::" for name, (r, g, b) in zip(names, colours, strict=False)]
    return ["# label:color_rgb:parts:actions", *lines]


def save_palette_png(path: Path, index: LabelArray) -> None:
    """Write (H, W) uint8 labels or object ids as an 8-bit indexed PNG with the VOC palette.

    Raises:
        ShapeError: `index` is not (H, W) uint8, or has no pixel.
    """
    if index.ndim != 2 or index.dtype != np.uint8 or index.size == 0:
        raise ShapeError(f"{path}: an indexed PNG needs (H, W) uint8, got {index.shape} {index.dtype}")
    picture = Image.fromarray(np.ascontiguousarray(index))
    # On a grey picture this only changes how its values are read: they become indices.
    picture.putpalette(voc_palette().tobytes())
    picture.save(path, format="PNG")
