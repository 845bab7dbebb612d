"""Class activation maps (Zhou et al., CVPR 2016), as published for IRNet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from irn_pipeline.seeds.base import NoParams, Picture, Seed

if TYPE_CHECKING:
    from torch import Tensor


def maps(picture: Picture, params: NoParams, prepared: None) -> list[Tensor]:
    """The classifier's rectified maps of picture and mirror."""
    return [
        picture.network.paired_activation_maps(scaled)[picture.class_ids].float() for scaled in picture.scaled
    ]


SEED = Seed(maps)
