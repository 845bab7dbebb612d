"""LPCAM (Chen & Sun, CVPR 2023): likeness to prototypes of each class, clustered over all pictures of the list."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from irn_pipeline.errors import ConfigError
from irn_pipeline.seeds.base import Picture, Seed

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from irn_pipeline.seeds.lpcam_maths import Prototypes


@dataclass(frozen=True)
class LpCamParams:
    """Parameters of LPCAM."""

    lpcam_clusters: int = field(default=12, metadata={"fingerprint": "unless default"})
    """--seeds lpcam: clusters per class, and as many for its context; use 20 for COCO."""
    lpcam_threshold: float = field(default=0.1, metadata={"fingerprint": "unless default"})
    """--seeds lpcam: a cell belongs to a class if the plain CAM reaches this value; use 0.25 for COCO."""
    lpcam_cells: int = field(default=20_000, metadata={"fingerprint": "unless default"})
    """--seeds lpcam: maximum number of cells clustered per class and per context, sampled at random."""

    def __post_init__(self) -> None:
        if self.lpcam_clusters < 1 or self.lpcam_cells < self.lpcam_clusters:
            raise ConfigError(
                f"lpcam_clusters is {self.lpcam_clusters} and lpcam_cells {self.lpcam_cells}; use at least 1 cluster "
                "and at least as many cells"
            )


class _Sample:
    """So many cells drawn from all that were shown, each as likely as any other."""

    def __init__(self, count: int, generator: torch.Generator) -> None:
        self.count, self.generator = count, generator
        self.parts: list[tuple[Tensor, Tensor]] = []

    def add(self, cells: Tensor) -> None:
        import torch

        keys = torch.rand(len(cells), generator=self.generator)
        self.parts.append((keys, cells.half().cpu()))
        if sum(len(part) for part, _ in self.parts) > 2 * self.count:
            self.parts = [self._drawn()]

    def _drawn(self) -> tuple[Tensor, Tensor]:
        import torch

        keys, cells = (torch.cat(parts) for parts in zip(*self.parts, strict=True))
        kept = keys.argsort()[: self.count].sort().values
        return keys[kept], cells[kept]

    def cells(self) -> Tensor | None:
        return self._drawn()[1].float() if self.parts else None


def prepare(pictures: Iterable[Picture], num_classes: int, params: LpCamParams) -> list[Prototypes | None]:
    """Prototypes of each class from all pictures that are tagged with it; None for a class of no picture."""
    import numpy as np
    import torch

    from irn_pipeline.ops.cam import merge_scales
    from irn_pipeline.seeds import cam
    from irn_pipeline.seeds.base import NoParams
    from irn_pipeline.seeds.lpcam_maths import kmeans, select_cells, select_prototypes

    generator = torch.Generator().manual_seed(0)
    inside, outside = ([_Sample(params.lpcam_cells, generator) for _ in range(num_classes)] for _ in range(2))
    weight = None
    for picture in pictures:
        weight = picture.network.classifier.weight.flatten(1).float().cpu()
        plain = cam.maps(picture, NoParams(), None)
        _, high_res = merge_scales(plain, picture.size)
        at = min(range(len(picture.scales)), key=lambda index: abs(picture.scales[index] - 1))
        features = picture.network.backbone(picture.scaled[at][None])[-1][0].float()
        for class_id, one in zip(picture.class_ids, high_res, strict=True):
            chosen = select_cells(features, one.to(features.device), params.lpcam_threshold)
            for sample, drawn in zip((inside[class_id], outside[class_id]), chosen, strict=True):
                sample.add(drawn)
    found: list[Prototypes | None] = []
    for class_id in range(num_classes):
        cells = (inside[class_id].cells(), outside[class_id].cells())
        if weight is None or cells[0] is None or cells[1] is None:
            found.append(None)
            continue
        rng = np.random.default_rng(class_id)
        centres = [kmeans(part, params.lpcam_clusters, rng).centres for part in cells if part is not None]
        found.append(select_prototypes(centres[0], centres[1], weight, class_id))
    return found


def maps(picture: Picture, params: LpCamParams, prepared: list[Prototypes | None]) -> list[Tensor]:
    """Likeness of every cell to its class's prototypes, less that to what lies around; else the plain map."""
    import torch

    from irn_pipeline.seeds.lpcam_maths import Prototypes, lpcam_maps

    network = picture.network
    weight = network.classifier.weight.flatten(1)[picture.class_ids].float()
    nothing = Prototypes(weight[:0], weight[:0])
    classes = [prepared[class_id] or nothing for class_id in picture.class_ids]
    classes = [Prototypes(*(part.to(weight.device) for part in one)) for one in classes]
    found = []
    for scaled in picture.scaled:
        pair = network.backbone(torch.stack([scaled, scaled.flip(-1)]))[-1].float()
        found.append(lpcam_maps(pair, classes, weight))
    return found


SEED = Seed(maps, LpCamParams, prepare)
