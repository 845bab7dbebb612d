"""For pictures of one object in the middle: cells of the middle against those of the border."""

from __future__ import annotations

from collections.abc import Iterable
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
class CentreParams:
    """Parameters of the seeds `centre`."""

    centre_side: int = field(default=256, metadata={"fingerprint": "unless default"})
    """--seeds centre: long side to which images are resized, in pixels."""
    centre_border: float = field(default=0.06, metadata={"fingerprint": "unless default"})
    """--seeds centre: width of the border without objects, as a fraction of the shorter side."""
    centre_radius: float = field(default=0.4, metadata={"fingerprint": "unless default"})
    """--seeds centre: radius of the central ellipse that shows the object, as a fraction of half of each side."""

    def __post_init__(self) -> None:
        require_side("centre_side", self.centre_side)
        if not (0 < self.centre_border < 0.5 and 0 < self.centre_radius <= 1):
            raise ConfigError(
                f"centre_border is {self.centre_border} and centre_radius {self.centre_radius}; the border must be "
                "below 0.5 and the radius at most 1 (0.06 and 0.4 work well)"
            )


def prepare(pictures: Iterable[Picture], num_classes: int, params: CentreParams) -> CellClassifier:
    """The discriminant of middle and border over all pictures; one without an object is border everywhere."""
    import torch

    from irn_pipeline.seeds.cells import CellSample
    from irn_pipeline.seeds.centre_maths import BORDER, DIMS, centre_targets, fit_centre

    sample = CellSample(dims=DIMS, per_picture=120)
    for picture in pictures:
        features = paired_features(picture)
        grid = (features[0].shape[1], features[0].shape[2])
        targets = torch.full(grid, BORDER)
        if picture.class_ids:
            targets = centre_targets(grid, border=params.centre_border, radius=params.centre_radius)
        with full_precision(features[0].device):
            sample.add(features, targets)
    with full_precision(features[0].device):
        return fit_centre(sample)


def maps(picture: Picture, params: CentreParams, prepared: CellClassifier) -> list[Tensor]:
    """Probability of the object, on the picture's own pixels; all tags of the picture share one map."""
    from irn_pipeline.ops.cam import sum_over_scales

    features = paired_features(picture)
    with full_precision(features[0].device):
        grid = (features[0].shape[1], features[0].shape[2])
        scores = prepared.to(features[0].device).scores(features, grid)
        # Scores are resized, not probabilities: where they are nought is then known to less than a cell.
        object_map = sum_over_scales([scores], picture.size).sigmoid()
        return [object_map.expand(len(picture.class_ids), -1, -1)]


SEED = Seed(maps, CentreParams, prepare, restore, lambda params, size: size_at(params.centre_side, size))
