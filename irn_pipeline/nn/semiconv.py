"""Semi-convolutional operators: embeddings that know where they are (Novotny et al., ECCV 2018).

A convolution gives two identical objects identical embeddings, wherever they are. A semi-convolution adds each cell's
own position to the convolution's first two channels, so that the network can point every cell of an object to one
place that no other object shares.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from irn_pipeline.errors import ShapeError

KernelName = Literal["laplacian", "gaussian"]
_NORM_FLOOR = 1e-12
"""Added below the root of a squared distance that is averaged, where its slope would be unbounded."""
_MIN_DISTANCE = 1e-2
"""In units of sigma: the slope of log(1 - K) is about 1 / distance, so no cell pulls more than 100 times sigma."""


def coordinate_map(
    size: tuple[int, int], *, stride: float = 1.0, device: torch.device | None = None
) -> Tensor:
    """Position of every cell of a feature map in the picture.

    Args:
        size: (h, w) of the map.
        stride: pixels per cell; cell (i, j) stands at (j * stride, i * stride).
        device: where the result is made.

    Returns:
        (2, h, w) float32, x then y, pixels.
    """
    y, x = (torch.arange(length, dtype=torch.float32, device=device) * stride for length in size)
    return torch.stack(torch.meshgrid(x, y, indexing="xy"))


def semi_convolution(features: Tensor, *, stride: float = 1.0, unit: float = 1.0) -> Tensor:
    """Psi_u = Phi_u + u: what a convolution says of a cell, plus where the cell is (paper, equation 2).

    Args:
        features: (..., D, h, w) output Phi of a convolution; its first two channels become x and y.
        stride: pixels per cell.
        unit: pixels per unit of the embedding; the same for all maps that are compared.

    Returns:
        (..., D, h, w) float32, or float64 for float64 features.

    Raises:
        ShapeError: there are fewer than two channels.
    """
    if features.ndim < 3 or features.shape[-3] < 2:
        raise ShapeError(f"features must be (..., D >= 2, h, w), got {tuple(features.shape)}")
    position = coordinate_map((features.shape[-2], features.shape[-1]), stride=stride, device=features.device)
    appearance = position.new_zeros(features.shape[-3] - 2, *features.shape[-2:])
    return features + torch.cat([position / unit, appearance])


def segment_attraction(embeddings: Tensor, masks: Tensor) -> Tensor:
    """Mean distance, not squared, of a segment's embeddings from their mean (paper, equation 3).

    The gradient flows through the mean as well. Nothing here pushes segments apart: a network that gives every cell
    the same embedding has the lowest loss, so never choose a model by it.

    Args:
        embeddings: (D, h, w) Psi of one picture.
        masks: (R, h, w) bool; they may overlap.

    Returns:
        (R,) one term for each segment; 0 for an empty one.

    Raises:
        ShapeError: the two do not fit.
    """
    if embeddings.ndim != 3 or masks.ndim != 3 or embeddings.shape[1:] != masks.shape[1:]:
        raise ShapeError(
            f"embeddings (D, h, w) and masks (R, h, w) must be of one size, "
            f"got {tuple(embeddings.shape)} and {tuple(masks.shape)}"
        )
    segments, cells = masks.flatten(1).nonzero(as_tuple=True)
    points = embeddings.flatten(1).T[cells]
    sizes = masks.sum((1, 2)).clamp(min=1)
    sums = points.new_zeros(len(masks), points.shape[1]).index_add(0, segments, points)
    squares = (points - (sums / sizes[:, None])[segments]).square().sum(1)
    distances = (squares + _NORM_FLOOR).sqrt()
    return points.new_zeros(len(masks)).index_add(0, segments, distances) / sizes


def attraction_loss(embeddings: Tensor, masks: Tensor) -> Tensor:
    """L(Psi) of one picture: the mean of `segment_attraction` over its segments.

    Args:
        embeddings: (D, h, w).
        masks: (R, h, w) bool.

    Returns:
        Scalar; 0 without a segment.
    """
    return segment_attraction(embeddings, masks).sum() / max(len(masks), 1)


def steered_log_kernel(
    embeddings: Tensor, seeds: Tensor, sigma: Tensor | float, kind: KernelName = "laplacian"
) -> Tensor:
    """Logarithm of a steered kernel: -d / sigma (paper, equation 6), or -(d / sigma)^2 / 2 (equation 5).

    Args:
        embeddings: (R, D, h, w).
        seeds: (R, D) one embedding to compare with for each map, at the distance d.
        sigma: bandwidth, in units of the embedding.
        kind: laplacian or gaussian.

    Returns:
        (R, h, w) in (-inf, 0], exactly 0 where the embedding is the seed's; its slope there is taken as 0.
    """
    difference = embeddings - seeds[:, :, None, None]
    if kind == "gaussian":
        return -difference.square().sum(1) / (2 * sigma**2)
    return -torch.linalg.vector_norm(difference, dim=1) / sigma


def kernel_cross_entropy(log_kernel: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy of a kernel taken as a probability, cell by cell, stable for K near 0 and near 1.

    Args:
        log_kernel: log K, at most 0.
        target: probabilities of the same shape.

    Returns:
        -target * log K - (1 - target) * log(1 - K), with K at most exp(-0.01) in the second term.
    """
    log_rest = torch.log(-torch.expm1(log_kernel.clamp(max=-_MIN_DISTANCE)))
    return -target * log_kernel - (1 - target) * log_rest


def soft_seed(scores: Tensor, embeddings: Tensor) -> Tensor:
    """Soft argmax: the embeddings' mean under softmax(scores); differentiable, for training.

    Args:
        scores: (R, h, w) mask logits.
        embeddings: (R, D, h, w).

    Returns:
        (R, D).
    """
    return torch.einsum("rn,rdn->rd", scores.flatten(1).softmax(1), embeddings.flatten(2))


def hard_seed(scores: Tensor, embeddings: Tensor) -> Tensor:
    """The embedding of the cell with the best score, the first of equals; arguments as `soft_seed`."""
    best = scores.flatten(1).argmax(1)
    return embeddings.flatten(2)[torch.arange(len(best), device=best.device), :, best]


def scale_gradient(values: Tensor, factor: float) -> Tensor:
    """The same values, bit for bit, whose gradient is multiplied by `factor` on its way back."""
    fixed = values.detach()
    return fixed + factor * (values - fixed)


class SemiconvEmbedding(nn.Module):
    """Small network from features to semi-convolutional embeddings; one for all levels of a pyramid.

    Args:
        channels: of the features.
        dim: D, channels of the embedding.
        gradient: what reaches the features of the embedding's gradient; this network's own is whole.
        unit: pixels per unit of the embedding.
    """

    def __init__(self, channels: int, *, dim: int = 8, gradient: float = 0.1, unit: float = 32.0) -> None:
        super().__init__()
        self.gradient, self.unit = gradient, unit
        # The last layer does not start at zero: K would be a plain distance kernel, which erodes every mask.
        self.layers = nn.Sequential(
            nn.Conv2d(channels, channels, 1), nn.ReLU(), nn.Conv2d(channels, dim, 3, padding=1)
        )

    def forward(self, features: Tensor, stride: float) -> Tensor:
        """(B, channels, h, w) features at `stride` pixels per cell -> (B, D, h, w) float32 embeddings."""
        offsets = self.layers(scale_gradient(features, self.gradient))
        return semi_convolution(offsets.float(), stride=stride, unit=self.unit)
