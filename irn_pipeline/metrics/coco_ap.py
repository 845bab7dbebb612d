"""COCO average precision of instance masks, computed by the official evaluation of pycocotools."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from irn_pipeline.errors import ConfigError
from irn_pipeline.metrics.instance import counted_instances
from irn_pipeline.structures import GroundTruth, Instances


@dataclass(frozen=True)
class CocoScores:
    """Average precisions in [0, 1] of at most 100 instances per picture and class; NaN where undefined.

    Attributes:
        ap: mean over the mask IoUs 0.50, 0.55, ... 0.95 and over the classes that have a true instance.
        ap50: the same at IoU 0.5 alone.
        ap75: the same at IoU 0.75 alone.
        ap_small: `ap` of instances below 32 x 32 pixels.
        ap_medium: `ap` of instances from 32 x 32 to 96 x 96 pixels.
        ap_large: `ap` of instances above 96 x 96 pixels.
        ap_per_class: `ap` of each class; NaN for a class without true instance.
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

    COCO breaks ties between equal scores by the order in which the pictures were added.
    """

    def __init__(self, num_classes: int) -> None:
        """Start with no picture.

        Args:
            num_classes: C foreground classes; class_id c has the COCO category id c + 1.

        Raises:
            ConfigError: there is no class.
        """
        if num_classes < 1:
            raise ConfigError(f"num_classes must be at least 1, got {num_classes}")
        self._num_classes = num_classes
        self._images: list[dict[str, int]] = []
        self._truths: list[dict[str, Any]] = []
        self._predictions: list[dict[str, Any]] = []

    def add(self, predictions: Instances, truth: GroundTruth, ignore_void: bool) -> None:
        """Take in one picture; a picture that is refused leaves no trace.

        Fragments of score < 1e-5 (see the synthesis of labels) are not predictions: drop them before.

        Args:
            predictions: predicted instances; (R, H, W) masks.
            truth: true instances and void pixels of the same picture.
            ignore_void: take the void pixels out of the masks first, as the VOC metric does.

        Raises:
            ShapeError: prediction, truth and void map differ in picture size.
            DataError: a class id is outside 0..C-1, or a score is not a number.
        """
        predictions, truths = counted_instances(predictions, truth, self._num_classes, ignore_void)
        image_id = len(self._images) + 1
        height, width = truths.size
        self._images.append({"id": image_id, "height": height, "width": width})
        self._truths += _annotations(truths, image_id, first_id=len(self._truths) + 1)
        self._predictions += _annotations(predictions, image_id, first_id=len(self._predictions) + 1)

    def result(self) -> CocoScores:
        """The scores of the pictures added so far."""
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = COCOeval(self._index(self._truths), self._index(self._predictions), "segm")
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        ap, ap50, ap75, ap_small, ap_medium, ap_large = (_number(value) for value in evaluation.stats[:6])
        # (IoU, recall, class, area range, detection limit): every area, at most 100 instances.
        precision = evaluation.eval["precision"][:, :, :, 0, -1]
        per_class = tuple(_mean_precision(precision[:, :, index]) for index in range(self._num_classes))
        return CocoScores(ap, ap50, ap75, ap_small, ap_medium, ap_large, per_class)

    def _index(self, annotations: list[dict[str, Any]]) -> COCO:
        coco = COCO()
        coco.dataset = {
            "images": self._images,
            "annotations": annotations,
            "categories": [{"id": class_id + 1} for class_id in range(self._num_classes)],
        }
        coco.createIndex()
        return coco


def _annotations(instances: Instances, image_id: int, first_id: int) -> list[dict[str, Any]]:
    encoded = [rle.encode(np.asfortranarray(mask, dtype=np.uint8)) for mask in instances.masks]
    return [
        {
            # The evaluation reads the id 0 as "not matched", so ids start at 1.
            "id": first_id + index,
            "image_id": image_id,
            "category_id": int(instances.class_ids[index]) + 1,
            "segmentation": segmentation,
            "area": float(rle.area(segmentation)),
            "bbox": rle.toBbox(segmentation).tolist(),
            "iscrowd": 0,
            "score": float(instances.scores[index]),
        }
        for index, segmentation in enumerate(encoded)
    ]


def _number(value: float) -> float:
    """COCO writes -1 for "undefined"."""
    return float("nan") if value < 0 else float(value)


def _mean_precision(precision: npt.NDArray[np.float64]) -> float:
    defined = precision[precision > -1]
    return float(defined.mean()) if defined.size else float("nan")
