"""Which background score gives the best labels: mIoU and AP50 over thresholds, from kept scores or from the CAMs."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np

from irn_pipeline.artifacts import CAM, CAM_SWEEP, SWEEP, WALKED_SCORES
from irn_pipeline.cam_source import CamSource, cams_not_read
from irn_pipeline.datasets.source import DataSet
from irn_pipeline.engine.progress import progress
from irn_pipeline.engine.stage import Job, ReduceStage
from irn_pipeline.engine.store import Artifact
from irn_pipeline.errors import ArtifactError, DataError, ShapeError
from irn_pipeline.evaluation import (
    REMOVED,
    ProtocolName,
    SemanticTally,
    ap_evaluator,
    number,
    require_foreground,
)
from irn_pipeline.metrics.coco_ap import CocoEvaluator
from irn_pipeline.metrics.instance import InstanceEvaluator
from irn_pipeline.older_runs import require_current
from irn_pipeline.ops.label_params import LabelParams
from irn_pipeline.ops.masks import label_from_index
from irn_pipeline.structures import GroundTruth, ImageRecord, Instances, LabelArray

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Params:
    """Parameters of the sweep."""

    thresholds: tuple[float, ...] = (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5)
    """Background thresholds to try, for semantic and instance labels alike."""
    cam: bool = False
    """Sweep over the activation maps (mIoU) instead of the walked scores (mIoU and AP50)."""
    truth_list: str | None = None
    """Images whose labels are evaluated; same format as --image-list. Default: all images with ground-truth masks."""
    protocol: ProtocolName = "voc"
    """Evaluation rules, as for evaluate: original, voc or coco."""
    cam_dir: str | None = None
    """With --cam: folder of another project's CAM files (ID.npy), used instead of the maps of make_cam."""

    REMOVED: ClassVar[Mapping[str, str]] = REMOVED

    def __post_init__(self) -> None:
        if not self.thresholds or not all(0 <= threshold <= 1 for threshold in self.thresholds):
            raise ValueError(f"thresholds are {list(self.thresholds)}; give one or more numbers from 0 to 1")
        object.__setattr__(self, "thresholds", tuple(sorted(set(self.thresholds))))


@dataclass(frozen=True)
class _Tally:
    """What is counted for one threshold."""

    threshold: float
    label: SemanticTally
    instances: InstanceEvaluator | CocoEvaluator

    def add(self, label: LabelArray, instances: Instances | None, truth: GroundTruth) -> None:
        self.label.add(label, truth)
        if instances is not None and truth.has_instances:
            self.instances.add(instances, truth)

    def figures(self, *, with_instances: bool) -> dict[str, Any]:
        found = {"threshold": self.threshold, "miou": self.label.report()["miou"]}
        return found | ({"ap50": number(self.instances.result().mean_ap[0])} if with_instances else {})


def run(job: Job[Params, DataSet]) -> int:
    """Compare the labels of every threshold with true masks; returns the number of pictures."""
    params = job.params
    data = job.data if params.truth_list is None else job.data.with_list(params.truth_list)
    names = data.images.class_names
    tallies = [
        _Tally(
            threshold,
            SemanticTally(names, protocol=params.protocol),
            ap_evaluator(len(names), params.protocol, (0.5,)),
        )
        for threshold in params.thresholds
    ]
    labels = _CamLabels(job) if params.cam else _ScoreLabels(job)
    count = without_truth = 0
    foreground = False
    for record in progress(data.items, STAGE.name, quiet=job.execution.quiet):
        if not labels.has(record.image_id):
            continue
        truth = data.ground_truth(record.image_id)
        if truth is None:
            without_truth += 1
            continue
        foreground |= truth.has_foreground
        try:
            for tally, (label, instances) in zip(tallies, labels.made(record, truth), strict=True):
                tally.add(label, instances, truth)
        except (ShapeError, DataError) as error:
            raise ArtifactError(
                f"{job.run.root}: the maps or scores of {record.image_id} do not match its ground-truth masks in "
                f"{data.origin} ({error}); name the data set they were made from"
            ) from error
        count += 1
    if not count:
        raise DataError(_nothing(job, data, without_truth, labels.remedy))
    require_foreground(foreground, count, data.origin)
    results = [tally.figures(with_instances=not params.cam) for tally in tallies]
    target = CAM_SWEEP if params.cam else SWEEP
    job.run.write(target, results)
    logger.info("protocol %s\n%s\n%s", params.protocol, sweep_table(results), job.run.path(target))
    return count


