"""The dense CRF on the maps at full size, without a walk; needs pydensecrf2."""

from __future__ import annotations

from typing import Any

from irn_pipeline.refiners.base import Picture, Refiner
from irn_pipeline.structures import LabelArray


def label(picture: Picture, params: Any, prepared: None) -> LabelArray:
    """The most probable class of each pixel, from [background's score, *maps] divided by their sum."""
    import numpy as np

    from irn_pipeline.ops.crf_soft import dense_crf_probabilities
    from irn_pipeline.ops.masks import label_from_index

    maps = picture.cam.high_res_cam
    ground = np.full((1, *picture.size), max(params.semantic_bg_threshold, 1e-5), np.float32)
    stack = np.concatenate([ground, np.clip(maps, 0, 1)])
    found = dense_crf_probabilities(picture.image, stack / stack.sum(0))
    return label_from_index(found.argmax(0), picture.cam.class_ids)


REFINER = Refiner(label=label)
