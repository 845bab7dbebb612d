"""The random walk that class boundaries stop (paper, section 5), as published."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from irn_pipeline.refiners.base import Picture, Refiner
from irn_pipeline.structures import IntArray

if TYPE_CHECKING:
    from torch import Tensor


def scores(picture: Picture, params: Any, prepared: None) -> tuple[Tensor, IntArray]:
    """The walked map of every instance; the parameters are `SynthesisParams`."""
    from irn_pipeline.ops.labels import walk_scores

    cam = picture.cam
    return walk_scores(
        cam.cam,
        cam.class_ids,
        picture.boundary,
        picture.displacement,
        picture.size,
        params,
        device=picture.device,
    )


REFINER = Refiner(scores, walks=True)
