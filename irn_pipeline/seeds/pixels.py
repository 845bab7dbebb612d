"""A classifier of cells with a class for the background, taught by the sure cells of the CAM network's maps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from irn_pipeline.errors import ConfigError
from irn_pipeline.seeds.base import Picture, Seed
from irn_pipeline.seeds.cell_features import (
    full_precision,
    paired_features,
    require_side,
    restore,
    size_at,
)

if TYPE_CHECKING:
    from torch import Tensor

    from irn_pipeline.seeds.cells import CellClassifier


@dataclass(frozen=True)
class PixelParams:
    """Parameters of the seeds `pixels`."""

    pixel_side: int = field(default=512, metadata={"fingerprint": "unless default"})
    """--seeds pixels: long side to which images are resized, in pixels."""
    pixel_high: float = field(default=0.5, metadata={"fingerprint": "unless default"})
    """--seeds pixels: cells whose map is above this are training examples of their class."""
    pixel_low: float = field(default=0.2, metadata={"fingerprint": "unless default"})
    """--seeds pixels: cells whose maps are all below this are training examples of background."""

    def __post_init__(self) -> None:
        require_side("pixel_side", self.pixel_side)
        if not 0 < self.pixel_low <= self.pixel_high < 1:
            raise ConfigError(
                f"pixel_low is {self.pixel_low} and pixel_high {self.pixel_high}; both are fractions of a map's "
                "largest value, and low must not exceed high (0.2 and 0.5 work well)"
            )


def prepare(pictures: Iterable[Picture], num_classes: int, params: PixelParams) -> CellClassifier:
    """The classifier, fitted to sure cells of all pictures."""
    from irn_pipeline.seeds.cells import CellSample
    from irn_pipeline.seeds.pixels_maths import DIMS, fit_pixels, sure_cells

    sample = CellSample(dims=DIMS, per_picture=250)
    for picture in pictures:
        features = paired_features(picture)
        with full_precision(features[0].device):
            teaching = _teaching_maps(picture, features)
            limits = {"high": params.pixel_high, "low": params.pixel_low}
            sample.add(features, sure_cells(teaching, picture.class_ids, **limits))
    with full_precision(features[0].device, gradients=True):
        return fit_pixels(sample, num_classes)


def maps(picture: Picture, params: PixelParams, prepared: CellClassifier) -> list[Tensor]:
    """Probabilities among the background and the picture's tags, spread, times the maps that taught them."""
    from irn_pipeline.seeds.pixels_maths import pixel_maps

    features = paired_features(picture)
    with full_precision(features[0].device):
        classifier = prepared.to(features[0].device)
        return [pixel_maps(classifier, features, _teaching_maps(picture, features), picture.class_ids)]


def _teaching_maps(picture: Picture, features: Sequence[Tensor]) -> Tensor:
    from irn_pipeline.seeds.pixels_maths import teaching_maps

    plain: Tensor = picture.network.logit_maps(features[-1][None])[0, picture.class_ids].relu()
    return teaching_maps(plain, features)


SEED = Seed(maps, PixelParams, prepare, restore, lambda params, size: size_at(params.pixel_side, size))
