"""Sets of binary masks, label images and the connected components between the two."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from irn_pipeline.errors import ShapeError
from irn_pipeline.ops.label_params import InstanceScore
from irn_pipeline.structures import IGNORE, BoolArray, FloatArray, Instances, IntArray, LabelArray


def mask_iou(masks_a: BoolArray, masks_b: BoolArray) -> FloatArray:
    """Intersection over union of every pair of masks.

    Args:
        masks_a: (A, H, W) masks.
        masks_b: (B, H, W) masks of the same picture.

    Returns:
        (A, B) float32 ratios in [0, 1]; 0 where both masks are empty.

    Raises:
        ShapeError: a stack is not three-dimensional, or the two have different picture sizes.

    Example:
        >>> two_of_four, all_four = np.eye(2, dtype=bool), np.ones((2, 2), bool)
        >>> mask_iou(two_of_four[None], np.stack([two_of_four, all_four])).tolist()
        [[1.0, 0.5]]
    """
    if masks_a.ndim != 3 or masks_b.ndim != 3 or masks_a.shape[1:] != masks_b.shape[1:]:
        raise ShapeError(
            f"masks to compare must be (A, H, W) and (B, H, W) of one image, "
            f"got {masks_a.shape} and {masks_b.shape}"
        )
    pixels = masks_a.shape[1] * masks_a.shape[2]
    # A sum of ones in float32 is exact up to 2**24 pixels, and float matrices are multiplied by BLAS.
    flat_a = masks_a.reshape(len(masks_a), pixels).astype(np.float32)
    flat_b = masks_b.reshape(len(masks_b), pixels).astype(np.float32)
    intersection = flat_a @ flat_b.T
    union = flat_a.sum(1)[:, None] + flat_b.sum(1)[None] - intersection
    return np.divide(intersection, union, where=union > 0, out=np.zeros_like(union))


def label_from_index(index: npt.NDArray[np.integer], class_ids: IntArray) -> LabelArray:
    """Label image from each pixel's position in the list [background, *class_ids].

    Args:
        index: (H, W) integers 0..K, 0 for background.
        class_ids: (K,) foreground class ids.

    Returns:
        (H, W) uint8 label, 0 for background, else class_id + 1.

    Raises:
        ShapeError: a class id does not fit into a label image.
    """
    if len(class_ids) and not 0 <= min(class_ids) <= max(class_ids) < IGNORE - 1:
        raise ShapeError(f"class ids of a label image must be 0..{IGNORE - 2}, got {list(class_ids)}")
    values = np.zeros(len(class_ids) + 1, np.uint8)
    values[1:] = np.asarray(class_ids) + 1
    return values[index]


def instances_from_index(
    index: npt.NDArray[np.integer],
    score: FloatArray,
    class_ids: IntArray,
    *,
    min_area: float = 0.01,
    keep_small: bool = True,
    instance_score: InstanceScore = "max",
) -> Instances:
    """Instances that are the 4-connected components of every region of one index.

    Args:
        index: (H, W) integers 0..M; 0 is background, m + 1 the region of map m.
        score: (H, W) value of the pixel's own map.
        class_ids: (M,) class of each map.
        min_area: share of the picture below which a component is a fragment.
        keep_small: keep fragments, with the score 0; False leaves them out.
        instance_score: largest or mean value of `score` inside an instance.

    Returns:
        Instances in the order of their maps.

    Raises:
        ShapeError: index and score differ in shape, or index names a map that does not exist.
    """
    if index.ndim != 2 or index.shape != score.shape:
        raise ShapeError(f"index and score must be (H, W) of one image, got {index.shape} and {score.shape}")
    regions = ndimage.find_objects(index)
    if len(regions) > len(class_ids):
        raise ShapeError(f"index names map {len(regions)}, but there are only {len(class_ids)} classes given")
    found: list[tuple[tuple[slice, ...], BoolArray, float, int]] = []
    # Only bounding boxes are labelled and kept: on large pictures most regions cover a small part.
    for position, region in enumerate(regions):
        if region is None:
            continue
        components, _ = ndimage.label(index[region] == position + 1)
        for number, box in enumerate(ndimage.find_objects(components), start=1):
            inside = components[box] == number
            small = int(inside.sum()) < min_area * index.size
            if small and not keep_small:
                continue
            window = tuple(
                slice(outer.start + inner.start, outer.start + inner.stop)
                for outer, inner in zip(region, box, strict=True)
            )
            values = score[window][inside]
            value = 0.0 if small else float(values.max() if instance_score == "max" else values.mean())
            found.append((window, inside, value, int(class_ids[position])))
    masks = np.zeros((len(found), *index.shape), np.bool_)
    for mask, (window, inside, _, _) in zip(masks, found, strict=True):
        mask[window] = inside
    scores = np.array([value for _, _, value, _ in found], np.float32)
    return Instances(scores, masks, np.array([class_id for *_, class_id in found], np.int64))
