"""Losses of SpatialEmbeddings (Neven et al., CVPR 2019, section 3): functions of tensors, no network.

Coordinates are in fixed units per pixel, x then y, whatever the size of the picture.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from irn_pipeline.errors import ShapeError
from irn_pipeline.nn.segmenters.base import Target, check_target
from irn_pipeline.ops.spatial_clustering import UNIT_X, UNIT_Y

BANDWIDTH_SCALE = 10.0
"""A raw bandwidth b stands for 1 / (2 sigma^2) = exp(10 b)."""

_FAR = 20.0
"""Beyond this scaled distance 2 exp(-d) - 1 is exactly -1 in float32: neither loss nor gradient."""


@dataclass(frozen=True)
class SpatialLosses:
    """The three terms of one picture, scalars, before they are weighed.

    Attributes:
        instance: mean Lovasz hinge of the instances.
        bandwidth: mean variance of the raw bandwidth inside an instance.
        seed: squared error of the seed maps, mean over pixels, sum over classes.
    """

    instance: Tensor
    bandwidth: Tensor
    seed: Tensor


def pixel_grid(size: tuple[int, int], device: torch.device | None = None) -> Tensor:
    """Coordinates of a picture's pixels.

    Args:
        size: (H, W) in pixels, without an upper limit.
        device: of the result.

    Returns:
        (2, H, W) float32: x in units of 2 / 2047 a pixel, y in units of 1 / 1023 a pixel.
    """
    x = torch.arange(size[1], dtype=torch.float32, device=device) * UNIT_X
    y = torch.arange(size[0], dtype=torch.float32, device=device) * UNIT_Y
    return torch.stack([x.expand(size), y[:, None].expand(size)])


def membership(embedding: Tensor, centre: Tensor, bandwidth: Tensor) -> Tensor:
    """Probability that pixels belong to an instance: exp(-sum_d exp(10 b_d) (e_d - c_d)^2).

    Args:
        embedding: (2, N) coordinates, x then y.
        centre: (2,) of the instance.
        bandwidth: (D,) raw, of the instance; D is 1 (circular) or 2 (elliptical).

    Returns:
        (N,) in [0, 1].
    """
    return torch.exp(-_scaled_distance(embedding, centre, bandwidth))


def lovasz_hinge(scores: Tensor, positive: Tensor) -> Tensor:
    """Lovasz extension of the Jaccard loss of a binary mask, on hinge errors (Berman et al., CVPR 2018).

    Args:
        scores: (N,) real values; their sign is the decision.
        positive: (N,) bool, the true mask.

    Returns:
        Scalar >= 0; exactly 2 (1 - IoU) where all scores are -1 or 1.

    Raises:
        ShapeError: the two differ in shape or are not vectors.

    Example:
        >>> lovasz_hinge(torch.tensor([1.0, -1.0, -1.0]), torch.tensor([True, True, False])).item()
        1.0
    """
    if scores.ndim != 1 or scores.shape != positive.shape:
        raise ShapeError(
            f"scores and positive must be (N,), got {tuple(scores.shape)} and {tuple(positive.shape)}"
        )
    errors = 1 - scores * torch.where(positive, 1.0, -1.0)
    # Errors of 0 and less come last when sorted: they add nothing and change no weight before them.
    counted = errors > 0
    errors, order = errors[counted].sort(descending=True)
    return (errors * lovasz_weights(positive[counted][order], positive.sum())).sum()


def lovasz_weights(positive: Tensor, total: Tensor) -> Tensor:
    """How much each pixel adds to the Jaccard loss when pixels turn wrong one after the other.

    The differences J_j - J_(j-1) of J_j = 1 - (G - p_j) / (G + n_j), in closed form: with U = G + n_j they are
    1 / U for a positive and (G - p_j) / (U (U - 1)) for a negative pixel, so nothing cancels.

    Args:
        positive: (N,) bool, sorted by decreasing error.
        total: number G of positives, those beyond the N included.

    Returns:
        (N,) float32, not differentiated; they sum to 1 where all positives are among the N > 0.
    """
    negatives = (~positive).cumsum(0).float()
    union, remaining = total + negatives, total - positive.cumsum(0).float()
    weights = torch.where(positive, 1 / union, remaining / (union * (union - 1).clamp(min=1)))
    # An empty mask is wrong altogether with its first wrong pixel.
    weights[:1] = torch.where(total == 0, 1.0, weights[:1])
    return weights


def spatial_losses(
    embedding: Tensor,
    bandwidth: Tensor,
    seed: Tensor,
    target: Target,
    *,
    foreground_weights: Tensor,
    to_center: bool,
) -> SpatialLosses:
    """The losses of one picture.

    An instance is its mask without the ignored pixels; one that is ignored altogether is left out. Its weight
    multiplies its instance and bandwidth terms and its part of the seed term. The seed map learns the membership,
    not the mask; no gradient flows through that, nor through the mean bandwidth inside the bandwidth term.

    Args:
        embedding: (2, H, W) float32 coordinates that the pixels point to, x then y.
        bandwidth: (D, H, W) float32 raw, D is 1 or 2.
        seed: (C, H, W) float32 in [0, 1].
        target: what is known of the picture.
        foreground_weights: (C,) weight of a class's own pixels in its seed map; all others weigh 1.
        to_center: the centre is the mean coordinate of the mask; else the mean embedding, which learns.

    Raises:
        ShapeError: the maps and the target differ in size.
        DataError: an instance is of a class that has no seed map.
    """
    size = (seed.shape[1], seed.shape[2])
    check_target(target, len(seed), size)
    known = ~target.ignore.flatten()
    embedding, bandwidth, seed = embedding.flatten(1), bandwidth.flatten(1), seed.flatten(1)
    anchors = pixel_grid(size, seed.device).flatten(1) if to_center else embedding
    seed_target = torch.zeros_like(seed)
    seed_weight = known.to(seed.dtype).repeat(len(seed), 1)
    instance_terms, bandwidth_terms = [], []
    for mask, class_id, weight in zip(
        target.masks.flatten(1), target.class_ids.tolist(), target.weights, strict=True
    ):
        inside = (mask & known).nonzero()[:, 0]
        if len(inside) == 0:
            continue
        own = bandwidth[:, inside]
        mean = own.mean(1)
        centre = anchors[:, inside].mean(1)
        with torch.no_grad():
            near = ((_scaled_distance(embedding, centre, mean) < _FAR) | mask) & known
        index = near.nonzero()[:, 0]
        prob, positive = membership(embedding[:, index], centre, mean), mask[index]
        instance_terms.append(weight * lovasz_hinge(2 * prob - 1, positive))
        bandwidth_terms.append(weight * (own - mean.detach()[:, None]).square().mean())
        seed_target[class_id, inside] = prob.detach()[positive]
        seed_weight[class_id, inside] = foreground_weights[class_id] * weight
    # Zero times everything: an empty picture keeps a graph through all outputs.
    nothing = 0 * (embedding.sum() + bandwidth.sum())
    return SpatialLosses(
        instance=torch.stack(instance_terms).mean() + nothing if instance_terms else nothing,
        bandwidth=torch.stack(bandwidth_terms).mean() + nothing if bandwidth_terms else nothing,
        seed=(seed_weight * (seed - seed_target).square()).sum() / (size[0] * size[1]),
    )


def count_pixels(target: Target, num_classes: int) -> Tensor:
    """How many known pixels of a picture are of each class, and how many are not.

    Args:
        target: of one picture.
        num_classes: classes C that the model knows.

    Returns:
        (2, C) int64, own and other pixels.
    """
    known = ~target.ignore
    own = torch.zeros(num_classes, dtype=torch.int64, device=known.device)
    own.index_add_(0, target.class_ids, (target.masks & known).sum((1, 2)))
    return torch.stack([own, known.sum() - own])


def _scaled_distance(embedding: Tensor, centre: Tensor, bandwidth: Tensor) -> Tensor:
    sharpness = torch.exp(BANDWIDTH_SCALE * bandwidth)
    return (sharpness[:, None] * (embedding - centre[:, None]).square()).sum(0)
