"""Figures of maps, labels and models against true masks, as JSON-like values."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from irn_pipeline.datasets.pixels import read_pixels
from irn_pipeline.datasets.source import DataSet
from irn_pipeline.engine.execution import Execution
from irn_pipeline.engine.progress import progress
from irn_pipeline.errors import DataError
from irn_pipeline.metrics.coco_ap import CocoEvaluator, VoidRule
from irn_pipeline.metrics.counting import CountingEvaluator
from irn_pipeline.metrics.instance import ORIGINAL_RULES, InstanceEvaluator, Rules
from irn_pipeline.metrics.semantic import confusion_matrix, semantic_scores
from irn_pipeline.structures import BACKGROUND, IGNORE, GroundTruth, Instances, LabelArray, background_name
from irn_pipeline.trained_networks import look_at

if TYPE_CHECKING:
    from irn_pipeline.nn.segmenters.base import Segmenter

logger = logging.getLogger(__name__)

ProtocolName: TypeAlias = Literal["original", "voc", "coco"]
"""Whose rules figures follow: the original implementation's, VOC's with void left out, or COCO's."""

REMOVED = {
    "ignore_void": (
        "write protocol instead: 'voc', the default, leaves void pixels out, as ignore_void true did; 'original' "
        "counts them as background, as false did"
    )
}
"""Parameters of earlier versions, and what to write instead."""
_COCO = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
_VOID: dict[ProtocolName, VoidRule] = {"original": "background", "voc": "left_out", "coco": "crowd"}


def ap_evaluator(
    num_classes: int, protocol: ProtocolName, iou_thresholds: tuple[float, ...] = (0.5, 0.7, 0.75)
) -> InstanceEvaluator | CocoEvaluator:
    """Average precision by a protocol; that of `coco` is at IoU 0.5, 0.7 and 0.75 always."""
    if protocol == "coco":
        return CocoEvaluator(num_classes, void=_VOID[protocol])
    rules = ORIGINAL_RULES if protocol == "original" else Rules()
    return InstanceEvaluator(num_classes, iou_thresholds, rules=rules)


class InstanceTally:
    """Average precision, COCO's figures and counting figures of one kind of prediction.

    Args:
        class_names: foreground classes.
        protocol: rules of the average precision; for all figures it says what void pixels are.
        count_from: least score of an instance that is counted; a detector keeps doubtful ones for its curve.
    """

    def __init__(
        self, class_names: tuple[str, ...], *, protocol: ProtocolName, count_from: float = 0.0
    ) -> None:
        self._names, count = class_names, len(class_names)
        self._coco = CocoEvaluator(count, void=_VOID[protocol])
        self._counts = CountingEvaluator(count, min_score=count_from, ignore_void=protocol != "original")
        self._ap = self._coco if protocol == "coco" else ap_evaluator(count, protocol)
        self.count = self.without_instances = 0

    def add(self, predictions: Instances, truth: GroundTruth) -> None:
        """Count one picture, unless its truth does not tell objects apart."""
        if not truth.has_instances:
            self.without_instances += 1
            return
        self.count += 1
        self._coco.add(predictions, truth)
        self._counts.add(predictions, truth)
        if self._ap is not self._coco:
            self._ap.add(predictions, truth)

    def report(self) -> dict[str, Any]:
        """All figures."""
        found, coco, counts = self._ap.result(), self._coco.coco_scores(), self._counts.result()
        figures: dict[str, Any] = {
            f"ap{round(100 * threshold)}": number(mean)
            for threshold, mean in zip(found.iou_thresholds, found.mean_ap, strict=True)
        }
        figures["ap50_class_agnostic"] = number(found.class_agnostic_ap50)
        figures["coco"] = {key: number(getattr(coco, key)) for key in _COCO}
        for threshold, values in zip(found.iou_thresholds, found.ap, strict=True):
            figures[f"ap{round(100 * threshold)}_per_class"] = self._by_class(values)
        figures["coco"]["ap_per_class"] = self._by_class(coco.ap_per_class)
        figures["sbd"] = number(counts.class_agnostic.sbd)
        figures["abs_dic"] = number(counts.class_agnostic.abs_dic)
        figures["sbd_per_class"] = self._by_class(tuple(scores.sbd for scores in counts.per_class))
        figures["abs_dic_per_class"] = self._by_class(tuple(scores.abs_dic for scores in counts.per_class))
        figures["instances"] = int(sum(found.truth_counts))
        return figures

    def _by_class(self, values: tuple[float, ...]) -> dict[str, float | None]:
        return dict(zip(self._names, map(number, values), strict=True))


