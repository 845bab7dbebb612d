"""What the module of a segmentation model declares, and the parameters that several models share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from irn_pipeline.engine.optimisation import OptimizerName

if TYPE_CHECKING:
    from irn_pipeline.nn.segmenters.base import Segmenter


@dataclass(frozen=True)
class Recipe:
    """How a model is trained where the parameters do not say.

    Attributes:
        epochs: passes over the list.
        batch_size: pictures a step.
        lr: learning rate.
        optimizer: sgd, adamw or adam.
        milestones: fractions of the training at which the rate is divided by 10; without any it falls steadily.
        power: how it falls then (see `Schedule`).
        crop: side of the training crops, pixels; 0 for whole pictures.
        rescale: smallest and largest random scale.
        object_centred: share of the crops that are centred on an object.
    """

    epochs: int
    batch_size: int
    lr: float
    optimizer: OptimizerName
    milestones: tuple[float, ...] = ()
    power: float = 0.9
    crop: int = 0
    rescale: tuple[float, ...] = (1.0, 1.0)
    object_centred: float = 0.5


@dataclass(frozen=True)
class NoParams:
    """Of models without parameters of this kind."""


@dataclass(frozen=True)
class Model:
    """A segmentation model, as `MODEL` of its module declares it.

    Attributes:
        recipe: its training.
        build: parameters, number of foreground classes -> the untrained network; the values of `asked` by name. It
            imports the network when it is called, because a wrong flag should not wait for torch.
        params: frozen dataclass of the parameters that not every model has.
        asked: frozen dataclass of the parameters that `evaluate` and `predict` have for it.
        has_backbone: whether it is built on the network that --backbone names.
        own_backbones: values of --backbone that no other model knows.
        phased: its training with --crops, where it has that: the first phase.
    """

    recipe: Recipe
    build: Callable[..., Segmenter]
    params: type[Any] = NoParams
    asked: type[Any] = NoParams
    has_backbone: bool = True
    own_backbones: tuple[str, ...] = ()
    phased: Recipe | None = None


@dataclass(frozen=True)
class BandParams:
    """Parameters of models that can leave pixels out of their losses."""

    ignore_band: int = 3
    """Width in pixels of the band along synthesized instance edges that the loss ignores (not for mask_rcnn)."""


@dataclass(frozen=True)
class CropParams(BandParams):
    """Parameters of models that are trained on crops."""

    crop: int | None = None
    """Side of the training crops, in pixels (not for the Mask R-CNNs)."""
    rescale: tuple[float, ...] = ()
    """Smallest and largest random scale (not for the Mask R-CNNs)."""


@dataclass(frozen=True)
class DetectorParams:
    """Parameters of the Mask R-CNNs."""

    short_side: int = 512
    """Mask R-CNNs: resize images to this short side, in pixels."""
    long_side: int = 800
    """Mask R-CNNs: maximum long side after resizing, in pixels."""
    boxes_per_image: int = 512
    """Mask R-CNNs: boxes sampled per image during training."""
    channels: int = 256
    """Mask R-CNNs: channels of the feature pyramid and the heads."""


def detector_options(params: Any) -> dict[str, int]:
    """Arguments of a Mask R-CNN's constructor by name: the values of `DetectorParams`."""
    return {entry.name: getattr(params, entry.name) for entry in fields(DetectorParams)}
