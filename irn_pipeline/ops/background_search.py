"""A background score for each picture: where regions end at boundaries and hold what their surroundings do not.

One score for all pictures is too high for some and too low for others, as it is relative to a picture's largest value.
No training and no label: boundary and features are IRNet's, whose backbone sees the picture anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from irn_pipeline.errors import ShapeError
from irn_pipeline.structures import FloatArray

if TYPE_CHECKING:  # imported when it is used: the parameters of stages import this module
    from torch import Tensor

CANDIDATES: tuple[float, ...] = tuple(round(0.05 * step, 2) for step in range(1, 20))
"""Background scores that are compared, relative to the largest value of a picture's maps: 0.05, 0.10 .. 0.95."""


def background_evidence(maps: Tensor, boundary: Tensor, features: Tensor) -> FloatArray:
    """How well each candidate parts the objects of a picture from their surroundings.

    evidence(t) = boundary - likeness - cut, of the regions where the largest map exceeds t:
    boundary: mean over the contour, every pair of neighbouring cells with different labels, at the larger of both;
    likeness: cos(mean feature inside, mean feature outside);
    cut: normalised cut of inside and outside (Shi and Malik, PAMI 2000), the affinity of two cells being the cosine
    of their features; in [0, 2].
    Features are divided by their length first. Each term alone chooses worse than the three together (docs/RESULTS.md).

    Args:
        maps: (K, h, w) float32 walked maps of the classes, not negative.
        boundary: (h, w) float32 class boundary probability, on the maps' device.
        features: (D, h', w') floats >= 0 of the picture on a coarser grid, on the maps' device.

    Returns:
        (T,) float32 for the T `CANDIDATES`; minus infinity where the regions are nothing or the whole picture.

    Raises:
        ShapeError: maps, boundary and features do not fit together.
    """
    import torch
    from torch.nn.functional import adaptive_avg_pool2d, cosine_similarity, normalize

    if maps.ndim != 3 or boundary.shape != maps.shape[1:] or features.ndim != 3:
        raise ShapeError(
            f"maps (K, h, w) need a boundary (h, w) and features (D, h', w'), got {tuple(maps.shape)}, "
            f"{tuple(boundary.shape)} and {tuple(features.shape)}"
        )
    largest = float(maps.max()) if maps.numel() else 0.0
    if largest <= 0:
        return np.full(len(CANDIDATES), -np.inf, np.float32)
    best, index = maps.max(0)
    levels = largest * torch.tensor(CANDIDATES, device=maps.device)[:, None, None]
    labels = torch.where(best > levels, index.int() + 1, 0)
    regions = labels > 0
    grid = (features.shape[1], features.shape[2])
    unit = normalize(features.float().flatten(1), dim=0)
    inside = adaptive_avg_pool2d(regions.float(), grid).flatten(1) @ unit.T
    whole = unit.sum(1)
    outside = whole - inside
    # Sums serve as means, the cosine does not depend on their length; and as sums over pairs of cells, the affinity
    # being a scalar product.
    likeness = cosine_similarity(inside, outside, dim=1)
    between = (inside * outside).sum(1)
    cut = between / (inside @ whole) + between / (outside @ whole)
    evidence = _contour_boundary(labels, boundary) - likeness - cut
    parted = regions.flatten(1).any(1) & ~regions.flatten(1).all(1)
    # Features that are zero on one side have no direction and no affinity.
    result: FloatArray = evidence.where(parted & evidence.isfinite(), -torch.inf).cpu().numpy()
    return result


def _contour_boundary(labels: Tensor, boundary: Tensor) -> Tensor:
    """Mean over the pairs of neighbours whose labels differ, of the larger boundary of both; (T,) for T label maps."""
    import torch

    across, down = labels[:, :, 1:] != labels[:, :, :-1], labels[:, 1:] != labels[:, :-1]
    total = (across * torch.maximum(boundary[:, 1:], boundary[:, :-1])).sum((1, 2))
    total += (down * torch.maximum(boundary[1:], boundary[:-1])).sum((1, 2))
    return total / (across.sum((1, 2)) + down.sum((1, 2)))


def best_background(evidence: FloatArray, limits: Sequence[float]) -> float | None:
    """The candidate with the most evidence.

    Args:
        evidence: (T,) of `background_evidence`.
        limits: lowest and highest background score that may be taken, both included.

    Returns:
        The background score; None if there is evidence for none.

    Raises:
        ShapeError: the evidence is not that of the candidates.
    """
    if evidence.shape != (len(CANDIDATES),):
        raise ShapeError(f"evidence must be ({len(CANDIDATES)},), of each candidate, got {evidence.shape}")
    allowed = within(limits)
    chosen = max(allowed, key=lambda number: evidence[number])
    return CANDIDATES[chosen] if np.isfinite(evidence[chosen]) else None


def within(limits: Sequence[float]) -> list[int]:
    """Positions of the candidates between two limits, both included."""
    return [number for number, score in enumerate(CANDIDATES) if limits[0] <= score <= limits[1]]
