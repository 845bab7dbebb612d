"""Compare maps, labels and the trained model with true masks: JSON first, one table after it (paper, section 6)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from irn_pipeline.artifacts import INSTANCE_LABEL, METRICS, SEMANTIC_LABEL
from irn_pipeline.cam_source import CamSource, cams_not_read
from irn_pipeline.datasets.source import DataSet
from irn_pipeline.engine.progress import progress
from irn_pipeline.engine.stage import Job, ReduceStage
from irn_pipeline.engine.store import require_same_classes
from irn_pipeline.errors import ArtifactError, CheckpointError, ConfigError, DataError, ShapeError
from irn_pipeline.evaluation import (
    REMOVED,
    InstanceTally,
    ProtocolName,
    SemanticTally,
    log_without_instances,
    model_figures,
    require_foreground,
    table,
)
from irn_pipeline.models import AskedParams, require_asked
from irn_pipeline.older_runs import read_converted, rotation_hint
from irn_pipeline.ops.cam import cam_components, cam_label
from irn_pipeline.trained_networks import load_segmenter, trained_variants

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Params(AskedParams):
    """Parameters of the evaluation."""

    truth_list: str | None = None
    """Images whose labels are evaluated; same format as --image-list. Default: all images with ground-truth masks."""
    heldout_list: str | None = None
    """Images on which the trained models are evaluated. Default: those of an explicit --image-list."""
    models: tuple[str, ...] = ()
    """Trained models to evaluate, by folder name below train_segmenter. Default: all."""
    cam_threshold: float = 0.15
    """Background threshold for turning activation maps into a label."""
    component_threshold: float = 0.25
    """Background threshold for cutting activation maps into components (the baseline without IRNet)."""
    protocol: ProtocolName = "voc"
    """Evaluation rules: voc ignores void pixels (255), original reproduces irn's scripts, coco is COCO's
    evaluation."""
    cam_dir: str | None = None
    """Folder of another project's CAM files (ID.npy), used instead of the maps of make_cam."""

    REMOVED: ClassVar[Mapping[str, str]] = REMOVED


def run(job: Job[Params, DataSet]) -> int:
    """Evaluate whatever of the run folder there is and write `metrics.json`."""
    data = job.data if job.params.truth_list is None else job.data.with_list(job.params.truth_list)
    figures: dict[str, Any] = {}
    count = _evaluate_labels(job, data, figures)
    figures |= _evaluate_models(job)
    if not figures:
        raise DataError(_nothing(job, data, count))
    models = {k.removeprefix("segmenter."): v for k, v in figures.items() if k.startswith("segmenter.")}
    labels = {k: v for k, v in figures.items() if not k.startswith("segmenter.")}
    content: dict[str, Any] = {"protocol": job.params.protocol, "pictures": count, **labels}
    if models:
        # `segmenter` is the first of `segmenters`, for those who train a single one.
        content |= {"segmenter": next(iter(models.values())), "segmenters": models}
    elif trained := trained_variants(job.run):
        logger.info("%s", _heldout_needed(trained))
    job.run.write(METRICS, content)
    logger.info("%s\n%s", table(figures, job.params.protocol), job.run.path(METRICS))
    return count


