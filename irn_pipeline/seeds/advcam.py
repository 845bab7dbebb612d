"""AdvCAM (Lee et al., CVPR 2021): the picture climbs towards its class; about a hundred times the cost of a map."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from irn_pipeline.errors import ConfigError
from irn_pipeline.seeds.base import Picture, Seed

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class AdvCamParams:
    """Parameters of AdvCAM."""

    advcam_steps: int = field(default=27, metadata={"fingerprint": "unless default"})
    """--seeds advcam: number of steps whose maps are summed; half of them use downscaled images."""

    def __post_init__(self) -> None:
        if self.advcam_steps < 1:
            raise ConfigError(f"advcam_steps is {self.advcam_steps}; it must be 1 or more")


def maps(picture: Picture, params: AdvCamParams, prepared: None) -> list[Tensor]:
    """The maps of all steps, summed."""
    import torch

    from irn_pipeline.seeds.advcam_maths import advcam_maps, steps_at

    network = picture.network

    def logit_maps(images: Tensor) -> Tensor:
        return network.logit_maps(network.backbone(images)[-1])

    # Steps of 0.08 would be lost in bfloat16.
    with torch.autocast(network.classifier.weight.device.type, enabled=False):
        return [
            advcam_maps(
                logit_maps,
                scaled,
                picture.class_ids,
                network.classifier.weight.flatten(1),
                steps=steps_at(scale, params.advcam_steps),
            )
            for scaled, scale in zip(picture.scaled, picture.scales, strict=True)
        ]


SEED = Seed(maps, AdvCamParams)
