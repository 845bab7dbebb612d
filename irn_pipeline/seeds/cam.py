"""Class activation maps (Zhou et al., CVPR 2016), as published for IRNet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from irn_pipeline.seeds.base import NoParams, Picture, Seed

if TYPE_CHECKING:
    from torch import Tensor


def maps(picture: Picture, params: NoParams, prepared: None) -> list[Tensor]:
    """The classifier's rectified maps of picture and mirror."""
    return maps_of_many([picture], params, prepared)[0]


def maps_of_many(pictures: Sequence[Picture], params: NoParams, prepared: None) -> list[list[Tensor]]:
    """Those of several pictures of one size, which pass through the network together."""
    import torch

    scales = zip(*(picture.scaled for picture in pictures), strict=True)
    found = [pictures[0].network.paired_activation_maps(torch.stack(images)) for images in scales]
    return [
        [maps[number, picture.class_ids].float() for maps in found] for number, picture in enumerate(pictures)
    ]


SEED = Seed(maps, maps_of_many=maps_of_many)
