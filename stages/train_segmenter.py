"""Stage 6: an instance segmentation model learns from the synthesized labels (paper, section 6.4)."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from irn_pipeline.artifacts import CAM_NETWORK, INSTANCE_LABEL, SEGMENTER, Checkpoint
from irn_pipeline.datasets.samples import InstanceSamples, SegmentationTarget, collate_lists
from irn_pipeline.errors import DataError
from irn_pipeline.nn.backbone import Backbone, BackboneName, load_backbone_weights
from irn_pipeline.nn.segmenters.mask_rcnn import MaskRcnnSegmenter
from irn_pipeline.runtime.stage import FitStage, Job
from irn_pipeline.runtime.training import Schedule, finish_training, train
from irn_pipeline.structures import ImageRecord
from stages._source import DataSet

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Params:
    """Parameters of the segmentation model and its training."""

    model: Literal["mask_rcnn"] = "mask_rcnn"
    """Which model."""
    backbone: BackboneName = "resnet50"
    """Which torchvision ResNet, with a feature pyramid."""
    backbone_weights: str = "imagenet"
    """Start from: imagenet (downloaded), a state dict's path, none, or cam (what train_cam has learned)."""
    epochs: int = 7
    """Passes over the list."""
    batch_size: int = 4
    """Pictures a step."""
    short_side: int = 512
    """Pictures are resized to this short side, pixels."""
    long_side: int = 800
    """And at most to this long side, pixels."""
    rescale: tuple[float, ...] = (1.0, 1.0)
    """Smallest and largest random scale before that."""
    boxes_per_image: int = 512
    """Sampled boxes a picture in training."""
    lr: float = 0.01
    """Learning rate."""
    momentum: float = 0.9
    """SGD momentum."""
    weight_decay: float = 1e-4
    """L2 penalty."""
    max_gradient_norm: float = 10.0
    """Longer gradients are shortened to this norm; 0 for never."""


def fit(job: Job[Params, DataSet]) -> int:
    """Train the model on the pictures that have an instance and write its checkpoint."""
    params, execution = job.params, job.execution
    device = execution.torch_device()
    network = build(params, job.data.images.num_classes)
    backbone = Backbone(name=params.backbone)
    weights = params.backbone_weights
    load_backbone_weights(backbone, str(job.run.path(CAM_NETWORK)) if weights == "cam" else weights)
    network.load_backbone(backbone)
    network.to(device)
    records = _labelled(job)

    def losses_of(batch: Any) -> dict[str, Tensor]:
        images, targets = batch
        moved = [SegmentationTarget(t.masks.to(device), t.class_ids.to(device), t.weights.to(device)) for t in targets]
        with execution.autocast():
            losses = network.losses([image.to(device) for image in images], moved)
        return losses

    seen = train(
        network=network,
        param_groups=network.param_groups(params.lr),
        dataset=InstanceSamples(
            records,
            read_instances=lambda image_id: job.run.read(INSTANCE_LABEL, image_id),
            scales=(params.rescale[0], params.rescale[-1]),
            seed=execution.seed,
        ),
        losses_of=losses_of,
        schedule=Schedule(
            params.epochs, params.batch_size, params.momentum, params.weight_decay,
            max_gradient_norm=params.max_gradient_norm,
        ),
        execution=execution,
        folder=job.run.stage_dir(STAGE.name),
        name=STAGE.name,
        collate=collate_lists,
    )  # fmt: skip
    state = {name: value.cpu() for name, value in network.state_dict().items()}
    job.run.write(SEGMENTER, Checkpoint(params.model, params.backbone, job.data.images.class_names, state))
    finish_training(job.run.stage_dir(STAGE.name))
    return seen


def build(params: Params, num_classes: int) -> MaskRcnnSegmenter:
    """The model that the parameters describe, untrained."""
    return MaskRcnnSegmenter(
        num_classes=num_classes,
        backbone=params.backbone,
        short_side=params.short_side,
        long_side=params.long_side,
        boxes_per_image=params.boxes_per_image,
    )


def _labelled(job: Job[Params, DataSet]) -> tuple[ImageRecord, ...]:
    """Pictures with at least one instance of positive score; the others teach nothing."""
    kept: list[ImageRecord] = []
    missing = empty = 0
    for record in job.data.images.records:
        if not job.run.has(INSTANCE_LABEL, record.image_id):
            missing += 1
        elif (job.run.read(INSTANCE_LABEL, record.image_id).scores >= 1e-5).any():
            kept.append(record)
        else:
            empty += 1
    if missing or empty:
        logger.warning("left out: %d pictures without labels, %d whose labels hold no instance", missing, empty)
    if not kept:
        raise DataError(
            f"{job.run.stage_dir(INSTANCE_LABEL.stage)}: not one instance label to train on; run stage "
            f"{INSTANCE_LABEL.stage} on these pictures first, or lower its --instance-bg-threshold"
        )
    return tuple(kept)


STAGE = FitStage(
    name="train_segmenter",
    summary="Train Mask R-CNN on the synthesized instance labels.",
    params=Params,
    reads=(INSTANCE_LABEL,),
    writes=(SEGMENTER,),
    fit=fit,
)

if __name__ == "__main__":
    from stages.__main__ import stage_main

    raise SystemExit(stage_main("train_segmenter"))
