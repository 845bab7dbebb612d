"""SpatialEmbeddings (Neven et al., CVPR 2019)."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

from irn_pipeline.models.base import CropParams, Model, Recipe

if TYPE_CHECKING:
    from irn_pipeline.nn.segmenters.base import Segmenter


@dataclass(frozen=True)
class Params(CropParams):
    """Parameters of this model."""

    bandwidth: Literal["circular", "elliptical"] = "elliptical"
    """spatial_embeddings: one bandwidth per object (circular) or one per axis (elliptical)."""
    to_center: bool = False
    """spatial_embeddings: pull the pixels of an object towards its centroid instead of its mean embedding."""
    crops: tuple[int, ...] = field(default=(), metadata={"fingerprint": "unless default"})
    """spatial_embeddings: train in phases, as in the paper: sides of the crops, such as 500 1024, and as many --epochs.
    The first phase has crops around objects. Later ones start at a tenth of the learning rate, take about as many
    pixels per step, and keep the batch norm statistics."""
    foreground_weight: float | None = field(default=None, metadata={"fingerprint": "unless default"})
    """spatial_embeddings: weight of objects in the seed loss. Default: 10 for one class, otherwise by class size."""
    original_checkpoint: str | None = field(default=None, metadata={"fingerprint": "unless default"})
    """spatial_embeddings: use this checkpoint of the authors' code instead of training."""
    min_pixels: int = field(default=128, metadata={"fingerprint": False})
    """spatial_embeddings: minimum object size in pixels; lower it for small images."""
    seed_threshold: float = field(default=0.5, metadata={"fingerprint": False})
    """spatial_embeddings: minimum seed probability to start an object; 0.9 in the authors' code."""
    foreground_threshold: float = field(default=0.5, metadata={"fingerprint": False})
    """spatial_embeddings: pixels belong to objects only if their seed probability is higher."""


@dataclass(frozen=True)
class Asked:
    """How the trained model is asked for objects."""

    min_pixels: int | None = None
    """spatial_embeddings: minimum object size in pixels. Default: the training value (128)."""
    seed_threshold: float | None = None
    """spatial_embeddings: minimum seed probability to start an object. Default: the training value (0.5)."""
    foreground_threshold: float | None = None
    """spatial_embeddings: pixels belong to objects only if their seed probability is higher. Default: the training
    value (0.5)."""


def build(params: Any, num_classes: int, **asked: Any) -> Segmenter:
    """The untrained network; what is not asked for is as the parameters say."""
    from irn_pipeline.nn.segmenters.spatial_embeddings import SpatialEmbeddings

    values = {f.name: asked.get(f.name) for f in fields(Asked)}
    return SpatialEmbeddings(
        num_classes=num_classes,
        backbone=params.backbone,
        bandwidth=params.bandwidth,
        to_center=params.to_center,
        foreground_weight=params.foreground_weight,
        **{name: getattr(params, name) if value is None else value for name, value in values.items()},
    )


MODEL = Model(
    recipe=Recipe(epochs=50, batch_size=16, lr=5e-4, optimizer="adamw", crop=512, rescale=(0.5, 1.5)),
    build=build,
    params=Params,
    asked=Asked,
    own_backbones=("erfnet",),
    phased=Recipe(epochs=200, batch_size=16, lr=5e-4, optimizer="adam", object_centred=1.0),
)
