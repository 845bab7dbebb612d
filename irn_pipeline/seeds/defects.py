"""Cells of tagged images that images without a tag do not have: for defects, lesions, weeds on bare ground."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from irn_pipeline.seeds.base import Picture, Seed
from irn_pipeline.seeds.cell_features import full_precision, paired_features, require_side, size_at

if TYPE_CHECKING:
    from torch import Tensor

    from irn_pipeline.seeds.defects_maths import DefectClassifier

_SURVEYED = 100
"""Images, as many with a tag as without, whose cells the ordinary ones are learned from."""
_CELLS = 150
"""Cells of each of them."""
_LOOKED_AT = 30
"""Images of a class in which regions and contrasts are compared."""


@dataclass(frozen=True)
class DefectParams:
    """Parameters of the seeds `defects`."""

    defect_side: int = field(default=768, metadata={"fingerprint": "unless default"})
    """--seeds defects: long side to which images are resized, in pixels."""

    def __post_init__(self) -> None:
        require_side("defect_side", self.defect_side)


def prepare(pictures: Iterable[Picture], num_classes: int, params: DefectParams) -> DefectClassifier:
    """The classifier, in three passes over the images: ordinary cells, odd cells, contrasts inside the regions."""
    import torch

    from irn_pipeline.seeds import defects_maths as defects
    from irn_pipeline.seeds.contrast import contrast_map, largest_piece

    sample = defects.CellSample(dims=defects.DIMS, per_picture=_CELLS)
    seen = {False: 0, True: 0}
    for picture in pictures:
        tagged = bool(picture.class_ids)
        seen[tagged] += 1
        if seen[tagged] <= _SURVEYED:
            features = paired_features(picture)
            with full_precision(features[0].device):
                sample.add(features, _targets(features, defects.TAGGED if tagged else defects.ORDINARY))
        if min(seen.values()) >= _SURVEYED:
            break
    with full_precision(torch.device("cpu")):
        ordinary = defects.OrdinaryCells.fit(sample)
    candidates = []
    for picture in pictures:
        features = paired_features(picture)
        with full_precision(features[0].device):
            candidates.append(defects.Candidates.of(features, picture.class_ids, ordinary))
    with full_precision(features[0].device):
        classifier = defects.fit_defects(ordinary, candidates, num_classes)
    pieces: dict[int, list[float]] = {}
    for picture in pictures:
        wanted = [k for k in picture.class_ids if len(pieces.get(k, ())) < _LOOKED_AT]
        wanted = [k for k in wanted if classifier.routes[k] == defects.Route.CELLS]
        if not wanted:
            continue
        features, gray = paired_features(picture), picture.scaled[0].mean(0)
        with full_precision(features[0].device):
            placed = classifier.to(features[0].device)
            scores = placed.scores(features, wanted, (gray.shape[0], gray.shape[1]))
            contrast = contrast_map(gray)
            for class_id, one in zip(wanted, scores, strict=True):
                region, _ = defects.region_of(one, float(classifier.gates[class_id]))
                pieces.setdefault(class_id, []).append(largest_piece(contrast, region.cpu().numpy()))
    return defects.with_pixels(classifier, pieces)


def maps(picture: Picture, params: DefectParams, prepared: DefectClassifier) -> list[Tensor]:
    """Maps at the size that the image was resized to; 0.5 is the edge of a defect."""
    from irn_pipeline.seeds.defects_maths import Route, defect_maps
    from irn_pipeline.seeds.pixels_maths import teaching_maps

    features = paired_features(picture)
    with full_precision(features[0].device):
        classifier = prepared.to(features[0].device)
        probe = picture.network.logit_maps(features[-1][None])[0, picture.class_ids].relu()
        if (prepared.routes[picture.class_ids] == Route.PROBE).any():  # it costs a weight for each two cells
            probe = teaching_maps(probe, features)
        return [defect_maps(classifier, features, probe, picture.scaled[0].mean(0), picture.class_ids)]


def restore(state: Mapping[str, Tensor]) -> DefectClassifier:
    """The fitted classifier whose tensors these are."""
    from irn_pipeline.seeds.defects_maths import DefectClassifier

    return DefectClassifier.from_state(state)


def _targets(features: list[Tensor], value: int) -> Tensor:
    import torch

    return torch.full(features[0].shape[1:], value)


SEED = Seed(maps, DefectParams, prepare, restore, lambda params, size: size_at(params.defect_side, size))
