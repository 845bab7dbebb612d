"""Maps spread over cells of like features of IRNet's backbone (`ops.feature_affinity`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from irn_pipeline.errors import ConfigError
from irn_pipeline.refiners.base import Picture, Refiner
from irn_pipeline.structures import IntArray, strided_size

if TYPE_CHECKING:
    from torch import Tensor

_CELLS = 2**12
"""Cells of the last map above which it is made smaller: the affinity has a number for each two of them."""


@dataclass(frozen=True)
class FeatureParams:
    """Parameters of the spreading."""

    feature_power: float = field(default=4.0, metadata={"fingerprint": "unless default"})
    """--refiner features: exponent of the feature similarity; larger values spread less."""

    def __post_init__(self) -> None:
        if not 0 < self.feature_power < float("inf"):
            raise ConfigError(f"feature_power is {self.feature_power}; it must be a number above 0")


def scores(picture: Picture, params: Any, prepared: None) -> tuple[Tensor, IntArray]:
    """Spread on the grid of the last map, and resized to stride 4."""
    import torch
    from torch.nn.functional import adaptive_avg_pool2d

    from irn_pipeline.ops.cam import sum_over_scales
    from irn_pipeline.ops.feature_affinity import spread_maps
    from irn_pipeline.ops.parting import parted_maps

    features, maps = picture.features, torch.from_numpy(picture.cam.cam).to(picture.device)
    height, width = features.shape[1:]
    share = min(1.0, (_CELLS / (height * width)) ** 0.5)
    if share < 1:
        features = adaptive_avg_pool2d(
            features.float(), (max(int(height * share), 1), max(int(width * share), 1))
        )
    spread = spread_maps([maps], [features], params.feature_power)
    return parted_maps(
        sum_over_scales([spread], strided_size(picture.size)),
        picture.cam.class_ids,
        picture.displacement,
        params,
    )


REFINER = Refiner(scores, params=FeatureParams)
