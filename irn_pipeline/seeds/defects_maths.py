"""Defects: what images with a tag show, and images without any do not.

Multiple-instance learning against the images without a tag. A normal distribution of their cells names the odd cells
of a tagged image; a linear classifier for each class learns these from the ordinary ones and chooses its examples again
every round. Classes whose images hold no odd cell, such as a misplaced texture, keep the image classifier's maps.

Cells are far larger than small defects. Where most of what stands out inside a class's regions, pixel by pixel, is one
piece, that piece is taken for the defect.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cached_property

import numpy as np
import torch
from scipy.stats import mannwhitneyu
from torch import Tensor

from irn_pipeline.errors import ConfigError, ShapeError
from irn_pipeline.ops.cam import sum_over_scales
from irn_pipeline.seeds.cells import CellAxes, CellClassifier, CellSample
from irn_pipeline.seeds.contrast import contrast_map, edge_at, otsu
from irn_pipeline.seeds.linear_probe import fit_probe

DIMS = (64, 128, 96)
"""Axes kept of the network's last three maps."""
ORDINARY, TAGGED = 0, 1
"""Targets of cells: of images without a tag, and of the others."""
_SHRINKAGE = 0.02
_ROUNDS = 5
_CANDIDATE, _FIRST_ROUND, _QUANTILE = 0.95, 0.99, 0.999
"""Share of the ordinary cells that candidates exceed, and examples: in the first round, and afterwards."""
_FEWEST = 4
"""Cells of an image that are examples, however ordinary they are."""
_MOST = 200
"""Cells of an image that are examples, however large its defect is."""
_ODDEST = 64
"""Cells of an image whose mean distance tells whether it holds something odd."""
_REGULARISATION = 0.01
_TOLD = 0.6
"""Area under the ROC curve from which the oddness of images tells a class from the images without a tag."""
_PEAK = 0.7
"""Where no cell reaches a class's gate, those above this share of the highest score are taken."""
_ONE_PIECE = 0.5


class Route(IntEnum):
    """Where the map of a class comes from."""

    PROBE = 0
    """The image classifier's map, spread over cells of like features and cut in each image by Otsu's threshold."""
    CELLS = 1
    """The classifier of cells."""
    PIXELS = 2
    """What stands out from its surroundings inside the regions of the classifier of cells."""


@dataclass(frozen=True, eq=False)
class OrdinaryCells:
    """Cells (n, R) of images without a tag, along axes, and their normal distribution, whose covariance is shrunk."""

    axes: CellAxes
    cells: Tensor
    mean: Tensor
    precision: Tensor

    @cached_property
    def limit(self) -> Tensor:
        """() distance that candidates exceed."""
        return self.distance(self.cells).quantile(_CANDIDATE)

    @staticmethod
    def fit(sample: CellSample) -> OrdinaryCells:
        """Fit to the cells of the target `ORDINARY`.

        Raises:
            ConfigError: there are too few.
        """
        cells, targets, axes = sample.finish()
        cells = cells[targets == ORDINARY]
        if len(cells) <= cells.shape[1]:
            raise ConfigError(
                f"seeds defects: images without a tag have {len(cells)} cells, which are too few to learn what is "
                "ordinary; add images without any defect, tagged with nothing"
            )
        mean = cells.mean(0)
        covariance = (cells - mean).T @ (cells - mean) / len(cells)
        covariance += torch.eye(len(mean)) * (_SHRINKAGE * covariance.diagonal().mean())
        return OrdinaryCells(axes, cells, mean, torch.linalg.inv(covariance))

    def distance(self, cells: Tensor) -> Tensor:
        """Mahalanobis distance of (n, R) cells: (n,)."""
        centred = cells - self.mean
        return ((centred @ self.precision) * centred).sum(1).clamp(min=0).sqrt()


