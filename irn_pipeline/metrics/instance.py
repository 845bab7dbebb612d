"""Instance metric: VOC average precision on mask IoU, the area under the monotone precision envelope."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from irn_pipeline.errors import ConfigError, ShapeError
from irn_pipeline.metrics.counted import counted_instances
from irn_pipeline.ops.masks import mask_iou
from irn_pipeline.structures import BoolArray, FloatArray, GroundTruth, Instances, IntArray

_AGNOSTIC_THRESHOLD = 0.5


@dataclass(frozen=True)
class InstanceScores:
    """Quality of instance masks over a set of pictures.

    Attributes:
        iou_thresholds: T mask IoUs from which a prediction counts as found.
        mean_ap: T means of `ap` over the classes that have a true instance; NaN where no class has one.
        ap: T tuples of one average precision in [0, 1] per class; NaN for a class without true instance.
        class_agnostic_ap50: average precision at IoU 0.5 when all classes are one; NaN without truths.
        truth_counts: true instances per class.
    """

    iou_thresholds: tuple[float, ...]
    mean_ap: tuple[float, ...]
    ap: tuple[tuple[float, ...], ...]
    class_agnostic_ap50: float
    truth_counts: tuple[int, ...]


@dataclass(frozen=True)
class Rules:
    """What counts, and in which order; the defaults are those of the protocol `voc`.

    Attributes:
        ignore_void: void pixels are left out of all masks; else they are background, outside every true mask.
        keep_fragments: predictions of score < 1e-5 take part, as the last ones; else they are left out.
        ties_together: predictions of equal score enter the curve together; else one after the other, as
            `numpy.argsort(scores)[::-1]` puts them.
    """

    ignore_void: bool = True
    keep_fragments: bool = False
    ties_together: bool = True


ORIGINAL_RULES = Rules(ignore_void=False, keep_fragments=True, ties_together=False)
"""Those of the original implementation's evaluation (ChainerCV's)."""


@dataclass(frozen=True)
class PictureHits:
    """What one picture adds to the curves.

    Attributes:
        class_ids: (R,) ascending classes of its predictions.
        scores: (R,) of its predictions; descending within a class.
        hits: (T, R) whether each is a true positive at each threshold, among the instances of its class.
        agnostic_scores: (R,) descending.
        agnostic_hits: (R,) whether each is a true positive at IoU 0.5 when all classes are one.
        truths: (G,) classes of its true instances.
    """

    class_ids: IntArray
    scores: FloatArray
    hits: BoolArray
    agnostic_scores: FloatArray
    agnostic_hits: BoolArray
    truths: IntArray


def match(iou: FloatArray, threshold: float) -> BoolArray:
    """Decide which predictions of one picture are true positives.

    Every prediction asks for the truth it overlaps most (the first of several equal ones); it is refused when the
    overlap is below the threshold or a better-scored prediction has asked for that truth before. It does not turn to
    the second-best truth (PASCAL VOC; the COCO rule differs here).

    Args:
        iou: (R, G) mask IoU of predictions, by descending score, and truths.
        threshold: least IoU of a true positive.

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


