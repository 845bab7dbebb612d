"""Arrays -> colours: the one painter of masks, and the colour scales of maps; for people to look at."""

from __future__ import annotations

import cv2
import numpy as np
from scipy import ndimage

from irn_pipeline.errors import ShapeError
from irn_pipeline.ops.palette import voc_palette
from irn_pipeline.structures import IGNORE, BoolArray, FloatArray, Instances, IntArray, LabelArray

UNSURE = (128, 128, 128)
"""Colour of pixels whose class is unknown or not counted."""
_GOLDEN_ANGLE = 137.5
"""Degrees; multiples of it are far apart on the colour wheel, however many there are."""
_CROSS = ndimage.generate_binary_structure(2, 1)


def overlay_instances(image: LabelArray, instances: Instances, *, opacity: float = 0.5) -> LabelArray:
    """Tint every instance with the VOC colour of its class and draw a white line just inside its edge.

    Args:
        image: (H, W, 3) uint8 RGB, left as it is.
        instances: (R, H, W) masks; the best score is on top where they overlap.
        opacity: share of the tint in [0, 1].

    Returns:
        (H, W, 3) uint8 RGB. Pixels outside all masks are the picture's.

    Raises:
        ShapeError: the picture is not (H, W, 3) uint8, or the masks are not of its size.
    """
    require_picture(image)
    if not len(instances):
        return image.copy()
    palette = voc_palette()
    return over(image, instance_layer(instances, palette[(instances.class_ids + 1) % len(palette)], opacity))


def instance_layer(
    instances: Instances,
    colours: LabelArray | None = None,
    opacity: float = 1.0,
    ignore: BoolArray | None = None,
) -> LabelArray:
    """Masks with a white line just inside their edges, to be laid over a picture.

    Args:
        instances: (R, H, W) masks; the best score is on top where they overlap.
        colours: (R, 3) uint8 RGB; by default those of `hues` in order.
        opacity: of the masks, in [0, 1]; their edges are opaque.
        ignore: (H, W) pixels to be drawn grey under the masks.

    Returns:
        (H, W, 4) uint8 RGBA; the rest is transparent.
    """
    colours = hues(np.arange(len(instances))) if colours is None else colours
    alpha = round(255 * opacity)
    layer = np.zeros((*instances.size, 4), np.uint8)
    if ignore is not None:
        layer[ignore] = (*UNSURE, alpha)
    for position in np.argsort(instances.scores, kind="stable"):
        whole = instances.masks[position]
        for window in ndimage.find_objects(
            whole.astype(np.uint8)
        ):  # its bounding box; none for an empty mask
            mask, drawn = whole[window], layer[window]
            drawn[mask] = (*colours[position], alpha)
            drawn[mask & ~ndimage.binary_erosion(mask, _CROSS)] = 255
    return layer


def over(image: LabelArray, layer: LabelArray) -> LabelArray:
    """An (H, W, 4) uint8 RGBA layer over an (H, W, 3) RGB picture of its size: (H, W, 3) uint8.

    Raises:
        ShapeError: the sizes differ.
    """
    if layer.shape[:2] != image.shape[:2]:
        raise ShapeError(f"masks over a {image.shape[:2]} image must have its size, got {layer.shape[:2]}")
    drawn, shown = image.copy(), layer[..., 3] > 0
    alpha = layer[shown][:, 3:].astype(np.float32) / 255
    drawn[shown] = np.rint((1 - alpha) * image[shown] + alpha * layer[shown][:, :3]).astype(np.uint8)
    return drawn


def require_picture(image: LabelArray) -> None:
    """Refuse with a `ShapeError` what is not an (H, W, 3) uint8 picture."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ShapeError(f"an image must be (H, W, 3) uint8, got {image.shape} {image.dtype}")


def heat(values: FloatArray | LabelArray) -> LabelArray:
    """(H, W) in [0, 1] -> (H, W, 3) RGB from blue over green to red."""
    levels = (255 * values.clip(0, 1)).astype(np.uint8)
    return np.asarray(cv2.applyColorMap(levels, cv2.COLORMAP_JET)[..., ::-1], np.uint8)


def hues(numbers: IntArray | LabelArray) -> LabelArray:
    """Any array of whole numbers >= 0 -> one RGB colour each, uint8 in a new last axis."""
    flat = numbers.astype(np.int64).reshape(-1)
    if not flat.size:
        return np.zeros((*numbers.shape, 3), np.uint8)
    hue = (_GOLDEN_ANGLE * flat % 360 / 2).astype(np.uint8) % 180
    saturation = np.array([200, 130, 255], np.uint8)[flat % 3]
    brightness = np.array([255, 210, 170], np.uint8)[flat // 3 % 3]
    return _rgb(hue, saturation, brightness).reshape(*numbers.shape, 3)


def label_colours(label: LabelArray) -> LabelArray:
    """(H, W) uint8 label -> (H, W, 3) RGB: background black, unsure grey, `hues` of the class id else."""
    table = np.zeros((256, 3), np.uint8)
    table[1:IGNORE] = hues(np.arange(IGNORE - 1))
    table[IGNORE] = UNSURE
    return table[label]


def wheel(displacement: FloatArray) -> LabelArray:
    """(2, h, w) field, dy then dx -> (h, w, 3) RGB: the hue is the direction, the brightness the length.

    Raises:
        ShapeError: the field is not (2, h, w).
    """
    if displacement.ndim != 3 or displacement.shape[0] != 2:
        raise ShapeError(f"a displacement must be (2, h, w), got {displacement.shape}")
    dy, dx = displacement
    length = np.hypot(dy, dx)
    hue = (np.degrees(np.arctan2(dy, dx)) % 360 / 2).astype(np.uint8) % 180
    # A few very long arrows must not leave all others black.
    longest = max(float(np.quantile(length, 0.95)), 1e-6)
    brightness = (255 * (length / longest).clip(0, 1)).astype(np.uint8)
    return _rgb(hue, np.full_like(hue, 255), brightness)


def wheel_key(radius: int = 24) -> LabelArray:
    """The key to `wheel`, square RGBA: seen from the middle, the colour of the arrow that points there."""
    arrows = np.mgrid[-radius : radius + 1, -radius : radius + 1].astype(np.float32)
    return np.dstack([wheel(arrows), np.where(np.hypot(*arrows) <= radius, 255, 0).astype(np.uint8)])


def _rgb(hue: LabelArray, saturation: LabelArray, brightness: LabelArray) -> LabelArray:
    hsv = np.stack([hue, saturation, brightness], -1).reshape(1, -1, 3)
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), np.uint8).reshape(*hue.shape, 3)
