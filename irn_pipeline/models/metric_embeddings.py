"""Pixel embeddings with seediness (Fathi et al., 2017)."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

from irn_pipeline.errors import ConfigError
from irn_pipeline.models.base import CropParams, Model, Recipe

if TYPE_CHECKING:
    from irn_pipeline.nn.segmenters.base import Segmenter

# They came with a later version; models trained before stay valid.
_LATER = {"fingerprint": "unless default"}


@dataclass(frozen=True)
class Params(CropParams):
    """Parameters of this model."""

    features: Literal["pyramid", "dilated"] = field(default="pyramid", metadata=_LATER)
    """metric_embeddings: a feature pyramid, or the dilated ResNet of DeepLab (the paper uses resnet101)."""
    cell_size: int = field(default=8, metadata=_LATER)
    """metric_embeddings: pixels per side of a feature cell, 8 or 4 (dilated features: 8)."""
    feature_scales: tuple[float, ...] = field(default=(1.0,), metadata=_LATER)
    """metric_embeddings: relative image sizes whose features are concatenated; the paper uses 0.25 0.5 1 2."""
    embedding_dims: int = field(default=64, metadata=_LATER)
    """metric_embeddings: dimensions of the embedding."""
    coordinates: bool = field(default=True, metadata=_LATER)
    """metric_embeddings: add the position to two dimensions. With false, as published, identical objects become one."""
    similarities: tuple[float, ...] = field(default=(0.25, 0.5, 0.75, 0.9), metadata=_LATER)
    """metric_embeddings: similarity thresholds that can bound a mask; the network learns to choose one of them."""
    points_per_instance: int = field(default=10, metadata=_LATER)
    """metric_embeddings: pixels of each object sampled for the embedding loss."""
    background: Literal["none", "repel", "attract"] = field(default="repel", metadata=_LATER)
    """metric_embeddings: what background pixels do in the embedding loss. none: nothing, as published. repel: keep away
    from every object. attract: repel, and stay close to one another."""
    background_points: int = field(default=40, metadata=_LATER)
    """metric_embeddings: background pixels sampled for the embedding loss."""
    background_size: Literal["own", "mean"] = field(default="mean", metadata=_LATER)
    """metric_embeddings: weight background pixels by the size of the background, or like those of a mean object."""
    class_points: int = field(default=64, metadata=_LATER)
    """metric_embeddings: pixels per image on which the class head learns; about 10 in the paper."""
    max_seeds: int = field(default=100, metadata={"fingerprint": False})
    """metric_embeddings: maximum number of seeds per image, at most 100."""
    diversity: float = field(default=0.3, metadata={"fingerprint": False})
    """metric_embeddings: the paper's alpha, the weight of the distance to other seeds when the next seed is chosen."""
    min_seediness: float = field(default=0.05, metadata={"fingerprint": False})
    """metric_embeddings: minimum score of a seed."""
    max_iou: float = field(default=0.5, metadata={"fingerprint": False})
    """metric_embeddings: of two objects of one class that overlap more than this, only the better one is kept."""
    connected: bool = field(default=False, metadata={"fingerprint": False})
    """metric_embeddings: keep only the part of an object that is connected with its seed."""


@dataclass(frozen=True)
class Asked:
    """How the trained model is asked for objects."""

    max_seeds: int | None = None
    """metric_embeddings: maximum number of seeds per image, at most 100. Default: the training value (100)."""
    diversity: float | None = None
    """metric_embeddings: the paper's alpha, the weight of the distance to other seeds when the next seed is chosen.
    Default: the training value (0.3)."""
    min_seediness: float | None = None
    """metric_embeddings: minimum score of a seed. Default: the training value (0.05)."""
    max_iou: float | None = None
    """metric_embeddings: of two objects of one class that overlap more than this, only the better one is kept.
    Default: the training value (0.5)."""
    connected: bool | None = None
    """metric_embeddings: keep only the part of an object that is connected with its seed. Default: the training value
    (false)."""

    def __post_init__(self) -> None:
        ranges = {"max_seeds": (1, 100), "diversity": (0, 1e6), "min_seediness": (0, 1), "max_iou": (0, 1)}
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ConfigError(f"{name} must be {low} to {high}, got {value}")


def build(params: Any, num_classes: int, **asked: Any) -> Segmenter:
    """The untrained network; what is not asked for is as the parameters say."""
    from irn_pipeline.nn.segmenters.metric_embeddings import MetricEmbeddings

    own = {f.name for f in fields(Params)} - {f.name for f in fields(CropParams)}
    values = {name: getattr(params, name) for name in own}
    values |= {name: value for name, value in asked.items() if value is not None}
    return MetricEmbeddings(num_classes=num_classes, backbone=params.backbone, **values)


MODEL = Model(
    recipe=Recipe(epochs=30, batch_size=16, lr=5e-3, optimizer="sgd", crop=416, rescale=(0.5, 1.5)),
    build=build,
    params=Params,
    asked=Asked,
)
