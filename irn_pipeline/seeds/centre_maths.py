"""Pictures of one object in the middle, such as cells or products: their border shows what is not the object.

Where every picture shows an object, tags tell kinds of object apart, and nothing about object and ground. A linear
discriminant between cells of the border and of the middle, fitted over all pictures, does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from scipy.stats import mannwhitneyu
from torch import Tensor

from irn_pipeline.errors import ConfigError
from irn_pipeline.seeds.cells import CellAxes, CellClassifier, CellSample
from irn_pipeline.structures import IGNORE

DIMS = (64, 192, 128)
"""Axes kept of the network's last three maps."""
CENTRED = 0.98
"""`centredness` from which objects stand in the middle. It was set between three sets: .995, and .91 and .92."""
_CORNER_DIMS = 64
_FOLDS = 5
BORDER, MIDDLE = 0, 1


def centre_targets(grid: tuple[int, int], *, border: float = 0.06, radius: float = 0.4) -> Tensor:
    """What cells are examples of: the border, the middle, or neither.

    Args:
        grid: (h, w).
        border: width of the border as a share of the shorter side; at least one cell.
        radius: of the ellipse in the middle, as a share of half of each side.

    Returns:
        (h, w) int64: 0 for the border, 1 for the middle, 255 for neither.
    """
    targets = torch.full(grid, IGNORE)
    y, x = ((torch.arange(side) + 0.5) / side * 2 - 1 for side in grid)
    targets[y[:, None] ** 2 + x[None] ** 2 < radius**2] = MIDDLE
    width = max(1, round(border * min(grid)))
    inside = torch.zeros(grid, dtype=torch.bool)
    inside[width:-width, width:-width] = True
    targets[~inside] = BORDER
    return targets


def fit_centre(sample: CellSample) -> CellClassifier:
    """Linear discriminant of the middle against the border.

    Args:
        sample: cells with targets as `centre_targets` gives them.

    Returns:
        A classifier of one output, above 0 for cells that are more like those of the middle: the log-odds of two
        normal distributions of one covariance, as frequent as each other.

    Raises:
        ConfigError: there are only cells of the one kind.
    """
    cells, targets, axes = sample.finish()
    middle, border = cells[targets == MIDDLE], cells[targets == BORDER]
    if not len(middle) or not len(border):
        raise ConfigError(
            "the images have too few cells to compare their middle with their border; enlarge them"
        )
    weight, bias = _discriminant(middle, border)
    return axes.classifier(weight[None], bias[None])


def quarters(image: Tensor) -> Tensor:
    """The quarters of a picture, so turned that a corner of the picture lies top left; then its centre.

    Convolutions see the padding beside the border of a picture, and tell border from middle by that alone. In quarters
    both lie beside padding.

    Args:
        image: (..., H, W).

    Returns:
        (8, ..., H // 2, W // 2): the first four have the picture's corner top left, the last four its centre.
    """
    height, width = (side // 2 for side in image.shape[-2:])
    corners = torch.stack(
        [
            image[..., :height, :width],
            image[..., :height, -width:].flip(-1),
            image[..., -height:, :width].flip(-2),
            image[..., -height:, -width:].flip((-2, -1)),
        ]
    )
    return torch.cat([corners, corners.flip((-2, -1))])


def centredness(features: Iterable[Sequence[Tensor]]) -> float:
    """How well the corners of pictures and their centres are told apart, in pictures that were left out of the fit.

    Args:
        features: for each picture the maps that a network has of its `quarters`, (8, C_s, h_s, w_s) a stage.

    Returns:
        Area under the ROC curve: 0.5 for a set without a middle, 1 where objects stand in the middle of all pictures.

    Raises:
        ConfigError: there are fewer pictures than folds.
    """
    found = torch.stack([torch.cat([_top_left(stage.float()) for stage in stages], 1) for stages in features])
    if len(found) < _FOLDS:
        raise ConfigError(f"centredness needs {_FOLDS} images at least, got {len(found)}")
    cells = CellAxes.fit([found.flatten(0, 1)], [_CORNER_DIMS])([found.flatten(0, 1)])
    border, middle = cells.unflatten(0, (-1, 8)).split(4, 1)
    fold_of = torch.arange(len(found)) % _FOLDS
    scores: list[Tensor] = []
    for fold in range(_FOLDS):
        kept, left_out = fold_of != fold, fold_of == fold
        weight, bias = _discriminant(middle[kept].flatten(0, 1), border[kept].flatten(0, 1))
        scores.append(torch.stack([(part[left_out] @ weight + bias).flatten() for part in (middle, border)]))
    inner, outer = torch.cat(scores, 1).numpy()
    return float(mannwhitneyu(inner, outer).statistic) / (len(inner) * len(outer))


def is_centred(value: float, tags_per_picture: Sequence[int], negatives: int) -> bool:
    """Whether the seeds of this module suit a data set.

    Args:
        value: its `centredness`. Photographs too have objects in the middle, therefore the others.
        tags_per_picture: number of tags of each tagged picture.
        negatives: number of pictures without a tag.
    """
    one_tag = bool(tags_per_picture) and all(count == 1 for count in tags_per_picture)
    return one_tag and not negatives and value >= CENTRED


def _top_left(maps: Tensor) -> Tensor:
    """Mean over the first third of both sides: (B, C, h, w) -> (B, C)."""
    height, width = (max(1, side // 3) for side in maps.shape[-2:])
    return maps[..., :height, :width].mean((-2, -1)).cpu()


def _discriminant(positive: Tensor, negative: Tensor, shrinkage: float = 0.05) -> tuple[Tensor, Tensor]:
    """Weight (R,) and bias () of cells (n, R) and (m, R); 0 lies midway between the means."""
    centres = positive.mean(0), negative.mean(0)
    pairs = zip((positive, negative), centres, strict=True)
    first, second = ((cells - centre).T @ (cells - centre) / len(cells) for cells, centre in pairs)
    covariance = (first + second) / 2
    diagonal = shrinkage * covariance.diagonal().mean() + torch.finfo(covariance.dtype).tiny
    covariance = covariance + diagonal * torch.eye(len(covariance))
    weight = torch.linalg.solve(covariance, centres[0] - centres[1])
    return weight, -(weight @ (centres[0] + centres[1])) / 2
