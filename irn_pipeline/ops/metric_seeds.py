"""Masks around seeds in an embedding space: distances, thresholds, seed picking, suppression of duplicates.

Fathi et al., "Semantic Instance Segmentation via Deep Metric Learning" (2017), sections 3.1 and 3.3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from irn_pipeline.errors import ConfigError, ShapeError
from irn_pipeline.structures import BoolArray


def distance_limits(thresholds: Sequence[float]) -> tuple[float, ...]:
    """Squared distance at which the similarity 2 / (1 + exp(distance)) falls to each threshold: ln(2 / tau - 1).

    Args:
        thresholds: similarities tau in (0, 1).

    Returns:
        One positive number for each, in the same order.

    Raises:
        ConfigError: there is no threshold, or one lies outside.

    Example:
        >>> [round(limit, 3) for limit in distance_limits((0.25, 0.5, 0.75, 0.9))]
        [1.946, 1.099, 0.511, 0.201]
    """
    if not thresholds or not all(0 < threshold < 1 for threshold in thresholds):
        raise ConfigError(f"similarities must be numbers between 0 and 1, got {tuple(thresholds)}")
    return tuple(math.log(2 / threshold - 1) for threshold in thresholds)


def squared_distances(points: Tensor, embeddings: Tensor) -> Tensor:
    """Squared Euclidean distance of every pair, as one matrix product; for masks, not for gradients.

    Args:
        points: (P, D) float32.
        embeddings: (N, D) float32.

    Returns:
        (P, N) float32, not negative. Its error is about 1e-6 of the largest squared distance from the mean.

    Raises:
        ShapeError: the two have different dimensions D.
    """
    if points.ndim != 2 or embeddings.ndim != 2 or points.shape[1] != embeddings.shape[1]:
        raise ShapeError(
            f"points and embeddings must be (P, D) and (N, D), "
            f"got {tuple(points.shape)} and {tuple(embeddings.shape)}"
        )
    # |a|^2 - 2ab + |b|^2 cancels badly far from the origin, and coordinates put corners of pictures there.
    centre = embeddings.mean(0) if len(embeddings) else 0.0
    points, embeddings = points - centre, embeddings - centre
    norms = points.square().sum(1)[:, None] + embeddings.square().sum(1)
    return torch.addmm(norms, points, embeddings.T, alpha=-2).clamp_(min=0)


def threshold_masks(distances: Tensor, limits: Sequence[float]) -> Tensor:
    """Masks of every point at every threshold, a larger limit holding the smaller ones.

    Args:
        distances: (P, N) squared distances.
        limits: T squared distances (see `distance_limits`).

    Returns:
        (P, T, N) bool.
    """
    return distances[:, None] <= distances.new_tensor(limits)[:, None]


def best_instances(masks: Tensor, truth: Tensor, *, min_iou: float = 0.5) -> Tensor:
    """The true instance that each mask overlaps best.

    Args:
        masks: (..., N) bool masks.
        truth: (R, N) bool masks on the same cells.
        min_iou: the intersection over union must exceed it.

    Returns:
        (...) int64 instance 0..R-1, -1 where none is good enough.
    """
    if len(truth) == 0:
        return torch.full(masks.shape[:-1], -1, device=masks.device)
    # Sums of ones are exact in float32.
    found, true = masks.float(), truth.float()
    shared = found @ true.T
    union = found.sum(-1)[..., None] + true.sum(-1) - shared
    iou, index = (shared / union.clamp(min=1)).max(-1)
    return index.masked_fill(iou <= min_iou, -1)


def pick_seeds(embeddings: Tensor, scores: Tensor, count: int, *, diversity: float) -> Tensor:
    """Cells that score high and lie far from one another in the embedding space.

    The first has the largest score S; each next one the largest log S + diversity * log D, where D is the
    squared distance to the nearest seed so far, so that a diversity of 0.3 is 0.6 of the distance itself (the paper
    tries 0.1 to 0.6). A cell of score 0, or where D = 0, is never a seed.

    Args:
        embeddings: (N, D) float32.
        scores: (N,) seediness, not negative.
        count: seeds at most.
        diversity: weight alpha; 0 gives the cells of the largest scores.

    Returns:
        (T,) int64 different cells in the order of picking, T <= count.

    Raises:
        ShapeError: not one score for each embedding.
        ConfigError: count or diversity is negative.
    """
    if embeddings.ndim != 2 or scores.shape != embeddings.shape[:1]:
        raise ShapeError(
            f"embeddings and scores must be (N, D) and (N,), "
            f"got {tuple(embeddings.shape)} and {tuple(scores.shape)}"
        )
    if count < 0 or diversity < 0:
        raise ConfigError(f"count and diversity must not be negative, got {count} and {diversity}")
    candidates = scores.nonzero()[:, 0]
    embeddings, value = embeddings[candidates], scores[candidates].float().log()
    if diversity == 0:
        return candidates[value.argsort(descending=True, stable=True)[:count]]
    nearest = torch.ones_like(value)
    rank = value
    picked: list[Tensor] = []
    values: list[Tensor] = []
    # No value is looked at inside the loop, so that an accelerator need not stop for it.
    for _ in range(min(count, len(candidates))):
        best, index = rank.max(0)
        picked.append(index)
        values.append(best)
        distance = (embeddings - embeddings[index]).square().sum(1)
        nearest = torch.minimum(nearest, distance) if len(picked) > 1 else distance
        nearest[index] = 0
        rank = value + diversity * nearest.log()
    if not picked:
        return candidates[:0]
    return candidates[torch.stack(picked)[torch.stack(values).isfinite()]]


def seed_components(masks: BoolArray, seeds: Sequence[int]) -> BoolArray:
    """The 4-connected component of each mask that holds its seed.

    Args:
        masks: (M, h, w) bool.
        seeds: M flat positions y * w + x, each inside its mask.

    Returns:
        (M, h, w) bool.
    """
    kept = np.zeros_like(masks)
    for mask, seed, out in zip(masks, seeds, kept, strict=True):
        components = ndimage.label(mask)[0]
        np.equal(components, components.flat[seed], out=out)
    return kept


def suppress_masks(masks: Tensor, scores: Tensor, class_ids: Tensor, *, max_iou: float = 0.5) -> Tensor:
    """Non-maximum suppression of masks, each class for itself.

    Args:
        masks: (M, N) bool.
        scores: (M,) float.
        class_ids: (M,) int64.
        max_iou: a mask goes if a better one of its class that stays overlaps it by more than this.

    Returns:
        (K,) int64 positions of the masks that stay, best first.

    Raises:
        ShapeError: not one score and class for each mask.
    """
    if masks.ndim != 2 or scores.shape != masks.shape[:1] or class_ids.shape != masks.shape[:1]:
        raise ShapeError(
            f"suppression needs masks (M, N), scores (M,) and class_ids (M,), "
            f"got {tuple(masks.shape)}, {tuple(scores.shape)} and {tuple(class_ids.shape)}"
        )
    order = scores.argsort(descending=True, stable=True)
    flat, classes = masks[order].float(), class_ids[order]
    shared = flat @ flat.T
    area = flat.sum(1)
    iou = shared / (area[:, None] + area - shared).clamp(min=1)
    rivals = ((iou > max_iou) & (classes[:, None] == classes)).cpu().numpy()
    stays = np.ones(len(rivals), np.bool_)
    for index in range(len(rivals)):
        stays[index] = not (rivals[index, :index] & stays[:index]).any()
    return order[torch.from_numpy(stays).to(order.device)]
