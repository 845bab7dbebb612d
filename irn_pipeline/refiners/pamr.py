"""PAMR (Araslanov & Roth, CVPR 2020): maps averaged over neighbours of like colour; no network looks at the picture."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from irn_pipeline.errors import ConfigError
from irn_pipeline.refiners.base import Picture, Refiner
from irn_pipeline.structures import IntArray, strided_size

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class PamrParams:
    """Parameters of PAMR."""

    pamr_iterations: int = field(default=10, metadata={"fingerprint": "unless default"})
    """--refiner pamr: number of iterations."""

    def __post_init__(self) -> None:
        if self.pamr_iterations < 0:
            raise ConfigError(f"pamr_iterations is {self.pamr_iterations}; it must be 0 or more")


def scores(picture: Picture, params: Any, prepared: None) -> tuple[Tensor, IntArray]:
    """Refined at stride 4, with the picture brought down to it."""
    import torch
    from torch.nn.functional import interpolate

    from irn_pipeline.ops.parting import parted_maps
    from irn_pipeline.refiners.pamr_maths import pamr

    pixels = torch.from_numpy(picture.image).to(picture.device).permute(2, 0, 1)[None].float() / 255
    small = interpolate(pixels, strided_size(picture.size), mode="bilinear", antialias=True)[0]
    maps = pamr(
        small, torch.from_numpy(picture.cam.cam).to(picture.device), iterations=params.pamr_iterations
    )
    return parted_maps(maps, picture.cam.class_ids, picture.displacement, params)


REFINER = Refiner(scores, params=PamrParams)