@dataclass(frozen=True, eq=False)
class Candidates:
    """Odd cells of one image.

    Attributes:
        class_ids: its tags; none for an image without.
        cells: (k, R) float32 along the axes of `OrdinaryCells`.
        distance: (k,) their distances.
        oddness: mean distance of the oddest cells of the whole image.
    """

    class_ids: tuple[int, ...]
    cells: Tensor
    distance: Tensor

    oddness: float

    @staticmethod
    def of(
        features: Sequence[Tensor], class_ids: Sequence[int], ordinary: OrdinaryCells, most: int = 512
    ) -> Candidates:
        """Those of an image with (C_s, h_s, w_s) features per stage, on the grid of the first.

        They are chosen at random: the oddest alone would be the odd parts of large defects.
        """
        grid = (features[0].shape[1], features[0].shape[2])
        stages = [
            sum_over_scales([stage.float()], grid, antialias=True).flatten(1).T.cpu() for stage in features
        ]
        cells = ordinary.axes(stages)
        distance = ordinary.distance(cells)
        odd = torch.nonzero(distance > ordinary.limit)[:, 0]
        random = torch.Generator().manual_seed(len(odd))
        kept = torch.cat(
            [
                distance.topk(min(_FEWEST, len(distance))).indices,
                odd[torch.randperm(len(odd), generator=random)[:most]],
            ]
        ).unique()
        oddness = float(distance.topk(min(_ODDEST, len(distance))).values.mean())
        return Candidates(tuple(class_ids), cells[kept], distance[kept], oddness)


@dataclass(frozen=True, eq=False)
class DefectClassifier:
    """A classifier of cells with C outputs, and how the map of each class is made.

    Attributes:
        cells: logits of the classes.
        gates: (C,) float32, logits that defects exceed.
        routes: (C,) int64, a `Route` for each class.
    """

    cells: CellClassifier
    gates: Tensor
    routes: Tensor

    def to(self, device: torch.device | str) -> DefectClassifier:
        """The same, its classifier of cells on another device."""
        return replace(self, cells=self.cells.to(device))

    def state(self) -> dict[str, Tensor]:
        """Named tensors, as `from_state` takes them."""
        return self.cells.state() | {"gates": self.gates, "routes": self.routes}

    @staticmethod
    def from_state(state: Mapping[str, Tensor]) -> DefectClassifier:
        """The classifier whose `state` this is.

        Raises:
            ShapeError: it is no such classifier's.
        """
        rest = dict(state)
        gates, routes = (rest.pop(name, torch.empty(0, 0)) for name in ("gates", "routes"))
        cells = CellClassifier.from_state(rest)
        if gates.shape != cells.bias.shape or routes.shape != cells.bias.shape:
            raise ShapeError("no defect classifier's tensors: one gate and one route a class are missing")
        return DefectClassifier(cells, gates, routes)

    def scores(self, features: Sequence[Tensor], class_ids: Sequence[int], size: tuple[int, int]) -> Tensor:
        """(K, H, W) logits of some classes, from (C_s, h_s, w_s) features per stage."""
        grid = (features[0].shape[1], features[0].shape[2])
        return sum_over_scales([self.cells.scores(features, grid)[list(class_ids)]], size)


