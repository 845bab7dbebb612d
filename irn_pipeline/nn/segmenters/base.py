"""The interface of every model that learns from labels, whatever it is inside."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from irn_pipeline.errors import ConfigError, DataError, ShapeError
from irn_pipeline.nn.backbone import NUM_STAGES, Backbone
from irn_pipeline.nn.input_channels import take_channels
from irn_pipeline.structures import Instances, LabelArray

_STAGE_IN_NAME = re.compile(r"(?:^|\.)body\.(?:conv1|bn1|layer([1-4]))\.")
"""A parameter of the torchvision ResNet inside a Mask R-CNN; the layers carry their number."""


_HEAD_LR_FACTOR = 10.0
"""DeepLab v2, section 4."""


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

    starts_from: ClassVar[str] = ""
    """Kind of the trained network that `load_trained` takes."""
    heads: ClassVar[tuple[str, ...]] = ()
    """Names of the parts that learn ten times as fast, since they start at random."""

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
            ConfigError: the model is built on another backbone, or on none.
        """
        own = next((module for module in self.modules() if isinstance(module, Backbone)), None)
        if own is None:
            raise ConfigError(
                f"{type(self).__name__} has no backbone to fill; use --backbone-weights none, or another --backbone"
            )
        if own.name != source.name:
            raise ConfigError(
                f"the weights are of a {source.name}, the model has a {own.name}; use --backbone {source.name}, or "
                "other weights"
            )
        own.load_state_dict(source.state_dict())

    def load_trained(self, state: Mapping[str, Tensor]) -> None:
        """Start from the weights of a trained network of kind `starts_from`.

        Raises:
            ConfigError: the model cannot start from another one.
            CheckpointError: the weights do not fit.
        """
        raise ConfigError(f"{type(self).__name__} cannot start from another trained network")

    def take_channels(self, channels: int) -> None:
        """See pictures of another number of channels than three (`nn.input_channels`)."""
        take_channels(self, channels)

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
        """Optimiser groups: what learns at `lr`, and the `heads` at ten times that."""
        learning = [(name.split(".")[0], p) for name, p in self.named_parameters() if p.requires_grad]
        slow, fast = ([p for name, p in learning if (name in self.heads) is fast] for fast in (False, True))
        return [{"params": slow, "lr": lr}, *([{"params": fast, "lr": _HEAD_LR_FACTOR * lr}] if fast else [])]


def stack_padded(values: Sequence[Tensor], fill: float = 0.0) -> Tensor:
    """One batch (B, ..., H, W) of pictures or labels of several sizes, filled up to the right and below."""
    height, width = (max(value.shape[axis] for value in values) for axis in (-2, -1))
    return torch.stack(
        [
            pad(value, (0, width - value.shape[-1], 0, height - value.shape[-2]), value=fill)
            for value in values
        ]
    )


def check_target(target: Target, num_classes: int, size: tuple[int, int]) -> None:
    """Refuse what cannot be learned.

    Args:
        target: of one picture.
        num_classes: classes that the model knows.
        size: (H, W) of the picture.

    Raises:
        ShapeError: the target is of another size, or its parts do not fit.
        DataError: an instance is of a class that the model does not know.
    """
    height, width = size
    if target.masks.ndim != 3 or target.masks.shape[1:] != size or target.ignore.shape != size:
        raise ShapeError(
            f"a target of a {height}x{width} image needs masks (R, {height}, {width}) and ignore {size}, "
            f"got {tuple(target.masks.shape)} and {tuple(target.ignore.shape)}"
        )
    if not target.class_ids.shape == target.weights.shape == target.masks.shape[:1]:
        raise ShapeError(
            f"{len(target.masks)} masks need as many class_ids and weights, "
            f"got {tuple(target.class_ids.shape)} and {tuple(target.weights.shape)}"
        )
    wrong = [c for c in target.class_ids.tolist() if not 0 <= c < num_classes]
    if wrong:
        raise DataError(
            f"an instance has the class id {wrong[0]}, but the model knows the classes 0..{num_classes - 1}; "
            "make the labels and the model with the same list of classes"
        )


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
