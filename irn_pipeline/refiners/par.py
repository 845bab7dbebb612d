"""PAR: pixel-adaptive refinement with a term for the distance, and the rule that makes labels from refined maps.

Ru et al., "Learning Affinity from Attention" (AFA), CVPR 2022, and "Token Contrast" (ToCo), CVPR 2023; repositories
rulixiang/afa (wetr/PAR.py) and rulixiang/ToCo (model/PAR.py, utils/camutils.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from irn_pipeline.errors import ConfigError, ShapeError
from irn_pipeline.ops.masks import label_from_index
from irn_pipeline.refiners.neighbours import (
    DILATIONS,
    deviation,
    offsets,
    refine,
    shifted,
    softmax_of_contrasts,
)
from irn_pipeline.structures import BACKGROUND, IGNORE, IntArray, LabelArray

_EPSILON = 1e-8
_WIDTH = 0.3
_DISTANCE_WEIGHT = 0.01


def par_weights(image: Tensor, dilations: Sequence[int] = DILATIONS) -> Tensor:
    """Weight of each neighbour: a softmax of contrasts of colour plus 0.01 times one of contrasts of distance.

    Colour: the mean over channels of -(|x_n - x_i| / (sd + 1e-8) / 0.3)^2, sd (ddof 1) over the neighbours. Distance:
    -(r / (sd(r) + 1e-8) / 0.3)^2, r in pixels.

    Args:
        image: (C, H, W) float32 picture.
        dilations: distances of the neighbours in pixels.

    Returns:
        (S, H, W) weights; they sum to 1.01 at each pixel.
    """
    steps = offsets(dilations)
    scale = (deviation(image, steps) + _EPSILON) * _WIDTH
    contrasts = image.new_empty((len(steps), *image.shape[1:]))
    for contrast, neighbour in zip(contrasts, shifted(image, steps), strict=True):
        torch.mean(-(((neighbour - image) / scale) ** 2), dim=0, out=contrast)
    weights = softmax_of_contrasts(contrasts)
    distances = torch.tensor(steps, dtype=image.dtype, device=image.device).norm(dim=1)
    nearness = (-((distances / ((distances.std() + _EPSILON) * _WIDTH)) ** 2)).softmax(0)
    return weights.add_(nearness[:, None, None], alpha=_DISTANCE_WEIGHT)


@torch.no_grad()
def par(image: Tensor, maps: Tensor, *, dilations: Sequence[int] = DILATIONS, iterations: int = 10) -> Tensor:
    """Refine the maps of one picture: m_i <- sum_n w_in m_n with `par_weights`. Memory as in `pamr.pamr`.

    Args:
        image: (C, H, W) float32 picture, values of any scale.
        maps: (K, h, w) maps; resized to the picture.
        dilations: distances of the neighbours in pixels.
        iterations: rounds; each makes the maps larger by 1.01. 0 only resizes.

    Returns:
        (K, H, W) float32 maps.

    Raises:
        ShapeError: maps or picture are not three-dimensional.
        ConfigError: a distance is below 1.
    """
    return refine(image, maps, par_weights, dilations, iterations)


def par_label(
    image: Tensor,
    cams: Tensor,
    class_ids: IntArray,
    *,
    backgrounds: tuple[float, float] = (0.7, 0.25),
    box: tuple[int, int, int, int] | None = None,
    shrink: int = 2,
    dilations: Sequence[int] = DILATIONS,
    iterations: int = 10,
) -> LabelArray:
    """Label from PAR with a high and a low background score.

    For each of the two scores the maps [score, *cams] are made smaller, put through a softmax over classes, refined
    and brought back; the largest wins. A pixel is a class where the high score leaves it that class, background where
    both say so, else unknown.

    Args:
        image: (C, H, W) float32 picture.
        cams: (K, H, W) maps in [0, 1] of the picture's tagged classes.
        class_ids: (K,) their ids.
        backgrounds: high and low score; (0.7, 0.25) in ToCo, (0.55, 0.35) in AFA.
        box: y0, y1, x0, x1 (ends exclusive) of the picture in a padded crop; all outside is unknown.
        shrink: the picture's sides are divided by it for the refinement.
        dilations: distances of the neighbours in pixels of the smaller picture.
        iterations: rounds.

    Returns:
        (H, W) uint8 label: 0 background, class_id + 1, 255 unknown.

    Raises:
        ShapeError: picture, maps and class ids do not fit together.
        ConfigError: the high score is below the low one, or a distance is below 1.
    """
    if cams.ndim != 3 or image.ndim != 3 or cams.shape[1:] != image.shape[1:] or len(cams) != len(class_ids):
        raise ShapeError(
            f"cams must be (K, H, W) of the image's size for {len(class_ids)} classes, got "
            f"{tuple(cams.shape)} and an image {tuple(image.shape)}"
        )
    high, low = backgrounds
    if high < low:
        raise ConfigError(f"the high background score must not be below the low one, got {high} and {low}")
    size = (image.shape[1], image.shape[2])
    smaller = (max(size[0] // shrink, 1), max(size[1] // shrink, 1))
    # One set of weights refines the maps of both scores.
    stacks = [torch.cat([torch.full_like(image[:1], score), cams.to(image)]) for score in backgrounds]
    shares = [_resized(stack, smaller).softmax(0) for stack in stacks]
    refined = par(_resized(image, smaller), torch.cat(shares), dilations=dilations, iterations=iterations)
    labels = [
        label_from_index(_resized(part, size).argmax(0).cpu().numpy(), class_ids)
        for part in refined.split(len(cams) + 1)
    ]
    label = np.where((labels[0] == BACKGROUND) & (labels[1] != BACKGROUND), np.uint8(IGNORE), labels[0])
    if box is not None:
        top, bottom, left, right = box
        inside = np.zeros(size, np.bool_)
        inside[top:bottom, left:right] = True
        label[~inside] = IGNORE
    return label


def _resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return interpolate(maps[None], size, mode="bilinear", align_corners=False)[0]