def average_precision(
    scores: FloatArray, hits: BoolArray, num_truths: int, *, ties_together: bool = True
) -> float:
    """Area under the monotone precision envelope over recall, all points (PASCAL VOC 2010 and later).

    Predictions of equal score enter the curve together, so the result does not depend on their order.
    This matters: synthesized labels are divided by each picture's maximum, so many scores are exactly 1.

    Args:
        scores: (R,) of all predictions of the set.
        hits: (R,) bool, true for a true positive.
        num_truths: true instances of the set.
        ties_together: False lets them enter one after the other, as `numpy.argsort(scores)[::-1]` puts them. NumPy
            does not promise that order; it differs between versions and processors.

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
    order = _descending(scores, stable=ties_together)
    descending = scores[order]
    ends_tie = np.ones(len(scores), np.bool_)
    if ties_together:
        ends_tie[:-1] = descending[:-1] != descending[1:]
    ends = np.flatnonzero(ends_tie)
    true_positives = np.cumsum(hits[order], dtype=np.int64)[ends]
    precision = true_positives / (ends + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.diff(true_positives, prepend=0) @ envelope / num_truths)


def _descending(scores: FloatArray, *, stable: bool) -> IntArray:
    return np.argsort(-scores, kind="stable") if stable else np.argsort(scores)[::-1]


class InstanceEvaluator:
    """VOC average precision per class and class-agnostic, gathered picture by picture.

    Only scores and hits are kept, so the memory does not depend on the size of the pictures.
    """

    def __init__(
        self,
        num_classes: int,
        iou_thresholds: Sequence[float] = (0.5, 0.7, 0.75),
        *,
        rules: Rules | None = None,
    ) -> None:
        """Start with no picture.

        Raises:
            ConfigError: there is no class, no threshold, or a threshold outside (0, 1].
        """
        self._thresholds = tuple(float(threshold) for threshold in iou_thresholds)
        if num_classes < 1:
            raise ConfigError(f"num_classes must be at least 1, got {num_classes}")
        if not self._thresholds or not all(0 < threshold <= 1 for threshold in self._thresholds):
            raise ConfigError(f"iou_thresholds must be in (0, 1], got {self._thresholds}")
        self._num_classes, self._rules = num_classes, rules or Rules()
        nobody, nothing = np.zeros(0, np.int64), np.zeros(0, np.float32)
        no_hits = np.zeros((len(self._thresholds), 0), np.bool_)
        # An empty picture, so that there is always something to concatenate.
        self._pictures = [PictureHits(nobody, nothing, no_hits, nothing, no_hits[0], nobody)]

    def add(self, predictions: Instances, truth: GroundTruth) -> None:
        """Take in one picture; one that `hits` refuses leaves no trace."""
        self.add_hits(self.hits(predictions, truth))

    def add_hits(self, hits: PictureHits) -> None:
        """Take in one picture whose hits are known, from an evaluator of the same thresholds."""
        self._pictures.append(hits)

    def hits(self, predictions: Instances, truth: GroundTruth) -> PictureHits:
        """The true positives of one picture, which is not taken in; see `counted_instances` for what is refused.

        Predictions of equal score are matched in the order given; where ties do not enter together, in that of
        `numpy.argsort(scores)[::-1]`, each class for itself.
        """
        rules = self._rules
        predictions, truths = counted_instances(
            predictions,
            truth,
            self._num_classes,
            ignore_void=rules.ignore_void,
            keep_fragments=rules.keep_fragments,
        )
        scores, class_ids = predictions.scores, predictions.class_ids
        iou = mask_iou(predictions.masks, truths.masks)
        order: list[IntArray] = [np.zeros(0, np.int64)]
        hits: list[BoolArray] = [self._pictures[0].hits]
        for class_id in np.unique(class_ids).tolist():
            own = np.flatnonzero(class_ids == class_id)
            own = own[_descending(scores[own], stable=rules.ties_together)]
            among = iou[own][:, truths.class_ids == class_id]
            order.append(own)
            hits.append(np.stack([match(among, threshold) for threshold in self._thresholds]))
        by_class = np.concatenate(order)
        by_score = _descending(scores, stable=rules.ties_together)
        return PictureHits(
            class_ids=class_ids[by_class],
            scores=scores[by_class],
            hits=np.concatenate(hits, axis=1),
            agnostic_scores=scores[by_score],
            agnostic_hits=match(iou[by_score], _AGNOSTIC_THRESHOLD),
            truths=truths.class_ids,
        )

    def result(self) -> InstanceScores:
        """The scores of the pictures added so far."""
        seen = self._pictures
        counts = np.bincount(np.concatenate([each.truths for each in seen]), minlength=self._num_classes)
        class_ids = np.concatenate([each.class_ids for each in seen])
        scores = np.concatenate([each.scores for each in seen])
        hits = np.concatenate([each.hits for each in seen], axis=1)
        area = partial(average_precision, ties_together=self._rules.ties_together)
        per_class = [
            [area(scores[own], row[own], int(counts[class_id])) for row in hits]
            for class_id in range(self._num_classes)
            for own in [class_ids == class_id]
        ]
        ap = tuple(zip(*per_class, strict=True))
        return InstanceScores(
            iou_thresholds=self._thresholds,
            mean_ap=tuple(mean_of_numbers(values) for values in ap),
            ap=ap,
            class_agnostic_ap50=area(
                np.concatenate([each.agnostic_scores for each in seen]),
                np.concatenate([each.agnostic_hits for each in seen]),
                int(counts.sum()),
            ),
            truth_counts=tuple(counts.tolist()),
        )


def mean_of_numbers(values: Sequence[float]) -> float:
    """Their mean without NaNs; NaN where there is no number."""
    numbers = [value for value in values if not np.isnan(value)]
    return float(np.mean(numbers)) if numbers else float("nan")