class SemanticTally:
    """Mean intersection over union of one kind of label.

    Args:
        class_names: foreground classes.
        protocol: `original` takes predicted pixels of 255 for background; else they are of no class.
    """

    def __init__(self, class_names: tuple[str, ...], *, protocol: ProtocolName = "voc") -> None:
        self._names, self._protocol = (background_name(class_names), *class_names), protocol
        self._matrix: Any = 0
        self.count = 0

    def add(self, label: LabelArray, truth: GroundTruth) -> None:
        """Count one picture."""
        self.count += 1
        if self._protocol == "original":
            label = np.where(label == IGNORE, np.uint8(BACKGROUND), label)
        self._matrix = self._matrix + confusion_matrix(label, truth.label, len(self._names))

    def report(self) -> dict[str, Any]:
        """All figures."""
        scores = semantic_scores(self._matrix)
        per_class = dict(zip(self._names, map(number, scores.iou), strict=True))
        return {"miou": number(scores.miou), "iou_per_class": per_class}


def model_figures(
    model: Segmenter, pictures: DataSet, execution: Execution, *, protocol: ProtocolName = "voc"
) -> dict[str, Any]:
    """Run a model on every picture that has true masks, those without a tag too, and compare.

    Raises:
        DataError: not one picture has, or no class is in them.
    """
    names = pictures.images.class_names
    instances = InstanceTally(names, protocol=protocol, count_from=0.5)
    label = SemanticTally(names, protocol=protocol)
    count, foreground = 0, False
    for record in progress((*pictures.items, *pictures.negatives), "held-out images", quiet=execution.quiet):
        truth = pictures.ground_truth(record.image_id)
        if truth is None:
            continue
        count += 1
        foreground |= truth.has_foreground
        found, painted = look_at(model, read_pixels(record), execution)
        instances.add(found, truth)
        label.add(painted, truth)
    if not count:
        raise DataError(f"{pictures.origin}: no image in the held-out list has ground-truth masks")
    require_foreground(foreground, count, pictures.origin)
    log_without_instances(instances)
    return {"pictures": count, **label.report(), **(instances.report() if instances.count else {})}


def log_without_instances(instances: InstanceTally) -> None:
    """Say why there is no average precision, or of how many pictures it is."""
    without = instances.without_instances
    if without and instances.count:
        whole = instances.count + without
        logger.warning(
            "average precision covers %d of %d images: the others have no object masks (SegmentationObject)",
            *(instances.count, whole),
        )
    elif without:
        logger.warning(
            "no average precision: the ground-truth masks do not separate objects (no SegmentationObject)"
        )


def require_foreground(found: bool, count: int, origin: Path) -> None:
    """Refuse true masks that show nothing: labels without an object would agree with them wholly.

    Args:
        found: whether the true masks of any picture have foreground.
        count: pictures with true masks; 0 is no error here.
        origin: the data set, for messages.

    Raises:
        DataError: there are true masks, and all are background or not counted.
    """
    if count and not found:
        raise DataError(
            f"{origin}: the ground-truth masks of {count} images show no object of any class, only background and "
            "pixels that are not counted; expected class labels from 1 in PNGs (0 is background and 255 is not "
            "counted: in masks of 0 and 255 write the class's label for 255), or masks without iscrowd in a COCO file"
        )


def number(value: float) -> float | None:
    """JSON has no NaN: a figure that does not exist is null."""
    return None if math.isnan(value) else round(float(value), 6)


def table(figures: dict[str, dict[str, Any]], protocol: ProtocolName) -> str:
    """The main figures as aligned text, per cent."""
    columns = ("miou", "ap50", "ap70", "ap75")
    heading = f"protocol {protocol}"
    width = max(len(name) for name in [*figures, heading]) + 2
    lines = [f"{heading:<{width}}" + "".join(f"{'mIoU' if c == 'miou' else c.upper():>8}" for c in columns)]
    for name, values in figures.items():
        cells = (values.get(column) for column in columns)
        lines.append(
            f"{name:<{width}}" + "".join(f"{'-' if c is None else f'{100 * c:.1f}':>8}" for c in cells)
        )
    return "\n".join(lines)
