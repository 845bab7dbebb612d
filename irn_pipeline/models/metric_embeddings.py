"""Pixel embeddings with seediness (Fathi et al., 2017)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from irn_pipeline.models.base import CropParams, Model, Recipe

if TYPE_CHECKING:
    from irn_pipeline.nn.segmenters.base import Segmenter


def build(params: Any, num_classes: int) -> Segmenter:
    """The untrained network."""
    from irn_pipeline.nn.segmenters.metric_embeddings import MetricEmbeddings

    return MetricEmbeddings(num_classes=num_classes, backbone=params.backbone)


MODEL = Model(
    recipe=Recipe(epochs=30, batch_size=16, lr=5e-3, optimizer="sgd", crop=416, rescale=(0.5, 1.5)),
    build=build,
    params=CropParams,
)
