"""Which instances of a picture an evaluation compares."""

from __future__ import annotations

import numpy as np

from irn_pipeline.errors import DataError, ShapeError
from irn_pipeline.ops.masks import mask_boxes
from irn_pipeline.structures import BoolArray, GroundTruth, Instances


def counted_instances(
    predictions: Instances,
    truth: GroundTruth,
    num_classes: int,
    *,
    ignore_void: bool,
    keep_fragments: bool = False,
) -> tuple[Instances, Instances]:
    """The predictions and truths of one picture that take part in an evaluation, in their order.

    Fragments, of score < 1e-5 (see the synthesis of labels), are no predictions unless they are kept. With
    `ignore_void` the pixels of `truth.ignore` are taken out of all masks, else they are background. A prediction that
    lies wholly on them is dropped, as nothing is known there (VOC paints difficult objects as void); so is a true mask
    without pixels. A prediction that was empty from the start stays and is a false positive.

    Raises:
        ShapeError: prediction, truth and void map differ in picture size.
        DataError: a class id is outside 0..C-1, or a score is not a number.
    """
    sizes = (predictions.size, truth.instances.size, truth.ignore.shape)
    if len(set(sizes)) > 1:
        raise ShapeError(f"predicted masks, ground-truth masks and void map must be of one size, got {sizes}")
    for name, class_ids in (("predicted", predictions.class_ids), ("true", truth.instances.class_ids)):
        if class_ids.size and not 0 <= class_ids.min() <= class_ids.max() < num_classes:
            raise DataError(f"a {name} class id is outside 0..{num_classes - 1}: {class_ids.tolist()}")
    if np.isnan(predictions.scores).any():
        raise DataError("a predicted score is not a number")
    if not keep_fragments:
        predictions = predictions.without_fragments()
    if not (ignore_void and truth.ignore.any()):
        return predictions, _without_empty(truth.instances)
    trimmed, known = (_cleared(each, truth.ignore) for each in (predictions, truth.instances))
    return trimmed.select(~_has_pixels(predictions) | _has_pixels(trimmed)), _without_empty(known)


def _cleared(instances: Instances, void: BoolArray) -> Instances:
    """The instances without void pixels; only what meets them is looked at, and copied."""
    top, left, bottom, right = mask_boxes(void[None])[0].tolist()
    window = np.s_[:, top:bottom, left:right]
    if not (instances.masks[window] & void[window[1:]]).any():
        return instances
    masks = instances.masks.copy()
    masks[window] &= ~void[window[1:]]
    return Instances(instances.scores, masks, instances.class_ids)


def _without_empty(instances: Instances) -> Instances:
    return instances.select(_has_pixels(instances))


def _has_pixels(instances: Instances) -> BoolArray:
    return np.asarray(instances.masks.any(axis=(1, 2)), np.bool_)
