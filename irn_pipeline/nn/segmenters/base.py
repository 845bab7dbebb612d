"""The interface of every model that learns from labels, whatever it is inside."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from torch import Tensor, nn

from irn_pipeline.errors import ConfigError
from irn_pipeline.nn.backbone import NUM_STAGES, Backbone
from irn_pipeline.structures import Instances, LabelArray

_STAGE_IN_NAME = re.compile(r"(?:^|\.)body\.(?:conv1|bn1|layer([1-4]))\.")
"""A parameter of the torchvision ResNet inside a Mask R-CNN; the layers carry their number."""


class Target(Protocol):
    """What a model learns from one picture (see `datasets.mask_samples.SegmentationTarget`)."""

    @property
    def masks(self) -> Tensor:
        """(R, H, W) bool, disjoint."""
        ...

    @property
    def class_ids(self) -> Tensor:
        """(R,) int64 in 0..C-1."""
        ...

    @property
    def weights(self) -> Tensor:
        """(R,) float32 in [0, 1]: how far each instance is to be trusted; 1 for true masks."""
        ...

    @property
    def ignore(self) -> Tensor:
        """(H, W) bool: pixels of which nothing is known."""
        ...

    @property
    def label(self) -> Tensor:
        """(H, W) uint8 semantic label: 0 background, class_id + 1, 255 ignore."""
        ...


class Segmenter(nn.Module, ABC):
    """A network that learns masks; it is trained in `train()` mode and asked in `eval()` mode.

    Layers may run under bf16 autocast; whoever implements `losses` computes them in float32.

    Args:
        num_classes: foreground classes C.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    @abstractmethod
    def losses(
        self, images: Sequence[Tensor], targets: Sequence[Target], progress: float = 0.0
    ) -> dict[str, Tensor]:
        """Named losses of a batch; their sum is minimised.

        Args:
            images: (3, H, W) float32 pictures in [0, 1]; sizes may differ unless the model is trained on crops.
            targets: one for each picture, at its size; a picture may hold no instance.
            progress: fraction of the training that is done, in [0, 1), for schedules inside a loss.

        Returns:
            Float32 scalars, finite and differentiable for every input, the empty picture included.
        """

    @abstractmethod
    def predict(self, image: Tensor) -> Instances:
        """Instances of one (3, H, W) float32 picture in [0, 1], at its own size, best first, at most 100."""

    def predict_with_label(self, image: Tensor, min_score: float = 0.5) -> tuple[Instances, LabelArray]:
        """What `predict` gives, and the picture's semantic label, from one pass of the network.

        Args:
            image: (3, H, W) float32 picture in [0, 1].
            min_score: instances below it are not painted.

        Returns:
            All instances; and the label, (H, W) uint8: by default the instances painted, the best on top.
        """
        found = self.predict(image)
        return found, paint(found, min_score=min_score)

    def load_backbone(self, source: Backbone) -> None:
        """Start from the weights of a backbone.

        Raises:
            ConfigError: the model has no backbone inside.
        """
        raise ConfigError(
            f"{type(self).__name__} has no backbone to fill; use --backbone-weights none, or another --backbone"
        )

    def freeze_stages(self, count: int) -> None:
        """Let the first stages of the backbone (of a ResNet conv1, then the four layers) learn nothing more.

        Raises:
            ConfigError: there are no so many stages, or the model is built on no backbone.
        """
        if not 0 <= count <= NUM_STAGES:
            raise ConfigError(f"frozen_stages must be 0 to {NUM_STAGES}, got {count}")
        found = False
        for name, parameter in self.named_parameters():
            stage = _STAGE_IN_NAME.search(name)
            if stage is not None and int(stage[1] or 0) < count:
                parameter.requires_grad_(False)
                found = True
        for module in self.modules():
            if isinstance(module, Backbone):
                module.freeze_stages(count)
                found = True
        if count and not found:
            raise ConfigError("frozen_stages is for models that are built on a backbone; leave it at 0")

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """Optimiser groups: here one with everything that learns."""
        return [{"params": [p for p in self.parameters() if p.requires_grad], "lr": lr}]


def paint(instances: Instances, min_score: float = 0.0) -> LabelArray:
    """Semantic label of instances: the better score wins where they overlap.

    Args:
        instances: (R, H, W) masks with scores.
        min_score: instances below it are left out.

    Returns:
        (H, W) uint8: 0 background, class_id + 1.
    """
    label = np.zeros(instances.size, np.uint8)
    for index in np.argsort(instances.scores, kind="stable"):
        if instances.scores[index] >= min_score:
            label[instances.masks[index]] = instances.class_ids[index] + 1
    return label
