"""Sets of binary masks, label images and the connected components between the two."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as rle
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
    boxes_a, boxes_b = mask_boxes(masks_a), mask_boxes(masks_b)
    areas_b = np.array(
        [np.count_nonzero(mask[_inside(box)]) for mask, box in zip(masks_b, boxes_b, strict=True)]
    )
    iou = np.zeros((len(masks_a), len(masks_b)), np.float32)
    for row, mask, box in zip(iou, masks_a, boxes_a, strict=True):
        own = mask[_inside(box)]
        area = np.count_nonzero(own)
        met = (boxes_b[:, :2] < box[2:]) & (box[:2] < boxes_b[:, 2:])
        for index in np.flatnonzero(met.all(1)):
            common = np.count_nonzero(own & masks_b[index][_inside(box)])
            row[index] = common / (area + areas_b[index] - common)
    return iou


def mask_boxes(masks: BoolArray) -> IntArray:
    """The smallest box around each mask.

    Args:
        masks: (R, H, W).

    Returns:
        (R, 4) first row and column, end of rows and columns, in pixels; zeros for an empty mask.

    Example:
        >>> mask_boxes(np.array([[[False, True, True], [False, False, False]]])).tolist()
        [[0, 1, 1, 3]]
    """
    boxes = np.zeros((len(masks), 4), np.int64)
    for box, mask in zip(boxes, masks, strict=True):
        rows = np.flatnonzero(mask.any(axis=1))
        if len(rows):
            columns = np.flatnonzero(mask[rows[0] : rows[-1] + 1].any(axis=0))
            box[:] = rows[0], columns[0], rows[-1] + 1, columns[-1] + 1
    return boxes


def encode_mask(mask: BoolArray) -> dict[str, Any]:
    """COCO's compressed run lengths of a (H, W) mask, as `pycocotools.mask.encode` writes them.

    Only the columns that the mask covers are brought into COCO's order, which takes longest on large pictures.
    """
    height, width = mask.shape
    columns = np.flatnonzero(mask.any(axis=0))
    first, end = (int(columns[0]), int(columns[-1]) + 1) if len(columns) else (0, 0)
    pixels = np.concatenate([[False], mask[:, first:end].T.ravel(), [False]])
    changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + first * height
    runs = np.diff(changes, prepend=0, append=height * width)
    # Pixels that end with the picture leave no empty run behind them.
    counts = runs[:-1] if len(runs) > 1 and runs[-1] == 0 else runs
    return dict(rle.frPyObjects({"counts": counts.tolist(), "size": [height, width]}, height, width))


def _inside(box: IntArray) -> tuple[slice, slice]:
    top, left, bottom, right = box.tolist()
    return slice(top, bottom), slice(left, right)


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
