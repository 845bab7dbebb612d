"""Figures of maps, labels and models against true masks, as JSON-like values."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from irn_pipeline.datasets.images import read_image
from irn_pipeline.datasets.transforms import to_unit_tensor
from irn_pipeline.errors import DataError
from irn_pipeline.metrics.coco_ap import CocoEvaluator
from irn_pipeline.metrics.counting import CountingEvaluator
from irn_pipeline.metrics.instance import InstanceEvaluator
from irn_pipeline.metrics.semantic import confusion_matrix, semantic_scores
from irn_pipeline.nn.segmenters.base import Segmenter
from irn_pipeline.runtime.execution import Execution
from irn_pipeline.runtime.progress import progress
from irn_pipeline.structures import GroundTruth, Instances, LabelArray
from stages._source import DataSet

_COCO = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")


class InstanceTally:
    """VOC and COCO average precision and counting figures of one kind of prediction.

    Args:
        class_names: foreground classes.
        ignore_void: leave pixels marked 255 in the truth out of masks on both sides.
        count_from: least score of an instance that is counted; a detector keeps doubtful ones for its curve.
    """

    def __init__(self, class_names: tuple[str, ...], *, ignore_void: bool, count_from: float = 0.0) -> None:
        self._names, self._ignore_void = class_names, ignore_void
        self._voc, self._coco = InstanceEvaluator(len(class_names)), CocoEvaluator(len(class_names))
        self._counts = CountingEvaluator(len(class_names), min_score=count_from)

    def add(self, predictions: Instances, truth: GroundTruth) -> None:
        """Count one picture; instances of score 0 are fragments and no predictions."""
        kept = predictions.without_fragments()
        self._voc.add(kept, truth, self._ignore_void)
        self._coco.add(kept, truth, self._ignore_void)
        self._counts.add(kept, truth, self._ignore_void)

    def report(self) -> dict[str, Any]:
        """All figures."""
        voc, coco, counts = self._voc.result(), self._coco.result(), self._counts.result()
        figures: dict[str, Any] = {
            f"ap{round(100 * threshold)}": number(mean)
            for threshold, mean in zip(voc.iou_thresholds, voc.mean_ap, strict=True)
        }
        figures["ap50_class_agnostic"] = number(voc.class_agnostic_ap50)
        figures["coco"] = {key: number(getattr(coco, key)) for key in _COCO}
        for threshold, values in zip(voc.iou_thresholds, voc.ap, strict=True):
            figures[f"ap{round(100 * threshold)}_per_class"] = self._by_class(values)
        figures["coco"]["ap_per_class"] = self._by_class(coco.ap_per_class)
        figures["sbd"] = number(counts.class_agnostic.sbd)
        figures["abs_dic"] = number(counts.class_agnostic.abs_dic)
        figures["sbd_per_class"] = self._by_class(tuple(scores.sbd for scores in counts.per_class))
        figures["abs_dic_per_class"] = self._by_class(tuple(scores.abs_dic for scores in counts.per_class))
        figures["instances"] = int(sum(voc.truth_counts))
        return figures

    def _by_class(self, values: tuple[float, ...]) -> dict[str, float | None]:
        return dict(zip(self._names, map(number, values), strict=True))


class SemanticTally:
    """Mean intersection over union of one kind of label.

    Args:
        class_names: foreground classes.
    """

    def __init__(self, class_names: tuple[str, ...]) -> None:
        self._names = ("background", *class_names)
        self._matrix: Any = 0

    def add(self, label: LabelArray, truth: GroundTruth) -> None:
        """Count one picture."""
        self._matrix = self._matrix + confusion_matrix(label, truth.label, len(self._names))

    def report(self) -> dict[str, Any]:
        """All figures."""
        scores = semantic_scores(self._matrix)
        per_class = dict(zip(self._names, map(number, scores.iou), strict=True))
        return {"miou": number(scores.miou), "iou_per_class": per_class}


def model_figures(
    model: Segmenter, pictures: DataSet, execution: Execution, *, ignore_void: bool = True
) -> dict[str, Any]:
    """Run a model on every picture that has true masks and compare.

    Raises:
        DataError: not one picture has.
    """
    names = pictures.images.class_names
    instances = InstanceTally(names, ignore_void=ignore_void, count_from=0.5)
    label = SemanticTally(names)
    device, count, foreground = execution.torch_device(), 0, False
    for record in progress(pictures.items, "held-out pictures", quiet=execution.quiet):
        truth = pictures.ground_truth(record.image_id)
        if truth is None:
            continue
        count += 1
        foreground |= truth.has_foreground
        image = to_unit_tensor(read_image(record.path)).to(device)
        with execution.autocast():
            found, painted = model.predict_with_label(image)
        instances.add(found, truth)
        label.add(painted, truth)
    if not count:
        raise DataError(f"{pictures.origin}: no picture of the held-out list has true masks")
    require_foreground(foreground, count, pictures.origin)
    return {"pictures": count, **label.report(), **instances.report()}


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
            f"{origin}: the true masks of {count} pictures show no object of any class, only background and pixels "
            "that are not counted; expected class labels from 1 in PNGs, or masks without iscrowd in a COCO file"
        )


def number(value: float) -> float | None:
    """JSON has no NaN: a figure that does not exist is null."""
    return None if math.isnan(value) else round(float(value), 6)


def table(figures: dict[str, dict[str, Any]]) -> str:
    """The main figures as aligned text, per cent."""
    columns = ("miou", "ap50", "ap70", "ap75")
    width = max([len(name) for name in figures] + [14]) + 2
    lines = [f"{'':<{width}}" + "".join(f"{'mIoU' if c == 'miou' else c.upper():>8}" for c in columns)]
    for name, values in figures.items():
        cells = (values.get(column) for column in columns)
        lines.append(
            f"{name:<{width}}" + "".join(f"{'-' if c is None else f'{100 * c:.1f}':>8}" for c in cells)
        )
    return "\n".join(lines)
