"""Which segmentation model the last stages train and run, and how it is built from its parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from irn_pipeline.nn.backbone import BackboneName
from irn_pipeline.nn.segmenters.mask_rcnn import MaskRcnnSegmenter
from irn_pipeline.runtime.training import OptimizerName


@dataclass(frozen=True)
class SegmenterParams:
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
    optimizer: OptimizerName = "sgd"
    """sgd as published, or adamw (for training from scratch; momentum is its own then)."""
    momentum: float = 0.9
    """SGD momentum."""
    weight_decay: float = 1e-4
    """L2 penalty."""
    max_gradient_norm: float = 10.0
    """Longer gradients are shortened to this norm; 0 for never."""


def build_segmenter(params: SegmenterParams, num_classes: int) -> MaskRcnnSegmenter:
    """The model that the parameters describe, untrained."""
    return MaskRcnnSegmenter(
        num_classes=num_classes,
        backbone=params.backbone,
        short_side=params.short_side,
        long_side=params.long_side,
        boxes_per_image=params.boxes_per_image,
    )
