"""Instance metric: VOC average precision on mask IoU, the area under the monotone precision envelope."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from irn_pipeline.errors import ConfigError, DataError, ShapeError
from irn_pipeline.ops.masks import mask_iou
from irn_pipeline.structures import BoolArray, FloatArray, GroundTruth, Instances

_AGNOSTIC_THRESHOLD = 0.5


@dataclass(frozen=True)
class InstanceScores:
    """Quality of instance masks over a set of pictures.

    Attributes:
        iou_thresholds: T mask IoUs from which a prediction counts as found.
        mean_ap: T means of `ap` over the classes that have a true instance; NaN where no class has one.
        ap: T tuples of one average precision in [0, 1] per class; NaN for a class without true instance,
            whatever was predicted of it.
        class_agnostic_ap50: average precision at IoU 0.5 when all classes are one; NaN without truths.
        truth_counts: true instances per class.
    """

    iou_thresholds: tuple[float, ...]
    mean_ap: tuple[float, ...]
    ap: tuple[tuple[float, ...], ...]
    class_agnostic_ap50: float
    truth_counts: tuple[int, ...]


@dataclass
class _Tally:
    """What is kept of the pictures seen so far for one curve."""

    num_truths: int = 0
    scores: list[FloatArray] = field(default_factory=list)
    hits: list[BoolArray] = field(default_factory=list)

    def add(self, scores: FloatArray, iou: FloatArray, threshold: float) -> None:
        self.num_truths += iou.shape[1]
        self.scores.append(scores)
        self.hits.append(match(iou, threshold))

    def average_precision(self) -> float:
        scores = np.concatenate([np.zeros(0, np.float32), *self.scores])
        return average_precision(scores, np.concatenate([np.zeros(0, np.bool_), *self.hits]), self.num_truths)


def match(iou: FloatArray, threshold: float) -> BoolArray:
    """Decide which predictions of one picture are true positives.

    Every prediction asks for the truth it overlaps most (the first of several equal ones); it is refused
    when the overlap is below the threshold or a better-scored prediction has asked for that truth before.
    It does not turn to the second-best truth (PASCAL VOC; the COCO rule differs here).

    Args:
        iou: (R, G) mask IoU of predictions, by descending score, and truths.
        threshold: least IoU of a true positive.

    Returns:
        (R,) bool, true for a true positive.

    Example:
        >>> match(np.array([[0.8, 0.0], [0.7, 0.6], [0.0, 0.4]]), threshold=0.5).tolist()
        [True, False, False]
    """
    hits = np.zeros(len(iou), np.bool_)
    if iou.size == 0:
        return hits
    wanted = iou.argmax(axis=1)
    candidates = np.flatnonzero(iou.max(axis=1) >= threshold)
    _, first = np.unique(wanted[candidates], return_index=True)
    hits[candidates[first]] = True
    return hits


def average_precision(scores: FloatArray, hits: BoolArray, num_truths: int) -> float:
    """Area under the monotone precision envelope over recall, all points (PASCAL VOC 2010 and later).

    Predictions of equal score enter the curve together, so the result does not depend on their order.
    This matters: synthesized labels are divided by each picture's maximum, so many scores are exactly 1.

    Args:
        scores: (R,) of all predictions of the set.
        hits: (R,) bool, true for a true positive.
        num_truths: number of true instances of the set.

    Returns:
        The area in [0, 1]; 0 without predictions, NaN without truths.

    Raises:
        ShapeError: the two arrays are not (R,) alike.

    Example:
        >>> average_precision(np.array([0.9, 0.8, 0.7]), np.array([True, False, True]), num_truths=2)
        0.8333333333333333
    """
    if scores.ndim != 1 or scores.shape != hits.shape:
        raise ShapeError(f"scores and hits must be (R,) alike, got {scores.shape} and {hits.shape}")
    if num_truths == 0:
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    descending = scores[order]
    ends_tie = np.ones(len(scores), np.bool_)
    ends_tie[:-1] = descending[:-1] != descending[1:]
    ends = np.flatnonzero(ends_tie)
    true_positives = np.cumsum(hits[order], dtype=np.int64)[ends]
    precision = true_positives / (ends + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.diff(true_positives, prepend=0) @ envelope / num_truths)


def counted_instances(
    predictions: Instances, truth: GroundTruth, num_classes: int, ignore_void: bool
) -> tuple[Instances, Instances]:
    """The predictions and truths of one picture that take part in an evaluation.

    With `ignore_void` the pixels of `truth.ignore` are taken out of all masks. A prediction that lies
    wholly on them is dropped, as nothing is known there (VOC paints difficult objects as void); so is a
    true mask without pixels, as there is nothing to find. A prediction that was empty from the start stays
    and is a false positive.

    Args:
        predictions: predicted instances; (R, H, W) masks.
        truth: true instances and void pixels of the same picture.
        num_classes: C.
        ignore_void: whether void pixels are left out; else they are background.

    Returns:
        Counted predictions and counted true instances, in their order.

    Raises:
        ShapeError: prediction, truth and void map differ in picture size.
        DataError: a class id is outside 0..C-1, or a score is not a number.
    """
    sizes = (predictions.size, truth.instances.size, truth.ignore.shape)
    if len(set(sizes)) > 1:
        raise ShapeError(f"predicted masks, true masks and void map must be of one size, got {sizes}")
    for name, class_ids in (("predicted", predictions.class_ids), ("true", truth.instances.class_ids)):
        if class_ids.size and not 0 <= class_ids.min() <= class_ids.max() < num_classes:
            raise DataError(f"a {name} class id is outside 0..{num_classes - 1}: {class_ids.tolist()}")
    if np.isnan(predictions.scores).any():
        raise DataError("a predicted score is not a number")
    if not ignore_void:
        return predictions, _without_empty(truth.instances)
    trimmed = _without_pixels(predictions, truth.ignore)
    trimmed = trimmed.select(~_has_pixels(predictions) | _has_pixels(trimmed))
    return trimmed, _without_empty(_without_pixels(truth.instances, truth.ignore))


class InstanceEvaluator:
    """VOC average precision per class and class-agnostic, gathered picture by picture.

    Only scores and hits are kept, so the memory does not depend on the size of the pictures.
    """

    def __init__(self, num_classes: int, iou_thresholds: Sequence[float] = (0.5, 0.7, 0.75)) -> None:
        """Start with no picture.

        Args:
            num_classes: C foreground classes.
            iou_thresholds: mask IoUs in (0, 1] to evaluate at.

        Raises:
            ConfigError: there is no class, no threshold, or a threshold outside (0, 1].
        """
        self._thresholds = tuple(float(threshold) for threshold in iou_thresholds)
        if num_classes < 1:
            raise ConfigError(f"num_classes must be at least 1, got {num_classes}")
        if not self._thresholds or not all(0 < threshold <= 1 for threshold in self._thresholds):
            raise ConfigError(f"iou_thresholds must be in (0, 1], got {self._thresholds}")
        self._tallies = [[_Tally() for _ in range(num_classes)] for _ in self._thresholds]
        self._agnostic = _Tally()

    @property
    def num_classes(self) -> int:
        """Number of foreground classes C."""
        return len(self._tallies[0])

    def add(self, predictions: Instances, truth: GroundTruth, ignore_void: bool) -> None:
        """Take in one picture; a picture that is refused leaves no trace.

        Fragments of score < 1e-5 (see the synthesis of labels) are not predictions: drop them before.
        Predictions of equal score in one picture are matched in the order given.

        Args:
            predictions: predicted instances; (R, H, W) masks.
            truth: true instances and void pixels of the same picture.
            ignore_void: take the void pixels out of the masks first (see `counted_instances`).

        Raises:
            ShapeError: prediction, truth and void map differ in picture size.
            DataError: a class id is outside 0..C-1, or a score is not a number.
        """
        predictions, truths = counted_instances(predictions, truth, self.num_classes, ignore_void)
        predictions = predictions.select(np.argsort(-predictions.scores, kind="stable"))
        iou = mask_iou(predictions.masks, truths.masks)
        for class_id in np.union1d(predictions.class_ids, truths.class_ids).tolist():
            predicted, true = predictions.class_ids == class_id, truths.class_ids == class_id
            for threshold, tallies in zip(self._thresholds, self._tallies, strict=True):
                tallies[class_id].add(predictions.scores[predicted], iou[predicted][:, true], threshold)
        self._agnostic.add(predictions.scores, iou, _AGNOSTIC_THRESHOLD)

    def result(self) -> InstanceScores:
        """The scores of the pictures added so far."""
        ap = [tuple(tally.average_precision() for tally in tallies) for tallies in self._tallies]
        return InstanceScores(
            iou_thresholds=self._thresholds,
            mean_ap=tuple(_mean_of_numbers(values) for values in ap),
            ap=tuple(ap),
            class_agnostic_ap50=self._agnostic.average_precision(),
            truth_counts=tuple(tally.num_truths for tally in self._tallies[0]),
        )


def _without_pixels(instances: Instances, pixels: BoolArray) -> Instances:
    return Instances(instances.scores, instances.masks & ~pixels, instances.class_ids)


def _without_empty(instances: Instances) -> Instances:
    return instances.select(_has_pixels(instances))


def _has_pixels(instances: Instances) -> BoolArray:
    return np.asarray(instances.masks.any(axis=(1, 2)), np.bool_)


def _mean_of_numbers(values: tuple[float, ...]) -> float:
    numbers = [value for value in values if not np.isnan(value)]
    return float(np.mean(numbers)) if numbers else float("nan")
