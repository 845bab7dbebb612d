"""Losses that teach the boundary and displacement branches from confident labels (paper, section 4.2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from irn_pipeline.errors import ShapeError
from irn_pipeline.ops.affinity import PairPaths, pair_affinity, pair_destinations, pair_sources
from irn_pipeline.structures import BACKGROUND, IGNORE

_EPSILON = 1e-5
"""Keeps logarithms finite and makes the mean over no pair 0."""


@dataclass(frozen=True)
class PairLabels:
    """What the confident labels say of each pair; a pair with an ignored end is in none of the three.

    Attributes:
        background_positive: (B, P, N) bool, both ends are background.
        foreground_positive: (B, P, N) bool, both ends are of the same foreground class.
        negative: (B, P, N) bool, the ends are of different classes.
    """

    background_positive: Tensor
    foreground_positive: Tensor
    negative: Tensor

    def counts(self) -> Tensor:
        """(3,) int64, the number of pairs of each kind, in the order of the attributes."""
        return torch.stack([mask.sum() for mask in self.masks])

    @property
    def masks(self) -> tuple[Tensor, Tensor, Tensor]:
        """The three, in the order of the attributes."""
        return self.background_positive, self.foreground_positive, self.negative


@dataclass(frozen=True)
class IrnLosses:
    """The five scalar losses of one batch; each is 0 where the batch has none of its pairs.

    `zero_displacement` is what the foreground displacement loss of the same pairs would be if the displacement were 0
    everywhere: what a network that has learned nothing reaches. It has no gradient and is no part of the total.
    """

    background_positive: Tensor
    foreground_positive: Tensor
    negative: Tensor
    foreground_displacement: Tensor
    background_displacement: Tensor
    zero_displacement: Tensor

    @property
    def boundary(self) -> Tensor:
        """Boundary loss: positive and negative pairs count the same."""
        return (self.background_positive / 2 + self.foreground_positive / 2 + self.negative) / 2

    @property
    def displacement(self) -> Tensor:
        """Displacement loss."""
        return (self.foreground_displacement + self.background_displacement) / 2

    @property
    def total(self) -> Tensor:
        """Sum of both, to be minimised."""
        return self.boundary + self.displacement


@dataclass
class DisplacementShares:
    """The foreground displacement loss as a share of that of no displacement, over the last steps of a training.

    Attributes:
        last: number of steps that count at the end; those without a pair within an object do not.
        steps: number of steps so far.
        shares: of the steps that count.
    """

    last: int = 1
    steps: int = 0
    shares: tuple[float, ...] = ()

    def added(self, losses: Mapping[str, float]) -> Mapping[str, float]:
        """Count a step; returns its losses with the share in place of what it is a share of."""
        told = dict(losses)
        zero = told.pop("zero_displacement")
        self.steps += 1
        if zero > 0:
            told["displacement_share"] = told["foreground_displacement"] / zero
            self.shares = (*self.shares, told["displacement_share"])[-self.last :]
        return told

    @property
    def mean(self) -> float | None:
        """Mean share of the steps that count; None where there are none."""
        return sum(self.shares) / len(self.shares) if self.shares else None


def irn_losses(
    boundary: Tensor,
    displacement: Tensor,
    label: Tensor,
    paths: PairPaths,
    *,
    common_counts: Callable[[Tensor], Tensor] | None = None,
) -> IrnLosses:
    """All losses of a batch, in float32 also under autocast.

    Of the affinity a: the mean of -log(a + 1e-5) over positive pairs of either kind, and of -log(1 + 1e-5 - a) over
    negative ones. Of the displacement D: the mean L1 distance of D(source) - D(destination) from the pair's offset over
    foreground-positive pairs, and from 0 over background-positive ones, in cells. A mean is sum / (count + 1e-5).

    Args:
        boundary: (B, h, w) class boundary probability in [0, 1].
        displacement: (B, 2, h, w), dy then dx, in cells.
        label: (B, h, w) uint8 confident label at stride 4, 255 where unsure.
        paths: the pairs; radius 10 in the paper.
        common_counts: makes of this batch's numbers of pairs, (3,), their mean over the parts of a larger batch. The
            mean of the parts' losses is then the loss of the larger batch. None: this is the whole batch.

    Returns:
        Scalar losses; finite for any boundary in [0, 1] and for crops without a pair.

    Raises:
        ShapeError: the three maps do not fit.
    """
    if label.ndim != 3 or boundary.shape != label.shape:
        raise ShapeError(
            f"boundary and label must both be (B, h, w), got {tuple(boundary.shape)} and {tuple(label.shape)}"
        )
    if displacement.shape != (len(label), 2, *label.shape[1:]):
        raise ShapeError(
            f"displacement must be (B, 2, h, w) of the label's size {tuple(label.shape)}, "
            f"got {tuple(displacement.shape)}"
        )
    with torch.autocast(boundary.device.type, enabled=False):
        displacement = displacement.float()
        pairs = pair_labels(label, paths)
        counts = pairs.counts() if common_counts is None else common_counts(pairs.counts())
        sums = _CrossEntropySums.apply(pair_affinity(boundary.float(), paths), *pairs.masks)
        background, foreground, negative = sums / (counts + _EPSILON)
        # Of two components each. Cells that point to the same centroid differ by the pair's offset; in the background
        # all point nowhere.
        foreground_distance = _PairDistance.apply(displacement, pairs.foreground_positive, paths, 1)
        background_distance = _PairDistance.apply(displacement, pairs.background_positive, paths, 0)
        lengths = torch.from_numpy(abs(paths.offsets).sum(1)).to(label.device)
        zero_distance = (pairs.foreground_positive.sum((0, 2)) * lengths).sum()
        return IrnLosses(
            background_positive=background,
            foreground_positive=foreground,
            negative=negative,
            foreground_displacement=foreground_distance / (2 * counts[1] + _EPSILON),
            background_displacement=background_distance / (2 * counts[0] + _EPSILON),
            zero_displacement=zero_distance / (2 * counts[1] + _EPSILON),
        )


def pair_labels(label: Tensor, paths: PairPaths) -> PairLabels:
    """Compare the labels at both ends of every pair, on the label's device.

    Args:
        label: (B, h, w) uint8, 0 background, class_id + 1, 255 ignore.
        paths: the pairs.

    Returns:
        Three disjoint masks.
    """
    source = pair_sources(label, paths.radius).flatten(1)[:, None]
    destination = torch.stack([pair_destinations(label, o, paths.radius) for o in paths.offsets], 1).flatten(
        2
    )
    same = (source == destination) & (source != IGNORE)
    background = source == BACKGROUND
    return PairLabels(
        background_positive=same & background,
        foreground_positive=same & ~background,
        negative=(source != destination) & (source != IGNORE) & (destination != IGNORE),
    )


class _CrossEntropySums(torch.autograd.Function):
    """Sums of -log(confidence) over three disjoint masks of pairs, (3,).

    The confidence is a + 1e-5, or 1 - a + 1e-5 where the pair is negative. One sample at a time: beside the
    affinity and the masks, nothing of the size of all pairs is kept.
    """

    @staticmethod
    def forward(
        ctx: Any, affinity: Tensor, background: Tensor, foreground: Tensor, negative: Tensor
    ) -> Tensor:
        ctx.save_for_backward(affinity, background, foreground, negative)
        sums = affinity.new_zeros(3)
        for values, *masks in zip(affinity, background, foreground, negative, strict=True):
            weights = torch.stack(masks).to(values.dtype)
            cost = _confidence(values, weights[2]).log_().neg_()
            sums += weights.mul_(cost).sum((1, 2))
        return sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_sums: Tensor) -> tuple[Tensor, None, None, None]:
        affinity, *all_masks = ctx.saved_tensors
        slopes = (grad_sums * grad_sums.new_tensor([-1.0, -1.0, 1.0]))[:, None, None]
        grads = torch.empty_like(affinity)
        for grad, values, *masks in zip(grads, affinity, *all_masks, strict=True):
            weights = torch.stack(masks).to(values.dtype)
            confidence = _confidence(values, weights[2])
            torch.div(weights.mul_(slopes).sum(0), confidence, out=grad)
        return grads, None, None, None


def _confidence(affinity: Tensor, negative: Tensor) -> Tensor:
    """Probability that the pair is what its label says, plus 1e-5; `negative` is 0 or 1."""
    return (affinity - negative).abs_().add_(_EPSILON)


class _PairDistance(torch.autograd.Function):
    """Sum over chosen pairs of |D(source) - D(destination) - scale * offset|, both components.

    The gradient is a small map of signs that the forward pass makes along the way, so that nothing of the
    size of all pairs is kept for the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, displacement: Tensor, chosen: Tensor, paths: PairPaths, scale: int) -> Tensor:
        radius, grad = paths.radius, torch.zeros_like(displacement)
        sources = pair_sources(displacement, radius)
        chosen = chosen.unflatten(2, sources.shape[2:])[:, :, None]
        targets = displacement.new_tensor(paths.offsets * scale)[:, :, None, None]
        total = displacement.new_zeros(())
        for offset, mask, target in zip(paths.offsets, chosen.unbind(1), targets, strict=True):
            error = (sources - pair_destinations(displacement, offset, radius)).sub_(target).mul_(mask)
            total += error.abs().sum()
            error.sign_()
            pair_sources(grad, radius).add_(error)
            pair_destinations(grad, offset, radius).sub_(error)
        ctx.save_for_backward(grad)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor, None, None, None]:
        (grad,) = ctx.saved_tensors
        return grad * grad_total, None, None, None
