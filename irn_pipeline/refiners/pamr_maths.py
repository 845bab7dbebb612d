"""PAMR: pixel-adaptive mask refinement, maps averaged over neighbours of like colour; no training.

Araslanov & Roth, "Single-Stage Semantic Segmentation from Image Labels", CVPR 2020; repository visinf/1-stage-wseg
(models/mods/pamr.py; the label's rule: models/stage_net.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from irn_pipeline.errors import ShapeError
from irn_pipeline.refiners.neighbours import (
    DILATIONS,
    deviation,
    offsets,
    refine,
    shifted,
    softmax_of_contrasts,
)

_EPSILON = 1e-8


def pamr_weights(image: Tensor, dilations: Sequence[int] = DILATIONS) -> Tensor:
    """Weight of each neighbour n of each pixel i: a softmax over n of contrasts of colour.

    The contrast is the mean over channels of -|x_n - x_i| / (0.1 sd + 1e-8). sd (ddof 1) is over the values of the
    3x3 patches of all distances, each of which holds the pixel itself. Scale and offset of the picture's values cancel.

    Args:
        image: (C, H, W) float32 picture.
        dilations: distances of the neighbours in pixels.

    Returns:
        (S, H, W) weights for the S offsets of `neighbours.offsets`; they sum to 1 at each pixel.
    """
    steps = offsets(dilations)
    scale = 0.1 * deviation(image, steps, own=len(dilations)) + _EPSILON
    contrasts = image.new_empty((len(steps), *image.shape[1:]))
    for contrast, neighbour in zip(contrasts, shifted(image, steps), strict=True):
        torch.mean(-(neighbour - image).abs() / scale, dim=0, out=contrast)
    return softmax_of_contrasts(contrasts)


@torch.no_grad()
def pamr(
    image: Tensor, maps: Tensor, *, dilations: Sequence[int] = DILATIONS, iterations: int = 10
) -> Tensor:
    """Refine the maps of one picture: m_i <- sum_n w_in m_n with `pamr_weights`.

    Memory: S + 3 K + 4 C numbers a pixel (48 offsets: about 60 MB for 500 x 500 pixels and a few maps). The cost
    grows with the pixels; the original refines at the size of its network's maps.

    Args:
        image: (C, H, W) float32 picture, values of any scale.
        maps: (K, h, w) maps of one kind, background included where there is one; resized to the picture.
        dilations: distances of the neighbours in pixels.
        iterations: rounds; 0 only resizes.

    Returns:
        (K, H, W) float32 maps, between the smallest and the largest value of each map.

    Raises:
        ShapeError: maps or picture are not three-dimensional.
        ConfigError: a distance is below 1.
    """
    return refine(image, maps, pamr_weights, dilations, iterations)


def unambiguous_masks(
    maps: Tensor, *, share: float = 0.6, background_share: float = 0.7, at_least: float = 0.2
) -> Tensor:
    """Pixels that are sure of one map: above that map's threshold, and above no other map's.

    The threshold of a map is max(at_least, share * its maximum).

    Args:
        maps: (1 + K, H, W) refined maps of background and the picture's tagged classes.
        share: of a class's maximum.
        background_share: of the background's maximum.
        at_least: lower bound of the classes' thresholds.

    Returns:
        (1 + K, H, W) bool; no mask where no map or several are above their threshold.

    Raises:
        ShapeError: there is no map.
    """
    if maps.ndim != 3 or not len(maps):
        raise ShapeError(f"maps must be (1 + K, H, W), background first, got {tuple(maps.shape)}")
    shares = maps.new_tensor([background_share] + [share] * (len(maps) - 1))
    thresholds = (shares * maps.amax((1, 2))).clamp(min=at_least)
    above = maps > thresholds[:, None, None]
    return above & (above.sum(0) == 1)