def fit_defects(
    ordinary: OrdinaryCells, candidates: Sequence[Candidates], num_classes: int
) -> DefectClassifier:
    """Classifier of cells whose routes are `PROBE` or `CELLS`; `with_pixels` chooses the finer ones.

    Args:
        ordinary: cells of images without a tag.
        candidates: of all images, those without a tag too.
        num_classes: C.
    """
    weight = torch.zeros(num_classes, ordinary.cells.shape[1])
    bias, gates = torch.zeros(num_classes), torch.zeros(num_classes)
    routes = torch.full((num_classes,), Route.PROBE.value)
    without = [one.oddness for one in candidates if not one.class_ids]
    ordinary_distance = ordinary.distance(ordinary.cells)
    for class_id in range(num_classes):
        having = [one for one in candidates if class_id in one.class_ids]
        if not having:
            continue
        oddness = [one.oddness for one in having]
        if without and mannwhitneyu(oddness, without).statistic < _TOLD * len(having) * len(without):
            continue
        routes[class_id] = Route.CELLS.value
        scores = [one.distance for one in having]
        gate = ordinary_distance.quantile(_FIRST_ROUND)
        for _ in range(_ROUNDS):
            examples = torch.cat(
                [one.cells[_examples(s, gate)] for one, s in zip(having, scores, strict=True)]
            )
            targets = torch.zeros(len(examples) + len(ordinary.cells), 1)
            targets[: len(examples)] = 1
            rows = torch.cat([examples, ordinary.cells])
            probe = fit_probe(rows, targets, regularisation=_REGULARISATION)
            scores = [probe.scores(one.cells)[:, 0] for one in having]
            gate = probe.scores(ordinary.cells)[:, 0].quantile(_QUANTILE)
        weight[class_id], bias[class_id], gates[class_id] = probe.weight[0], probe.bias[0], gate
    return DefectClassifier(ordinary.axes.classifier(weight, bias), gates, routes)


def with_pixels(classifier: DefectClassifier, pieces: Mapping[int, Sequence[float]]) -> DefectClassifier:
    """The classifier with the route `PIXELS` for classes whose contrasts inside the regions are mostly one piece.

    Args:
        classifier: of `fit_defects`.
        pieces: for each class the `largest_piece` of some of its images.
    """
    routes = classifier.routes.clone()
    for class_id, shares in pieces.items():
        if routes[class_id] == Route.CELLS and len(shares) and float(np.median(shares)) >= _ONE_PIECE:
            routes[class_id] = Route.PIXELS.value
    return replace(classifier, routes=routes)


def region_of(scores: Tensor, gate: float) -> tuple[Tensor, float]:
    """Where (H, W) logits exceed the gate, or the share of their maximum if that is lower; and that limit."""
    highest = float(scores.max())
    cut = min(gate, highest - (1 - _PEAK) * abs(highest))
    return scores > cut, cut


def defect_maps(
    classifier: DefectClassifier,
    features: Sequence[Tensor],
    probe_maps: Tensor,
    gray: Tensor,
    class_ids: Sequence[int],
) -> Tensor:
    """Maps of an image; 0.5 is the edge of a defect, 1 the highest value of each.

    Args:
        classifier: of `with_pixels`.
        features: (C_s, h_s, w_s) floats of the image per network stage.
        probe_maps: (K, h, w) maps of the image classifier, for classes of that route.
        gray: (H, W) floats, the image at the size that the maps are wanted at.
        class_ids: its K tags.

    Returns:
        (K, H, W) float32 maps from 0 to 1.
    """
    size = (gray.shape[0], gray.shape[1])
    if not len(class_ids):
        return torch.zeros(0, *size, device=gray.device)
    scores = classifier.scores(features, class_ids, size)
    resized = sum_over_scales([probe_maps.float()], size)
    maps = []
    for place, class_id in enumerate(class_ids):
        if classifier.routes[class_id] == Route.PROBE:
            values = resized[place]
            maps.append(edge_at(values, otsu(values.cpu().numpy().ravel())))
            continue
        region, cut = region_of(scores[place], float(classifier.gates[class_id]))
        found = edge_at(scores[place], cut)
        if classifier.routes[class_id] == Route.PIXELS:
            contrast = contrast_map(gray)
            inside = region.cpu().numpy()
            fine = torch.from_numpy(contrast).to(found.device) * region
            found = torch.where(region, edge_at(fine, otsu(contrast[inside])), found * 0.5)
        maps.append(found)
    return torch.stack(maps)


def _examples(scores: Tensor, gate: Tensor) -> Tensor:
    """Places of the cells that are examples: some of those beyond the gate, or the highest."""
    beyond = torch.nonzero(scores > gate)[:, 0]
    if len(beyond) < _FEWEST:
        return scores.topk(min(_FEWEST, len(scores))).indices
    # Candidates are in no order, so that every n-th is a fair choice.
    return beyond[:: -(-len(beyond) // _MOST)]
