"""No refinement: the class of the largest map at each pixel, or the given mask; for comparison, and for other masks."""

from __future__ import annotations

from typing import Any

from irn_pipeline.refiners.base import Picture, Refiner
from irn_pipeline.structures import LabelArray


def label(picture: Picture, params: Any, prepared: None) -> LabelArray:
    """Largest of the background's score and the maps at full size."""
    from irn_pipeline.ops.cam import cam_label

    return cam_label(picture.cam.high_res_cam, picture.cam.class_ids, params.semantic_bg_threshold)


REFINER = Refiner(label=label)
