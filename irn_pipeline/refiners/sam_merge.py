"""SEPL: labels that follow the masks of a class-agnostic segmenter such as Segment Anything.

Chen et al., "Segment Anything Model (SAM) Enhanced Pseudo Labels for Weakly Supervised Semantic Segmentation", 2023;
repository cskyl/SAM_WSSS (merge/max_iou.py, max_iou_imp.py, max_iou_imp2.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np

from irn_pipeline.errors import ConfigError, ShapeError
from irn_pipeline.structures import BACKGROUND, IGNORE, BoolArray, LabelArray

MergeRule = Literal["max_iou", "max_iou_imp", "max_iou_imp2"]
"""Names of the original: only masks; and regions that no mask covers; and masks that hold a class (the default)."""


def merge_masks(
    label: LabelArray,
    masks: BoolArray | Iterable[BoolArray],
    *,
    rule: MergeRule = "max_iou_imp2",
    max_area: float = 1.0,
) -> LabelArray:
    """Give whole masks to the classes of a label; the order of the masks does not matter.

    Classes come in rising order. Class c with region A takes each mask m that is still free if |A & m| > |m| / 2 or
    |A & m| >= 0.85 |A|. Taken masks become c; so does the part of A that no mask free at its turn covers. A later
    class overwrites an earlier one. Where masks cover a region and none is taken, the class is lost.

    Args:
        label: (H, W) uint8: 0 background, class_id + 1, 255 unknown. Unknown pixels stay unknown unless a taken mask
            covers them (the original knows no 255).
        masks: (M, H, W) bool masks of the picture, or any iterable of (H, W) masks.
        rule: "max_iou" takes masks by the first condition only and drops the uncovered part of A; "max_iou_imp" adds
            that part; "max_iou_imp2" adds the second condition.
        max_area: share of the picture above which a mask is left out. A mask of the whole picture holds every class
            and takes all of it, so 0.5 is safer than the original's 1.

    Returns:
        (H, W) uint8 label.

    Raises:
        ShapeError: the label is not (H, W) uint8, or a mask has another size.
        ConfigError: the rule is unknown.
    """
    if rule not in ("max_iou", "max_iou_imp", "max_iou_imp2"):
        raise ConfigError(f"the rule must be max_iou, max_iou_imp or max_iou_imp2, got {rule!r}")
    stack = [np.asarray(mask, np.bool_) for mask in masks]
    if label.ndim != 2 or label.dtype != np.uint8:
        raise ShapeError(f"a label must be (H, W) uint8, got {label.shape} {label.dtype}")
    if any(mask.shape != label.shape for mask in stack):
        raise ShapeError(
            f"masks must have the label's size {label.shape}, got {sorted({mask.shape for mask in stack})}"
        )
    stack = [mask for mask in stack if mask.sum() <= max_area * mask.size]
    # overlaps[m, v]: pixels of value v under mask m; all counts in one pass over each mask.
    overlaps = np.array([np.bincount(label[mask], minlength=256) for mask in stack]).reshape(-1, 256)
    areas = overlaps.sum(1)
    free = areas > 0
    merged = np.where(label == IGNORE, label, np.uint8(BACKGROUND))
    for value in np.unique(label[(label != BACKGROUND) & (label != IGNORE)]):
        region = label == value
        inside = overlaps[:, value]
        take = free & (2 * inside > areas)
        if rule == "max_iou_imp2":
            take |= free & (100 * inside >= 85 * region.sum())
        if rule != "max_iou":
            merged[region & ~_union(stack, free, label.shape)] = value
        merged[_union(stack, take, label.shape)] = value
        free &= ~take
    return merged


def _union(masks: list[BoolArray], chosen: BoolArray, shape: tuple[int, ...]) -> BoolArray:
    union = np.zeros(shape, np.bool_)
    for number in np.flatnonzero(chosen):
        union |= masks[number]
    return union
