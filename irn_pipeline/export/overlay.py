"""Masks drawn over the picture they belong to, for people to look at."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from irn_pipeline.errors import ShapeError
from irn_pipeline.ops.palette import voc_palette
from irn_pipeline.structures import BoolArray, Instances, LabelArray

_OUTLINE = 255
_CROSS = ndimage.generate_binary_structure(2, 1)


def overlay_instances(image: LabelArray, instances: Instances, *, opacity: float = 0.5) -> LabelArray:
    """Tint every instance with the colour of its class and draw a white line just inside its edge.

    Args:
        image: (H, W, 3) uint8 RGB, left as it is.
        instances: (R, H, W) masks; the best score is on top where they overlap.
        opacity: share of the tint in [0, 1].

    Returns:
        (H, W, 3) uint8 RGB. Pixels outside all masks are the picture's.

    Raises:
        ShapeError: the picture is not (H, W, 3) uint8, or the masks are not of its size.
    """
    _require_picture(image)
    if len(instances) and instances.size != image.shape[:2]:
        raise ShapeError(f"masks over a {image.shape[:2]} picture must have its size, got {instances.size}")
    drawn, palette = image.copy(), voc_palette()
    for position in np.argsort(instances.scores, kind="stable"):
        window = _bounding_box(instances.masks[position])
        if window is None:
            continue
        mask = instances.masks[position][window]
        colour = palette[(int(instances.class_ids[position]) + 1) % len(palette)]
        # From the picture, not from what is drawn already: tints of hidden instances must not shine through.
        drawn[window][mask] = _blend(image[window][mask], colour, opacity)
        drawn[window][mask & ~ndimage.binary_erosion(mask, _CROSS)] = _OUTLINE
    return drawn


def _bounding_box(mask: BoolArray) -> tuple[slice, slice] | None:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _blend(pixels: LabelArray, colour: LabelArray, opacity: float) -> LabelArray:
    mixed = (1 - opacity) * pixels.astype(np.float32) + opacity * colour.astype(np.float32)
    return np.rint(mixed).astype(np.uint8)


def _require_picture(image: LabelArray) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ShapeError(f"a picture must be (H, W, 3) uint8, got {image.shape} {image.dtype}")
