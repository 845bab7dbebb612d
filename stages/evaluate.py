"""Compare maps, labels and the trained model with true masks: JSON first, one table after it (paper, section 6)."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from functools import partial
from typing import Any

from tqdm import tqdm

from irn_pipeline.artifacts import CAM, INSTANCE_LABEL, METRICS, SEGMENTER, SEMANTIC_LABEL, restore_network
from irn_pipeline.datasets.images import read_image
from irn_pipeline.datasets.transforms import to_tensor
from irn_pipeline.errors import ArtifactError, DataError, ShapeError
from irn_pipeline.metrics.coco_ap import CocoEvaluator
from irn_pipeline.metrics.instance import InstanceEvaluator
from irn_pipeline.metrics.semantic import confusion_matrix, semantic_scores
from irn_pipeline.nn.segmenters.mask_rcnn import MaskRcnnSegmenter
from irn_pipeline.ops.cam import cam_components, cam_label
from irn_pipeline.runtime.stage import Job, ReduceStage
from irn_pipeline.structures import GroundTruth, Instances
from stages._segmenter import SegmenterParams, build_segmenter
from stages._source import DataSet

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Params:
    """Parameters of the evaluation."""

    truth_list: str | None = None
    """Pictures whose labels are compared: a list as for --image-list; by default all that have true masks."""
    heldout_list: str | None = None
    """Pictures the trained model is run on and compared with; without it the model is not evaluated."""
    cam_threshold: float = 0.15
    """Background score at which activation maps become a label."""
    component_threshold: float = 0.25
    """Background score at which activation maps are cut into components, the baseline without IRNet."""
    ignore_void: bool = True
    """Leave pixels marked 255 in the truth out of instance masks on both sides."""


class _InstanceTally:
    """VOC and COCO average precision of one kind of prediction."""

    def __init__(self, num_classes: int, *, ignore_void: bool) -> None:
        self._voc, self._coco = InstanceEvaluator(num_classes), CocoEvaluator(num_classes)
        self._ignore_void = ignore_void

    def add(self, predictions: Instances, truth: GroundTruth) -> None:
        """Count one picture; instances of score 0 are fragments and no predictions."""
        kept = predictions.select(predictions.scores >= 1e-5)
        self._voc.add(kept, truth, self._ignore_void)
        self._coco.add(kept, truth, self._ignore_void)

    def report(self, class_names: tuple[str, ...]) -> dict[str, Any]:
        """All figures, JSON-like."""
        voc, coco = self._voc.result(), self._coco.result()
        figures: dict[str, Any] = {
            f"ap{round(100 * threshold)}": _number(mean)
            for threshold, mean in zip(voc.iou_thresholds, voc.mean_ap, strict=True)
        }
        figures["ap50_class_agnostic"] = _number(voc.class_agnostic_ap50)
        figures["coco"] = {key: _number(getattr(coco, key)) for key in ("ap", "ap50", "ap75")}
        figures["ap50_per_class"] = dict(zip(class_names, map(_number, voc.ap[0]), strict=True))
        figures["instances"] = int(sum(voc.truth_counts))
        return figures


class _SemanticTally:
    """Mean intersection over union of one kind of label."""

    def __init__(self, num_classes: int) -> None:
        self._num_labels = num_classes + 1
        self._matrix: Any = 0

    def add(self, label: Any, truth: GroundTruth) -> None:
        """Count one picture."""
        self._matrix = self._matrix + confusion_matrix(label, truth.label, self._num_labels)

    def report(self, class_names: tuple[str, ...]) -> dict[str, Any]:
        """All figures, JSON-like."""
        scores = semantic_scores(self._matrix)
        names = ("background", *class_names)
        return {
            "miou": _number(scores.miou),
            "iou_per_class": dict(zip(names, map(_number, scores.iou), strict=True)),
        }


def run(job: Job[Params, DataSet]) -> int:
    """Evaluate whatever of the run folder there is and write `metrics.json`."""
    data = job.data if job.params.truth_list is None else job.data.with_list(job.params.truth_list)
    figures: dict[str, Any] = {}
    count = _evaluate_labels(job, data, figures)
    if job.params.heldout_list is not None and job.run.has(SEGMENTER):
        figures["segmenter"] = _evaluate_segmenter(job, job.data.with_list(job.params.heldout_list))
    if not figures:
        raise DataError(
            f"{job.run.root}: nothing to evaluate: no picture has both true masks in {data.voc_root} "
            "(SegmentationClass, SegmentationObject) and maps or labels in the run folder"
        )
    job.run.write(METRICS, {"pictures": count, **figures})
    logger.info("%s\n%s", _table(figures), job.run.path(METRICS))
    return count


def _evaluate_labels(job: Job[Params, DataSet], data: DataSet, figures: dict[str, Any]) -> int:
    classes, params = data.images.num_classes, job.params
    semantic = {"cam": _SemanticTally(classes), "semantic_label": _SemanticTally(classes)}
    instance = {
        name: _InstanceTally(classes, ignore_void=params.ignore_void)
        for name in ("cam_components", "instance_label")
    }
    seen: set[str] = set()
    count = 0
    for record in tqdm(data.items, desc=STAGE.name, unit="image", disable=job.execution.quiet):
        image_id = record.image_id
        truth = data.ground_truth(image_id)
        if truth is None:
            continue
        count += 1
        try:
            if job.run.has(CAM, image_id):
                cam = job.run.read(CAM, image_id)
                semantic["cam"].add(cam_label(cam.high_res_cam, cam.class_ids, params.cam_threshold), truth)
                parts = cam_components(cam.high_res_cam, cam.class_ids, params.component_threshold)
                instance["cam_components"].add(parts, truth)
                seen |= {"cam", "cam_components"}
            if job.run.has(SEMANTIC_LABEL, image_id):
                semantic["semantic_label"].add(job.run.read(SEMANTIC_LABEL, image_id), truth)
                instance["instance_label"].add(job.run.read(INSTANCE_LABEL, image_id), truth)
                seen |= {"semantic_label", "instance_label"}
        except ShapeError as error:
            raise ArtifactError(
                f"{job.run.root}: the maps or labels of {image_id} do not fit its true masks in {data.voc_root} "
                f"({error}); evaluate them on the data set they were made from"
            ) from error
    tallies: dict[str, _SemanticTally | _InstanceTally] = {**semantic, **instance}
    for name, tally in tallies.items():
        if name in seen:
            figures[name] = tally.report(data.images.class_names)
    return count


def _evaluate_segmenter(job: Job[Params, DataSet], heldout: DataSet) -> dict[str, Any]:
    model = _load_segmenter(job)
    device = job.execution.torch_device()
    tally = _InstanceTally(heldout.images.num_classes, ignore_void=job.params.ignore_void)
    count = 0
    for record in tqdm(heldout.items, desc="held-out pictures", unit="image", disable=job.execution.quiet):
        truth = heldout.ground_truth(record.image_id)
        if truth is None:
            continue
        count += 1
        with job.execution.autocast():
            found = model.predict((to_tensor(read_image(record.path)).float() / 255).to(device))
        tally.add(found, truth)
    if not count:
        raise DataError(f"{heldout.voc_root}: no picture of the held-out list has true masks")
    return {"pictures": count, **tally.report(heldout.images.class_names)}


def _load_segmenter(job: Job[Params, DataSet]) -> MaskRcnnSegmenter:
    checkpoint = job.run.read(SEGMENTER)
    record = job.run.record(SEGMENTER.stage)
    path = job.run.path(SEGMENTER)
    if record is None:
        raise ArtifactError(f"{path.parent}: has no stage.json; train the model again with --overwrite")
    params = SegmenterParams(**record.params)
    build = partial(build_segmenter, params, len(checkpoint.class_names))
    model = restore_network(path, checkpoint, params.model, build)
    return model.eval().to(job.execution.torch_device())


def _number(value: float) -> float | None:
    """JSON has no NaN: a figure that does not exist is null."""
    return None if math.isnan(value) else round(float(value), 6)


def _table(figures: dict[str, Any]) -> str:
    columns = ("miou", "ap50", "ap70", "ap75")
    lines = [f"{'':<16}" + "".join(f"{'mIoU' if c == 'miou' else c.upper():>8}" for c in columns)]
    for name, values in figures.items():
        cells = (values.get(column) for column in columns)
        lines.append(f"{name:<16}" + "".join(f"{'-' if c is None else f'{100 * c:.1f}':>8}" for c in cells))
    return "\n".join(lines)


STAGE: ReduceStage[Params] = ReduceStage(
    name="evaluate",
    summary="Compare maps, labels and the trained model with true masks.",
    params=Params,
    writes=(METRICS,),
    run=run,
)

if __name__ == "__main__":
    from stages.__main__ import stage_main

    raise SystemExit(stage_main("evaluate"))
