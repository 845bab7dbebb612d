"""SpatialEmbeddings (Neven et al., CVPR 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from irn_pipeline.models.base import CropParams, Model, Recipe

if TYPE_CHECKING:
    from irn_pipeline.nn.segmenters.base import Segmenter


@dataclass(frozen=True)
class Params(CropParams):
    """Parameters of this model."""

    bandwidth: Literal["circular", "elliptical"] = "elliptical"
    """spatial_embeddings: one bandwidth an object, or one an axis."""
    to_center: bool = False
    """spatial_embeddings: objects gather at their centroid, instead of at their mean embedding."""


def build(params: Any, num_classes: int) -> Segmenter:
    """The untrained network."""
    from irn_pipeline.nn.segmenters.spatial_embeddings import SpatialEmbeddings

    return SpatialEmbeddings(
        num_classes=num_classes,
        backbone=params.backbone,
        bandwidth=params.bandwidth,
        to_center=params.to_center,
    )


MODEL = Model(
    recipe=Recipe(epochs=50, batch_size=16, lr=5e-4, optimizer="adamw", crop=512, rescale=(0.5, 1.5)),
    build=build,
    params=Params,
    own_backbones=("erfnet",),
)
