"""Losses of metric embeddings: pairs of sampled cells, and classes of the masks around them.

Fathi et al., "Semantic Instance Segmentation via Deep Metric Learning" (2017), sections 3.1 and 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, softplus

from irn_pipeline.errors import ShapeError
from irn_pipeline.nn.segmenters.base import Target
from irn_pipeline.ops.metric_seeds import best_instances, squared_distances, threshold_masks

BACKGROUND_GROUP = -1
"""Group of the cells that belong to no instance."""
BackgroundRole = Literal["none", "repel", "attract"]
"""none: not sampled, as published; repel: far from every instance; attract: also close to itself, like an instance."""
BackgroundSize = Literal["own", "mean"]
"""Size that weighs background points: the cells of the background, or the mean of the instances."""
_SMALLEST_DISTANCE = 1e-6
"""Squared distance below which two instances repel each other no further: log(1 - similarity) stays finite."""


@dataclass(frozen=True)
class CellTarget:
    """What one picture teaches about its N feature cells.

    Attributes:
        masks: (R, N) bool, disjoint, none of them empty.
        class_ids: (R,) int64 in 0..C-1.
        weights: (R,) float32 in [0, 1], how far each instance is to be trusted.
        known: (N,) bool, False where the picture is to be ignored.
    """

    masks: Tensor
    class_ids: Tensor
    weights: Tensor
    known: Tensor

    @property
    def background(self) -> Tensor:
        """(N,) bool known cells of no instance."""
        return self.known & ~self.masks.any(0)


@dataclass(frozen=True)
class Points:
    """Sampled cells; one that was drawn twice is there twice.

    Attributes:
        cells: (P,) int64 positions 0..N-1.
        groups: (P,) int64 instance of each, `BACKGROUND_GROUP` for background.
        sizes: (P,) float32 cells of that instance, or of the background.
        weights: (P,) float32 trust in that instance; 1 for background.
    """

    cells: Tensor
    groups: Tensor
    sizes: Tensor
    weights: Tensor


def cell_target(target: Target, stride: int) -> CellTarget:
    """Read a target at the pixel in the middle of each feature cell.

    Args:
        target: of a (H, W) picture.
        stride: pixels per cell.

    Returns:
        The target of ceil(H / stride) * ceil(W / stride) cells, row by row. An instance that no cell's middle meets
        gets the cell that holds most of it, unless another instance would lose its last cell.
    """
    rows, columns = (
        (torch.arange(0, length, stride, device=target.ignore.device) + stride // 2).clamp(max=length - 1)
        for length in target.ignore.shape
    )
    known = ~target.ignore[rows][:, columns].flatten()
    masks = target.masks[:, rows][:, :, columns].flatten(1) & known
    for index in (~masks.any(1)).nonzero()[:, 0].tolist():
        y, x = (target.masks[index] & ~target.ignore).nonzero(as_tuple=True)
        shares = torch.bincount(y // stride * len(columns) + x // stride, minlength=len(known))
        last = (masks & (masks.sum(1) == 1)[:, None]).any(0)
        share, cell = shares.masked_fill(last, 0).max(0)
        if share > 0:
            masks[:, cell] = False
            masks[index, cell] = known[cell] = True
    kept = masks.any(1)
    return CellTarget(masks[kept], target.class_ids[kept], target.weights[kept].float(), known)


def sample_points(
    target: CellTarget,
    count: int,
    generator: torch.Generator,
    *,
    background_count: int = 0,
    background_size: BackgroundSize = "own",
) -> Points:
    """Draw cells of every instance and of the background, with replacement.

    Args:
        target: of one picture.
        count: points an instance.
        generator: on the target's device.
        background_count: points of the background.
        background_size: what the size of background points is.

    Returns:
        The points, group by group; none if there is nothing to draw from.
    """
    sizes = target.masks.sum(1).float()
    groups = torch.arange(len(sizes), device=sizes.device)
    parts = [(target.masks, groups, sizes, target.weights, count)]
    rest = target.background
    if background_count and rest.any():
        size = sizes.mean() if background_size == "mean" and len(sizes) else rest.sum().float()
        one = sizes.new_ones(1)
        parts.append((rest[None], groups.new_tensor([BACKGROUND_GROUP]), size[None], one, background_count))
    drawn = [
        (torch.multinomial(m.float(), n, replacement=True, generator=generator).flatten(),
         *(x.repeat_interleave(n) for x in values))
        for m, *values, n in parts if len(m)
    ]  # fmt: skip
    if not drawn:
        return Points(groups, groups, sizes, sizes)
    return Points(*(torch.cat(column) for column in zip(*drawn, strict=True)))


def log_similarity(distances: Tensor) -> Tensor:
    """Log of sigma = 2 / (1 + exp(x)), x being squared distances: ln 2 - softplus(x); finite for every x >= 0."""
    return math.log(2) - softplus(distances)


def log_dissimilarity(distances: Tensor) -> Tensor:
    """Log of 1 - sigma: log tanh(x / 2), x at least 1e-6."""
    return (distances.clamp(min=_SMALLEST_DISTANCE) / 2).tanh().log()


def pair_weights(points: Points, *, background_attracts: bool = True) -> Tensor:
    """Weights w_pq proportional to 1 / (n_p + n_q) that sum to 1 over the pairs that count.

    Args:
        points: P of them.
        background_attracts: whether pairs of two background points count.

    Returns:
        (P, P) float32, 0 for pairs that do not count.
    """
    weights = 1 / (points.sizes[:, None] + points.sizes)
    if not background_attracts:
        rest = points.groups == BACKGROUND_GROUP
        weights = weights.masked_fill(rest[:, None] & rest, 0)
    return weights / weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)


def embedding_loss(embeddings: Tensor, points: Points, *, background_attracts: bool = True) -> Tensor:
    """Weighted mean over pairs of points of -log sigma in one instance and -log(1 - sigma) between two.

    The published factor 1 / |S| is left out: beside weights that sum to 1 it makes the loss smaller the more
    instances there are. A pair counts as far as the less trusted of its ends.

    Args:
        embeddings: (P, D) float32, those of the points.
        points: P of them.
        background_attracts: whether pairs of two background points count.

    Returns:
        Scalar; 0 with a graph where there is no point.

    Raises:
        ShapeError: not one embedding for each point.
    """
    if embeddings.ndim != 2 or len(embeddings) != len(points.cells):
        raise ShapeError(
            f"embeddings must be ({len(points.cells)}, D) for these points, got {tuple(embeddings.shape)}"
        )
    # Explicit differences: the expansion into a matrix product loses the small distances that count most here.
    distances = torch.cdist(embeddings, embeddings, compute_mode="donot_use_mm_for_euclid_dist").square()
    same = points.groups[:, None] == points.groups
    cost = -torch.where(same, log_similarity(distances), log_dissimilarity(distances))
    trust = torch.minimum(points.weights[:, None], points.weights)
    weights = pair_weights(points, background_attracts=background_attracts)
    return (weights * trust * cost).sum()


def class_targets(
    embeddings: Tensor, cells: Tensor, target: CellTarget, limits: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """What the masks around some cells show at present; no gradient flows through the answer.

    Args:
        embeddings: (N, D) of all cells of a picture.
        cells: (P,) the cells whose masks are looked at.
        target: of the picture.
        limits: T squared distances that bound a mask.

    Returns:
        Labels (P, T) int64, class_id + 1 of the instance that the mask overlaps by more than half of their
        union, else 0; and trust (P, T) float32, that instance's, or that of the cell's own where there is none.
    """
    with torch.no_grad():
        embeddings = embeddings.detach().float()
        # Cells of which nothing is known make a mask neither better nor worse.
        masks = threshold_masks(squared_distances(embeddings[cells], embeddings), limits) & target.known
        found = best_instances(masks, target.masks)
        labels = torch.cat([target.class_ids + 1, target.class_ids.new_zeros(1)])
        trust = torch.cat([target.weights, target.weights.new_ones(1)])
        own = torch.cat([target.masks, target.background[None]]).float().argmax(0)[cells]
        return labels[found], torch.where(found >= 0, trust[found], trust[own][:, None])


def class_loss(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Mean over points and thresholds of the weighted cross-entropy.

    Args:
        logits: (P, T, C + 1) float32.
        labels: (P, T) int64 in 0..C.
        weights: (P, T) float32.

    Returns:
        Scalar; 0 with a graph where there is no point.
    """
    costs = cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    return (costs * weights.flatten()).sum() / max(costs.numel(), 1)


def class_loss_weight(progress: float) -> float:
    """Weight of the class loss: masks mean little before the embeddings settle.

    Args:
        progress: fraction of the training that is done.

    Returns:
        0 up to 0.2, 0.2 from 0.6 on, linear between.
    """
    return 0.2 * min(max((progress - 0.2) / 0.4, 0.0), 1.0)
