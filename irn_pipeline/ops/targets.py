"""From labels that may be wrong to what a segmentation model is trained on."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from irn_pipeline.errors import ShapeError
from irn_pipeline.structures import FRAGMENT_SCORE, IGNORE, BoolArray, GroundTruth, Instances, LabelArray


def training_target(instances: Instances, label: LabelArray, *, band: int = 3) -> GroundTruth:
    """Disjoint instances, and the pixels that are too uncertain to teach anything.

    Instances of score < 1e-5 are fragments (see `ops.labels`): no examples, but no background either, so their
    pixels are ignored, as is a band along every edge between instances and background.

    Args:
        instances: (R, H, W) masks, which may overlap: the better score wins.
        label: (H, W) semantic label of the same picture.
        band: width in pixels of the ignored band; 0 or 1 for none.

    Returns:
        Instances with their scores, the label, and (H, W) ignored pixels (255 in the label as well).

    Raises:
        ShapeError: the label is of another size.
    """
    if instances.size != label.shape:
        raise ShapeError(f"instances of size {instances.size} and a label of size {label.shape}")
    ids = instance_ids(instances)
    kept = [i for i in range(len(instances)) if instances.scores[i] >= FRAGMENT_SCORE]
    masks = np.stack([ids == i + 1 for i in kept]) if kept else np.zeros((0, *label.shape), np.bool_)
    fragments = np.setdiff1d(np.arange(len(instances)), kept)
    ignore = np.isin(ids, fragments + 1) | (label == IGNORE) | edge_band(ids, band)
    disjoint = Instances(instances.scores[kept], masks, instances.class_ids[kept])
    return GroundTruth(np.where(ignore, IGNORE, label).astype(np.uint8), disjoint, ignore)


def instance_ids(instances: Instances) -> npt.NDArray[np.int32]:
    """Which instance owns each pixel, the better score winning where masks overlap.

    Args:
        instances: (R, H, W) masks with scores.

    Returns:
        (H, W) int32: 0 for none, else index + 1.
    """
    ids = np.zeros(instances.size, np.int32)
    for index in np.argsort(instances.scores, kind="stable"):
        ids[instances.masks[index]] = index + 1
    return ids


def edge_band(ids: npt.NDArray[np.int32], width: int) -> BoolArray:
    """Pixels whose neighbourhood of `width` x `width` holds more than one id.

    Args:
        ids: (H, W) integers below 2**24.
        width: pixels; 0 or 1 for no band.

    Returns:
        (H, W) bool.
    """
    if width < 2 or ids.size == 0:
        return np.zeros(ids.shape, np.bool_)
    kernel = np.ones((width, width), np.uint8)
    values = ids.astype(np.float32)
    return np.asarray(cv2.dilate(values, kernel) != cv2.erode(values, kernel), np.bool_)
