"""Activation maps spread over cells of like features, so that they cover the object and end where it ends.

No training and no label: the features are the classifier's own. The pixel correlation module of SEAM (Wang et al.,
CVPR 2020) weighs cells in the same way, by the rectified cosine of their features, but learns the features for it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, normalize

from irn_pipeline.errors import ConfigError, ShapeError
from irn_pipeline.ops.cam import sum_over_scales

_FLAT = 1e-4
"""A map that varies by less, relative to its largest value, has no ground that could be taken off."""


def feature_affinity(features: Sequence[Tensor], power: float) -> Tensor:
    """Weights with which each cell of the last stage's grid takes the values of all cells.

    weight(i, j) = (product over stages of max(cos(f_i, f_j), 0)) ^ power, each row divided by its sum.

    Args:
        features: (C_s, h_s, w_s) floats of one picture per network stage; all are brought to the grid of the last.
        power: how much more like cells count, above 0.

    Returns:
        (N, N) float32 for the N = h * w cells, on the features' device; N^2 numbers, so for small grids only.

    Raises:
        ShapeError: there is no stage, or one is not three-dimensional.
        ConfigError: the power is not above 0, or not finite.
    """
    if not features or any(stage.ndim != 3 for stage in features):
        raise ShapeError(f"features must be (C, h, w) a stage, got {[tuple(s.shape) for s in features]}")
    if not 0 < power < float("inf"):
        raise ConfigError(f"the power of the feature affinity must be a number above 0, got {power}")
    grid = (features[-1].shape[1], features[-1].shape[2])
    weights = torch.ones(grid[0] * grid[1], grid[0] * grid[1], device=features[-1].device)
    for stage in features:
        unit = normalize(adaptive_avg_pool2d(stage.float(), grid).flatten(1), dim=0)
        weights.mul_((unit.T @ unit).clamp_(min=0))
    weights.pow_(power)
    # A cell without features is like none, itself included: it keeps its value.
    weights.diagonal().clamp_(min=torch.finfo(torch.float32).tiny)
    return weights.div_(weights.sum(1, keepdim=True))


def spread_maps(maps: Sequence[Tensor], features: Sequence[Tensor], power: float) -> Tensor:
    """One picture's maps, summed and spread over cells of like features.

    Every cell gets the weighted mean of its class's map (`feature_affinity`); what the whole picture then has in
    common, the map's smallest value, is taken off.

    Args:
        maps: one (K, h_s, w_s) float32 tensor of values >= 0 per scale.
        features: (C_s, h_s, w_s) floats of the picture per network stage.
        power: how much more like cells count, above 0.

    Returns:
        (K, h, w) float32 maps >= 0 on the grid of the last stage.

    Raises:
        ShapeError: there is no map, or features do not fit.
        ConfigError: the power is not above 0, or not finite.
    """
    if not maps:
        raise ShapeError("there is no map to spread")
    weights = feature_affinity(features, power)
    grid = (features[-1].shape[1], features[-1].shape[2])
    total = sum_over_scales(maps, grid, antialias=True)
    if not total.numel():  # of no maps there is no largest value
        return total
    spread = (total.flatten(1) @ weights.T).view_as(total)
    lowest, highest = spread.amin((1, 2), keepdim=True), spread.amax((1, 2), keepdim=True)
    return torch.where(highest - lowest > _FLAT * highest, spread - lowest, spread)