def _evaluate_labels(job: Job[Params, DataSet], data: DataSet, figures: dict[str, Any]) -> int:
    names, params = data.images.class_names, job.params
    require_same_classes(job.run, names, data.origin, SEMANTIC_LABEL.stage)
    semantic = {name: SemanticTally(names, protocol=params.protocol) for name in ("cam", "semantic_label")}
    instance = {
        name: InstanceTally(names, protocol=params.protocol) for name in ("cam_components", "instance_label")
    }
    cams = CamSource.of(job)
    count, foreground = 0, False
    for record in progress(data.items, STAGE.name, quiet=job.execution.quiet):
        image_id = record.image_id
        truth = data.ground_truth(image_id)
        if truth is None:
            continue
        count += 1
        foreground |= truth.has_foreground
        try:
            if cams.has(image_id):
                cam, _ = cams.read(record, (truth.label.shape[0], truth.label.shape[1]))
                semantic["cam"].add(cam_label(cam.high_res_cam, cam.class_ids, params.cam_threshold), truth)
                parts = cam_components(cam.high_res_cam, cam.class_ids, params.component_threshold)
                instance["cam_components"].add(parts, truth)
            if job.run.has(SEMANTIC_LABEL, image_id):
                read = partial(read_converted, job.run, record=record, leading_names=data.leading_names)
                semantic["semantic_label"].add(read(SEMANTIC_LABEL), truth)
                instance["instance_label"].add(read(INSTANCE_LABEL), truth)
        except (ShapeError, DataError) as error:
            raise ArtifactError(
                f"{job.run.root}: the maps or labels of {image_id} do not match its ground-truth masks in "
                f"{data.origin} ({error}{rotation_hint(record)}); evaluate them on the data set they were made from"
            ) from error
    require_foreground(foreground, count, data.origin)
    for name, what in (("cam", "activation maps"), ("semantic_label", "labels")):
        if 0 < semantic[name].count < count:
            logger.warning(
                "%d of the %d images with ground-truth masks have no %s: the figures cover the other %d",
                count - semantic[name].count,
                count,
                what,
                semantic[name].count,
            )
    log_without_instances(max(instance.values(), key=lambda tally: tally.without_instances))
    tallies: dict[str, SemanticTally | InstanceTally] = {**semantic, **instance}
    figures.update({name: tally.report() for name, tally in tallies.items() if tally.count})
    return count


def _nothing(job: Job[Params, DataSet], data: DataSet, count: int) -> str:
    """Why there is nothing to evaluate, and what to do."""
    reason = (
        f"{data.origin}: none of its {len(data.items)} images has ground-truth masks to compare maps and labels with "
        "(SegmentationClass in a VOC folder, segmentations in a COCO file, gtFine; a table of tags has none)"
    )
    if count:
        reason = (
            f"{job.run.root}: holds no maps or labels of the {count} images with ground-truth masks in {data.origin}; "
            "run stage make_cam or synthesize_labels first"
        )
    trained = trained_variants(job.run)
    return f"{job.run.root}: {_heldout_needed(trained)}. For the labels: {reason}" if trained else reason


def _heldout_needed(trained: Sequence[str]) -> str:
    return (
        f"the trained models ({', '.join(trained)}) are evaluated on images held out from training only: name some "
        "with ground-truth masks by --heldout-list: a text file with one image id per line, or a list in ImageSets"
    )


def _evaluate_models(job: Job[Params, DataSet]) -> dict[str, dict[str, Any]]:
    """Figures of every trained model that was asked for, as `segmenter.NAME`."""
    trained = trained_variants(job.run)
    wanted = job.params.models or trained
    unknown = [name for name in wanted if name not in trained]
    if unknown:
        raise ConfigError(
            f"--models {unknown[0]}: no such model in {job.run.root}; trained are {', '.join(trained) or 'none'}"
        )
    require_asked(wanted, job.params)
    if job.params.heldout_list is not None:
        pictures = job.data.with_list(job.params.heldout_list)
    elif job.data.listed:
        pictures = job.data
    else:
        return {}
    figures: dict[str, dict[str, Any]] = {}
    for name in wanted:
        model, checkpoint = load_segmenter(job.run, name, job.execution, job.params)
        if checkpoint.class_names != job.data.images.class_names:
            raise CheckpointError(
                f"{job.run.root}: {name} knows the classes {', '.join(checkpoint.class_names)}, the data set has "
                f"{', '.join(job.data.images.class_names)}; evaluate it on the data it was trained for"
            )
        figures[f"segmenter.{name}"] = model_figures(
            model, pictures, job.execution, protocol=job.params.protocol
        )
    return figures


STAGE: ReduceStage[Params] = ReduceStage(
    name="evaluate",
    summary="Evaluate maps, labels and trained models against ground-truth masks.",
    params=Params,
    writes=(METRICS,),
    run=run,
    unread=cams_not_read,
)
