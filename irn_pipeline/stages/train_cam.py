"""Stage 1: a classifier of the image-level classes, whose features the activation maps come from (paper, section 3)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from irn_pipeline.artifacts import CAM_NETWORK, Checkpoint
from irn_pipeline.datasets.source import DataSet
from irn_pipeline.engine.stage import FitStage, Job
from irn_pipeline.held_out import class_scores, measure, split
from irn_pipeline.notices import flat_losses
from irn_pipeline.weight_files import (
    TrainingParams,
    is_trained,
    starting_point,
    weight_files,
    without_training,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Params(TrainingParams):
    """Parameters of the classifier's training."""

    frozen_stages: int = 3
    """Number of backbone stages to freeze; 3 freezes conv1, layer1 and layer2, 0 trains everything."""
    frozen_batch_norm: bool = True
    """Keep the running statistics of batch norms; scale and shift of the trained stages still learn. Use false when
    training from scratch."""
    long_side: tuple[int, ...] = (320, 640)
    """Range of the random long side of an image, in pixels: smallest and largest."""
    head_lr_factor: float = 10.0
    """Factor on the learning rate of the classifier."""
    head: Literal["trained", "probe"] = field(default="trained", metadata={"fingerprint": "unless default"})
    """trained: train backbone and classifier, as published. probe: fit only a linear classifier, in seconds, for few
    images."""
    recam: bool = field(default=False, metadata={"fingerprint": "unless default"})
    """Continue training with a second classifier on the region of each class (ReCAM, Chen et al., CVPR 2022)."""
    recam_epochs: int = field(default=4, metadata={"fingerprint": "unless default"})
    """--recam: passes over the image list."""
    recam_lr: float = field(default=5e-4, metadata={"fingerprint": "unless default"})
    """--recam: learning rate of the second classifier; everything else uses a tenth of it."""
    recam_weight: float = field(default=1.0, metadata={"fingerprint": "unless default"})
    """--recam: weight of the second classifier's loss; published values are 1 for VOC and 0.1 for COCO."""
    held_out: float = field(default=0.0, metadata={"fingerprint": "unless default"})
    """Fraction of the images to hold out from training, to check that their classes are recognised; 0 disables it. A
    probe is fitted again to all images after the check."""

    def __post_init__(self) -> None:
        if not 0 <= self.held_out <= 0.5:
            raise ValueError(
                f"held_out is {self.held_out}; it must be a fraction from 0 to 0.5 (0.2 works well)"
            )


_OF_TRAINING = (
    *("frozen_stages", "frozen_batch_norm", "recam", "epochs", "batch_size", "crop", "lr", "head_lr_factor"),
    *("optimizer", "momentum", "weight_decay", "max_gradient_norm"),
)
"""Parameters that a probe has no use for."""


def fit(job: Job[Params, DataSet]) -> int:
    """Train the classifier, or take the original's, and write its checkpoint."""
    import torch

    from irn_pipeline.cam_training import fit_linear_probe, train_classifier, train_recam
    from irn_pipeline.nn.backbone import load_backbone_weights
    from irn_pipeline.nn.cam_network import CamNetwork
    from irn_pipeline.nn.input_channels import take_channels
    from irn_pipeline.nn.original_names import load_original

    params = job.params
    name, weights = starting_point(job)
    images = job.data.readable(job, negatives=True)
    network = CamNetwork(
        num_classes=images.num_classes,
        backbone=name,
        frozen_stages=params.frozen_stages,
        frozen_batch_norm=params.frozen_batch_norm,
        centred_if_one_map=params.head == "probe",
    )
    take_channels(network, job.data.channels)
    if params.original_checkpoint is not None:
        load_original(network, Path(params.original_checkpoint))
        seen = 0
    else:
        images, kept_out = split(images, params.held_out, job.execution.seed)
        load_backbone_weights(network.backbone, weights)
        network.to(job.execution.torch_device(), memory_format=torch.channels_last)  # type: ignore[call-overload]
        scores = None
        if params.head == "probe":
            seen, scores = fit_linear_probe(job, network, images, kept_out)
        else:
            seen = train_classifier(job, network, images)
        if params.recam:
            seen += train_recam(job, network, images)
        if job.ranks.is_first:
            folder = job.run.stage_dir(STAGE.name)
            lines = list(flat_losses(folder))
            if kept_out:
                if scores is None:
                    long_side = (params.long_side[0] + params.long_side[-1]) / 2
                    scores = class_scores(network, kept_out, long_side, job.execution)
                untold = measure(scores, images.class_names, kept_out, folder)
                lines += [untold] if untold else []
            for line in lines:
                logger.warning("%s: %s", STAGE.name, line)
    state = {name: value.cpu() for name, value in network.state_dict().items()}
    job.write(CAM_NETWORK, Checkpoint("cam", name, images.class_names, state))
    return seen


def _unused(params: Params) -> Mapping[str, str]:
    found = dict(without_training(params, used=("backbone",)))
    if params.head == "probe":
        found |= dict.fromkeys(_OF_TRAINING, "--head probe fits the classifier alone, to features made once")
    if not params.recam:
        found |= dict.fromkeys(("recam_epochs", "recam_lr", "recam_weight"), "it is for --recam")
    return found


STAGE: FitStage[Params] = FitStage(
    name="train_cam",
    summary="Train a classifier on the image-level tags.",
    params=Params,
    version=2,
    writes=(CAM_NETWORK,),
    fit=fit,
    files=weight_files,
    runs_network=is_trained,
    unused=_unused,
)
