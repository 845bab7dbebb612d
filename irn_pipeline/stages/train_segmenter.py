"""Stage 6: a segmentation model learns from the synthesized labels (paper, section 6.4)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from irn_pipeline.artifacts import (
    CAM_NETWORK,
    INSTANCE_LABEL,
    SEGMENTER,
    SEMANTIC_LABEL,
    Checkpoint,
    read_checkpoint,
)
from irn_pipeline.datasets.images import read_image_size
from irn_pipeline.datasets.source import DataSet
from irn_pipeline.engine.optimisation import Schedule
from irn_pipeline.engine.stage import Files, FitStage, Job
from irn_pipeline.engine.store import RESUME_NAME, Artifact
from irn_pipeline.errors import CheckpointError, ConfigError, DataError
from irn_pipeline.evaluation import model_figures
from irn_pipeline.models import (
    SegmenterParams,
    build_segmenter,
    first_of,
    later_phases,
    original_of,
    recipe_of,
    start_of,
    unused_parameters,
    variant_of,
    weights_of,
)
from irn_pipeline.older_runs import require_current
from irn_pipeline.ops.cutouts import CutTruth
from irn_pipeline.ops.targets import training_target
from irn_pipeline.structures import ImageRecord, IntArray
from irn_pipeline.trained_networks import segmenter_artifact
from irn_pipeline.weight_files import backbone_files, starting_point

if TYPE_CHECKING:
    from torch import Tensor, nn

    from irn_pipeline.datasets.mask_samples import MaskSamples, PhasedSamples
    from irn_pipeline.nn.segmenters.base import Segmenter

logger = logging.getLogger(__name__)


def fit(job: Job[SegmenterParams, DataSet]) -> int:
    """Train the model on the pictures that have an instance, or take the authors' weights; write its checkpoint."""
    params = job.params
    if (original := original_of(params)) is not None:
        params, seen = replace(params, backbone="erfnet", frozen_stages=0), 0
        network = _original(params, job.data.images.num_classes, Path(original))
    else:
        if start_of(params) is None:
            name, weights = starting_point(job)
            params = replace(params, backbone=name, backbone_weights=weights)
        seen, first = 0, first_of(params)
        folder = job.run.stage_dir(segmenter_artifact(variant_of(params)).stage)
        if first is None:
            network = _start(job, params)
        else:
            # It is left as it is after an interruption: its training ends at once, with the same weights.
            plain = _start(job, first)
            seen = _train(replace(job, params=first), plain, folder / "first")
            network = build_segmenter(params, job.data.images.num_classes)
            network.load_trained(plain.state_dict())
        seen += _train(job, network, folder)
        (folder / "first" / RESUME_NAME).unlink(missing_ok=True)
    state = {name: value.cpu() for name, value in network.state_dict().items()}
    names, category_ids = job.data.images.class_names, job.data.category_ids
    job.write(
        segmenter_artifact(variant_of(params)),
        Checkpoint(params.model, params.backbone, names, state, category_ids),
    )
    return seen


def _original(params: SegmenterParams, num_classes: int, path: Path) -> Segmenter:
    from irn_pipeline.nn.original_names import load_original_spatial

    network = build_segmenter(params, num_classes)
    load_original_spatial(network, path)
    return network


def _train(job: Job[SegmenterParams, DataSet], network: Segmenter, folder: Path) -> int:
    """Returns how many pictures were seen."""
    from irn_pipeline.datasets.mask_samples import collate_lists
    from irn_pipeline.engine.training import train

    params, recipe, execution = job.params, recipe_of(job.params), job.execution
    device, later = execution.torch_device(), later_phases(params, job.ranks.count)
    network.to(device)

    def losses_of(batch: Any, progress: float) -> dict[str, Tensor]:
        images, targets = batch
        with execution.autocast():
            return network.losses(
                [image.to(device) for image in images], [target.to(device) for target in targets], progress
            )

    return train(
        network=network,
        param_groups=network.param_groups(recipe.lr),
        dataset=samples(job),
        losses_of=losses_of,
        schedule=Schedule(
            recipe.epochs, recipe.batch_size, params.momentum, params.weight_decay,
            milestones=recipe.milestones,
            power=recipe.power,
            warmup_steps=0 if later else params.warmup_steps,
            later=later,
            max_gradient_norm=params.max_gradient_norm,
            optimizer=recipe.optimizer,
            ema_decay=params.ema_decay,
            patience=params.patience,
        ),
        execution=execution,
        ranks=job.ranks,
        folder=folder,
        name=f"{STAGE.name} {variant_of(params)}",
        collate=collate_lists,
        picture_names=lambda batch: [target.image_id for target in batch[1]],
        after_epoch=partial(_validate, job) if params.validate_list else None,
        judged_by=("ap", "miou"),
    )  # fmt: skip