class _ScoreLabels:
    """Both labels of a picture from its kept scores, for every threshold."""

    remedy = "run stage synthesize_labels with --keep-scores"

    def __init__(self, job: Job[Params, DataSet]) -> None:
        self._run, self._thresholds = job.run, job.params.thresholds
        require_current(job.run, WALKED_SCORES.stage, (), job.data.leading_names)
        record = job.run.record(WALKED_SCORES.stage)
        made_with = {} if record is None else record.params
        names = [entry.name for entry in fields(LabelParams) if entry.name in made_with]
        self._params = LabelParams(**{name: made_with[name] for name in names})

    def has(self, image_id: str) -> bool:
        return self._run.has(WALKED_SCORES, image_id)

    def made(self, record: ImageRecord, truth: GroundTruth) -> Iterator[tuple[LabelArray, Instances]]:
        import torch

        from irn_pipeline.ops.labels import labels_over_thresholds

        require_current(self._run, WALKED_SCORES.stage, [record])
        scores = self._run.read(WALKED_SCORES, record.image_id)
        walked = torch.from_numpy(scores.maps).float()
        return labels_over_thresholds(walked, scores.class_ids, scores.size, self._thresholds, self._params)


class _CamLabels:
    """The semantic label of a picture's activation maps, for every threshold."""

    remedy = "run stage make_cam, or name the maps with --cam-dir"

    def __init__(self, job: Job[Params, DataSet]) -> None:
        self._cams, self._thresholds = CamSource.of(job), job.params.thresholds

    def has(self, image_id: str) -> bool:
        return self._cams.has(image_id)

    def made(self, record: ImageRecord, truth: GroundTruth) -> Iterator[tuple[LabelArray, None]]:
        from irn_pipeline.ops.cam import cam_index

        cam, _ = self._cams.read(record, (truth.label.shape[0], truth.label.shape[1]))
        index, best = cam_index(cam.high_res_cam, self._thresholds[0])
        for threshold in self._thresholds:
            yield label_from_index(np.where(best > threshold, index, 0), cam.class_ids), None


def sweep_table(results: list[dict[str, Any]]) -> str:
    """Figures of every threshold as aligned text, per cent; the best of each column is marked.

    Args:
        results: {"threshold", "miou", "ap50"} of each threshold; figures may be None or missing.
    """
    columns = [name for name in ("miou", "ap50") if name in results[0]]
    best = {
        name: max((entry[name] for entry in results if entry[name] is not None), default=None)
        for name in columns
    }
    lines = ["threshold" + "".join(f"{'mIoU' if name == 'miou' else name.upper():>8} " for name in columns)]
    for entry in results:
        cells = (
            f"{'-':>8} "
            if (value := entry[name]) is None
            else f"{100 * value:8.1f}{'*' if value == best[name] else ' '}"
            for name in columns
        )
        lines.append(f"{entry['threshold']:<9g}" + "".join(cells))
    return "\n".join(line.rstrip() for line in lines)


def _nothing(job: Job[Params, DataSet], data: DataSet, without_truth: int, remedy: str) -> str:
    kind = CAM.name if job.params.cam else f"kept {WALKED_SCORES.name}"
    if without_truth:
        return (
            f"{data.origin}: none of the {without_truth} images with {kind} has ground-truth masks to compare with; "
            "name images that have with --truth-list"
        )
    return f"{job.run.root}: there are no {kind} of the {len(data.items)} images; {remedy} first"


def _unread(params: Params) -> tuple[Artifact[Any], ...]:
    return (WALKED_SCORES, *cams_not_read(params)) if params.cam else (CAM,)


def _unused(params: Params) -> Mapping[str, str]:
    return {} if params.cam else {"cam_dir": "without --cam no activation maps are read"}


STAGE: ReduceStage[Params] = ReduceStage(
    name="sweep",
    summary="Evaluate many background thresholds on kept scores or activation maps.",
    params=Params,
    reads=(CAM, WALKED_SCORES),
    writes=(SWEEP, CAM_SWEEP),
    run=run,
    unread=_unread,
    unused=_unused,
)
