"""Mask R-CNN steered by semi-convolutional embeddings (Novotny et al., ECCV 2018)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from irn_pipeline.models.base import BandParams, DetectorParams, Model, Recipe, detector_options

if TYPE_CHECKING:
    from irn_pipeline.nn.segmenters.base import Segmenter


@dataclass(frozen=True)
class Params(DetectorParams, BandParams):
    """Parameters of this model."""

    start_from: str | None = None
    """semiconv_mask_rcnn: network.pt of a trained mask_rcnn to which the new branch is added."""


def build(params: Any, num_classes: int) -> Segmenter:
    """The untrained network."""
    from irn_pipeline.nn.segmenters.semiconv_mask_rcnn import SemiconvMaskRcnn

    return SemiconvMaskRcnn(num_classes=num_classes, backbone=params.backbone, **detector_options(params))


MODEL = Model(
    recipe=Recipe(epochs=7, batch_size=4, lr=0.0025, optimizer="sgd", milestones=(0.5,)),
    build=build,
    params=Params,
)
