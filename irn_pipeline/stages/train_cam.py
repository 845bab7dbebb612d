"""Stage 1: a classifier of the image-level classes, whose features the activation maps come from (paper, section 3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from irn_pipeline.artifacts import CAM_NETWORK, Checkpoint
from irn_pipeline.datasets.samples import ClassificationSamples
from irn_pipeline.datasets.source import DataSet
from irn_pipeline.engine.stage import FitStage, Job
from irn_pipeline.engine.training import train
from irn_pipeline.nn.backbone import load_backbone_weights
from irn_pipeline.nn.cam_network import CamNetwork
from irn_pipeline.nn.original_names import load_original
from irn_pipeline.structures import ImageSet
from irn_pipeline.weight_files import (
    TrainingParams,
    is_trained,
    starting_point,
    weight_files,
    without_training,
)


@dataclass(frozen=True)
class Params(TrainingParams):
    """Parameters of the classifier's training."""

    frozen_stages: int = 3
    """Stages that never learn: 3 is conv1, layer1 and layer2; 0 lets everything learn."""
    frozen_batch_norm: bool = True
    """Keep the running statistics of batch norms; scale and shift of the learning stages learn. False from scratch."""
    long_side: tuple[int, ...] = (320, 640)
    """Smallest and largest random length of a picture's long side, pixels."""
    head_lr_factor: float = 10.0
    """The classifier learns this many times faster."""


def fit(job: Job[Params, DataSet]) -> int:
    """Train the classifier, or take the original's, and write its checkpoint."""
    params = job.params
    name, weights = starting_point(job)
    images = job.data.readable(job, negatives=True)
    network = CamNetwork(
        num_classes=images.num_classes,
        backbone=name,
        frozen_stages=params.frozen_stages,
        frozen_batch_norm=params.frozen_batch_norm,
    )
    if params.original_checkpoint is not None:
        load_original(network, Path(params.original_checkpoint))
        seen = 0
    else:
        seen = _train(job, network, images, weights)
    state = {name: value.cpu() for name, value in network.state_dict().items()}
    job.write(CAM_NETWORK, Checkpoint("cam", name, images.class_names, state))
    return seen


def _train(job: Job[Params, DataSet], network: CamNetwork, images: ImageSet, weights: str) -> int:
    params, execution = job.params, job.execution
    device = execution.torch_device()
    load_backbone_weights(network.backbone, weights)
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def losses_of(batch: Any, _progress: float) -> dict[str, Tensor]:
        pictures, classes = (part.to(device, non_blocking=True) for part in batch)
        with execution.autocast():
            scores = network(pictures.to(memory_format=torch.channels_last))
        return {"classification": F.multilabel_soft_margin_loss(scores.float(), classes)}

    return train(
        network=network,
        param_groups=network.param_groups(params.lr, params.head_lr_factor),
        dataset=ClassificationSamples(
            images,
            long_side=(params.long_side[0], params.long_side[-1]),
            crop=params.crop,
            seed=execution.seed,
        ),
        losses_of=losses_of,
        schedule=params.schedule,
        execution=execution,
        ranks=job.ranks,
        folder=job.run.stage_dir(STAGE.name),
        name=STAGE.name,
    )


def _unused(params: Params) -> Mapping[str, str]:
    return without_training(params, used=("backbone",))


STAGE: FitStage[Params] = FitStage(
    name="train_cam",
    summary="Train a classifier of the image-level classes.",
    params=Params,
    version=2,
    writes=(CAM_NETWORK,),
    fit=fit,
    files=weight_files,
    runs_network=is_trained,
    unused=_unused,
)
