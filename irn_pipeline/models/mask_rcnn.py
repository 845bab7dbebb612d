"""torchvision's Mask R-CNN (He et al., ICCV 2017)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from irn_pipeline.models.base import DetectorParams, Model, Recipe, detector_options

if TYPE_CHECKING:
    from irn_pipeline.nn.segmenters.base import Segmenter


def build(params: Any, num_classes: int) -> Segmenter:
    """The untrained network."""
    from irn_pipeline.nn.segmenters.mask_rcnn import MaskRcnnSegmenter

    return MaskRcnnSegmenter(num_classes=num_classes, backbone=params.backbone, **detector_options(params))


# 18,000 iterations of 4 pictures on VOC's 10,582, steps at 12,000 and 16,000 (spec: interop, recipes).
MODEL = Model(
    recipe=Recipe(epochs=7, batch_size=4, lr=0.01, optimizer="sgd", milestones=(2 / 3, 8 / 9)),
    build=build,
    params=DetectorParams,
)