def samples(job: Job[SegmenterParams, DataSet]) -> MaskSamples | PhasedSamples:
    """Pictures and targets as the model learns from them."""
    from irn_pipeline.datasets.mask_samples import MaskSamples, PhasedSamples

    recipe, records = recipe_of(job.params), _labelled(job)
    first = MaskSamples(
        records,
        read_target=partial(_target, job),
        scales=(recipe.rescale[0], recipe.rescale[-1]),
        crop=recipe.crop,
        object_centred=recipe.object_centred,
        seed=job.execution.seed,
    )
    _tell_large_crops(records, max((recipe.crop, *job.params.phase_crops)), recipe.rescale[-1])
    if not job.params.phase_crops:
        return first
    later = (first.with_crop(crop, object_centred=0.5) for crop in job.params.phase_crops[1:])
    return PhasedSamples((first, *later), job.params.phase_epochs)


def _tell_large_crops(records: Sequence[ImageRecord], crop: int, scale: float) -> None:
    """Say that crops are larger than every picture, also one that is enlarged by the largest scale."""
    longest = max(max(read_image_size(record.path, record.orientation)) for record in records)
    if longest * scale < crop:
        logger.warning(
            "crops of %d pixels are larger than every image (the longest side is %d): the rest of a crop is padding, "
            "which is not learned from; smaller crops train faster",
            *(crop, longest),
        )


def _start(job: Job[SegmenterParams, DataSet], params: SegmenterParams) -> Segmenter:
    from irn_pipeline.nn.backbone import build_backbone, load_backbone_weights
    from irn_pipeline.nn.input_channels import take_channels

    network = build_segmenter(params, job.data.images.num_classes, channels=job.data.channels)
    if (start := start_of(params)) is not None:
        found = read_checkpoint(Path(start))
        names = job.data.images.class_names
        if found.kind != network.starts_from or found.class_names != names:
            raise CheckpointError(
                f"{start}: holds a network of kind '{found.kind}' for the classes "
                f"{', '.join(found.class_names) or '(none)'}; --start-from needs a {network.starts_from} for "
                f"{', '.join(names)}"
            )
        network.load_trained(found.state)
        return network
    weights = weights_of(params)
    if weights != "none":
        if params.backbone == "erfnet":
            raise ConfigError("erfnet starts from random weights: add --backbone-weights none")
        backbone = take_channels(build_backbone(params.backbone), job.data.channels)
        load_backbone_weights(backbone, weights)
        network.load_backbone(backbone)
    return network


def _target(job: Job[SegmenterParams, DataSet], image_id: str) -> CutTruth:
    if job.params.labels == "truth":
        truth = job.data.cut_truth(image_id)
        if truth is None:  # cannot be: see _labelled
            raise DataError(f"{image_id}: has no ground-truth masks")
        return truth
    target = training_target(
        job.run.read(INSTANCE_LABEL, image_id),
        job.run.read(SEMANTIC_LABEL, image_id),
        band=job.params.ignore_band,
    )
    return CutTruth.of(target)


