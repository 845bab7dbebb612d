"""COCO average precision of instance masks, computed by the official evaluation of pycocotools."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from irn_pipeline.errors import ConfigError
from irn_pipeline.metrics.counted import counted_instances
from irn_pipeline.metrics.instance import InstanceScores, mean_of_numbers
from irn_pipeline.ops.masks import encode_mask
from irn_pipeline.structures import GroundTruth, Instances

VoidRule: TypeAlias = Literal["background", "left_out", "crowd"]
_THRESHOLDS = (0.5, 0.7, 0.75)
_ROWS = [0, 4, 5]
"""Their places among COCO's ten IoUs, 0.50, 0.55 ... 0.95."""


@dataclass(frozen=True)
class CocoScores:
    """Average precisions in [0, 1] of at most 100 instances per picture and class; NaN where undefined.

    `ap` is the mean over the mask IoUs 0.50, 0.55, ... 0.95 and over the classes that have a true instance; `ap50` and
    `ap75` are at one IoU. Small is below 32 x 32 pixels, large above 96 x 96.
    """

    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    ap_per_class: tuple[float, ...]


class CocoEvaluator:
    """Official COCO mask evaluation, gathered picture by picture; masks are kept run-length encoded.

    A prediction takes the best true instance that is still free. COCO breaks ties between equal scores by the order
    in which the pictures were added.
    """

    def __init__(self, num_classes: int, *, void: VoidRule = "crowd") -> None:
        """Start with no picture.

        Args:
            num_classes: C foreground classes.
            void: what void pixels are. `crowd`: regions to ignore, as COCO's crowds: a prediction that matches no
                instance and whose pixels lie there, up to the share of the IoU, is not counted. Crowds of the truth
                belong to their class, other void pixels to every class. `left_out`: taken out of all masks first.
                `background`: like any pixel outside the true masks.

        Raises:
            ConfigError: there is no class.
        """
        if num_classes < 1:
            raise ConfigError(f"num_classes must be at least 1, got {num_classes}")
        self._num_classes, self._void = num_classes, void
        self._images: list[dict[str, int]] = []
        self._truths: list[dict[str, Any]] = []
        self._predictions: list[dict[str, Any]] = []

    def add(self, predictions: Instances, truth: GroundTruth) -> None:
        """Take in one picture; one that `counted_instances` refuses leaves no trace."""
        predictions, truths = counted_instances(
            predictions, truth, self._num_classes, ignore_void=self._void == "left_out"
        )
        image_id = len(self._images) + 1
        height, width = truths.size
        self._images.append({"id": image_id, "height": height, "width": width})
        self._truths += _annotations(truths, image_id, first_id=len(self._truths) + 1)
        if self._void == "crowd":
            crowds = _regions(truth, predictions)
            self._truths += _annotations(crowds, image_id, first_id=len(self._truths) + 1, crowd=True)
        self._predictions += _annotations(predictions, image_id, first_id=len(self._predictions) + 1)

    def coco_scores(self) -> CocoScores:
        """COCO's own figures of the pictures added so far."""
        evaluation = self._evaluated()
        # COCO writes -1 for "undefined".
        ap, ap50, ap75, small, medium, large = (
            float("nan") if value < 0 else float(value) for value in evaluation.stats[:6]
        )
        return CocoScores(ap, ap50, ap75, small, medium, large, self._per_class(_precision(evaluation)))

    def result(self) -> InstanceScores:
        """COCO's average precision (101 recalls) at IoU 0.5, 0.7 and 0.75, of the pictures added so far."""
        precision = _precision(self._evaluated())
        ap = tuple(self._per_class(precision[row]) for row in _ROWS)
        agnostic = _precision(self._evaluated(by_class=False))
        true = [entry["category_id"] - 1 for entry in self._truths if not entry["iscrowd"]]
        return InstanceScores(
            iou_thresholds=_THRESHOLDS,
            mean_ap=tuple(mean_of_numbers(values) for values in ap),
            ap=ap,
            class_agnostic_ap50=_mean_precision(agnostic[0, :, 0]),
            truth_counts=tuple(np.bincount(true, minlength=self._num_classes).tolist()),
        )

    def _per_class(self, precision: npt.NDArray[np.float64]) -> tuple[float, ...]:
        return tuple(_mean_precision(precision[..., index]) for index in range(self._num_classes))

    def _evaluated(self, *, by_class: bool = True) -> COCOeval:
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = COCOeval(self._index(self._truths), self._index(self._predictions), "segm")
            evaluation.params.useCats = int(by_class)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        return evaluation

    def _index(self, annotations: list[dict[str, Any]]) -> COCO:
        coco = COCO()
        coco.dataset = {
            "images": self._images,
            "annotations": annotations,
            "categories": [{"id": class_id + 1} for class_id in range(self._num_classes)],
        }
        coco.createIndex()
        return coco


def _regions(truth: GroundTruth, predictions: Instances) -> Instances:
    """What is ignored, by class: the crowds of the truth, or its void pixels for every class that is predicted."""
    if truth.crowds is not None:
        return truth.crowds
    class_ids = np.unique(predictions.class_ids) if truth.ignore.any() else np.zeros(0, np.int64)
    masks = np.broadcast_to(truth.ignore, (len(class_ids), *truth.ignore.shape))
    return Instances(np.ones(len(class_ids), np.float32), masks, class_ids)


def _annotations(
    instances: Instances, image_id: int, first_id: int, *, crowd: bool = False
) -> list[dict[str, Any]]:
    encoded = [encode_mask(mask) for mask in instances.masks]
    return [
        {
            # The evaluation reads the id 0 as "not matched", so ids start at 1.
            "id": first_id + index,
            "image_id": image_id,
            "category_id": int(instances.class_ids[index]) + 1,
            "segmentation": segmentation,
            "area": float(rle.area(segmentation)),
            "bbox": rle.toBbox(segmentation).tolist(),
            "iscrowd": int(crowd),
            "score": float(instances.scores[index]),
        }
        for index, segmentation in enumerate(encoded)
    ]


def _precision(evaluation: COCOeval) -> npt.NDArray[np.float64]:
    """(IoU, recall, class) of every area, at most 100 instances."""
    precision: npt.NDArray[np.float64] = evaluation.eval["precision"]
    return precision[:, :, :, 0, -1]


def _mean_precision(precision: npt.NDArray[np.float64]) -> float:
    defined = precision[precision > -1]
    return float(defined.mean()) if defined.size else float("nan")