def _labelled(job: Job[SegmenterParams, DataSet]) -> tuple[ImageRecord, ...]:
    """Pictures with at least one instance of positive score; the others teach nothing."""
    kept: list[ImageRecord] = []
    seen: set[int] = set()
    missing = empty = 0
    for record in job.data.readable(job).records:
        class_ids = _class_ids(job, record.image_id)
        if class_ids is None:
            missing += 1
        elif not len(class_ids):
            empty += 1
        else:
            kept.append(record)
            seen.update(class_ids.tolist())
    if missing or empty:
        kind = "ground-truth masks" if job.params.labels == "truth" else "labels"
        logger.warning("left out: %d images without %s, %d without an object in them", missing, kind, empty)
    if not kept and job.params.labels == "truth":
        raise DataError(
            f"{job.data.origin}: no ground-truth mask of an object in the {missing + empty} images to train on; "
            "--labels truth needs SegmentationClass and SegmentationObject in a VOC folder, a COCO file with masks, or "
            "Cityscapes; a table of tags has none"
        )
    if not kept:
        raise DataError(
            f"{job.run.stage_dir(INSTANCE_LABEL.stage)}: no instance labels to train on; run stage "
            f"{INSTANCE_LABEL.stage} on these images first, or lower its --instance-bg-threshold"
        )
    if job.params.labels != "truth":
        require_current(job.run, INSTANCE_LABEL.stage, kept, job.data.leading_names)
    lacking = [name for index, name in enumerate(job.data.images.class_names) if index not in seen]
    if lacking:
        logger.warning("no instance of %s in the labels: the model cannot learn them", ", ".join(lacking))
    return tuple(kept)


def _class_ids(job: Job[SegmenterParams, DataSet], image_id: str) -> IntArray | None:
    """Classes of the instances to learn from, without fragments; None where the picture has no labels."""
    if job.params.labels == "truth":
        truth = job.data.cut_truth(image_id)
        return None if truth is None else truth.objects.class_ids
    if not job.run.has(INSTANCE_LABEL, image_id):
        return None
    return job.run.read(INSTANCE_LABEL, image_id).without_fragments().class_ids


def _validate(
    job: Job[SegmenterParams, DataSet], epochs_done: int, network: nn.Module
) -> Mapping[str, float]:
    from irn_pipeline.nn.segmenters.base import Segmenter

    params = job.params
    last = recipe_of(params).epochs + sum(phase.epochs for phase in later_phases(params))
    if params.validate_list is None or (epochs_done % params.validate_every and epochs_done != last):
        return {}
    if not isinstance(network, Segmenter):
        raise TypeError(f"{type(network).__name__} is not a segmenter")
    figures = model_figures(network, job.data.with_list(params.validate_list), job.execution)
    figures["ap"] = figures.get("coco", {}).get("ap")
    found = {key: figures[key] for key in ("miou", "ap", "ap50", "ap75") if figures.get(key) is not None}
    logger.info("after epoch %d: %s", epochs_done, ", ".join(f"{k} {100 * v:.1f}" for k, v in found.items()))
    return found


def _unread(params: SegmenterParams) -> tuple[Artifact[Any], ...]:
    if original_of(params) is not None:
        return INSTANCE_LABEL, SEMANTIC_LABEL, CAM_NETWORK
    labels = (INSTANCE_LABEL, SEMANTIC_LABEL) if params.labels == "truth" else ()
    return labels if weights_of(params) == "cam" else (*labels, CAM_NETWORK)


def _files(job: Job[SegmenterParams, DataSet]) -> Mapping[str, tuple[Files, ...]]:
    if (original := original_of(job.params)) is not None:
        return {"original_checkpoint": (Files.one(original),)}
    if (start := start_of(job.params)) is not None:
        return {"start_from": (Files.one(start),)}
    return backbone_files(weights_of(job.params))


STAGE: FitStage[SegmenterParams] = FitStage(
    name="train_segmenter",
    summary="Train a segmentation model on the synthesized labels or on ground-truth masks.",
    params=SegmenterParams,
    reads=(INSTANCE_LABEL, SEMANTIC_LABEL, CAM_NETWORK),
    writes=(SEGMENTER,),
    fit=fit,
    variant=variant_of,
    version=2,
    unread=_unread,
    files=_files,
    runs_network=lambda params: original_of(params) is None,
    unused=unused_parameters,
)
