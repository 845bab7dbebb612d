"""CAA: class-aware attention affinity, maps spread along the attention of a transformer.

Lin et al., "CLIP is Also an Efficient Segmenter" (CLIP-ES), CVPR 2023; repository linyq2117/CLIP-ES
(generate_cams_voc12.py, utils.py).
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from irn_pipeline.errors import ConfigError, ShapeError
from irn_pipeline.structures import BoolArray, FloatArray, IntArray

_ROUNDS = 3
_EPSILON = 1e-7


def cell_attention(attentions: Tensor, prefix: int = 1) -> Tensor:
    """Mean of the last layers' attention, without the tokens that stand for no cell.

    Args:
        attentions: (L, n, n) attention of L layers, already averaged over heads; a row is a query.
        prefix: tokens before the cells: the class token, registers.

    Returns:
        (N, N) attention between cells, N = n - prefix.
    """
    return attentions.mean(0)[prefix:, prefix:]


def symmetric_affinity(attention: Tensor) -> Tensor:
    """Attention made nearly doubly stochastic, then symmetric: three times columns, then rows divided by their sums.

    Args:
        attention: (N, N) values >= 0; any matrix of likenesses will do. A row or column of zeros stays 0.

    Returns:
        (N, N) symmetric matrix whose rows sum to about 1.

    Raises:
        ShapeError: the attention is not square.
    """
    if attention.ndim != 2 or attention.shape[0] != attention.shape[1]:
        raise ShapeError(f"attention must be (N, N), got {tuple(attention.shape)}")
    tiny = torch.finfo(attention.dtype).tiny
    for _ in range(_ROUNDS):
        attention = attention / attention.sum(0, keepdim=True).clamp(min=tiny)
        attention = attention / attention.sum(1, keepdim=True).clamp(min=tiny)
    return (attention + attention.T) / 2


def region_boxes(activation: FloatArray, threshold: float, *, keep_border: bool = False) -> IntArray:
    """Bounding boxes of the 8-connected regions where a map is above a share of its maximum.

    As in the original, the map is truncated to 0..255 and the end of a box is cut at width - 1 and height - 1, so that
    no box holds the last column and row.

    Args:
        activation: (h, w) map in [0, 1].
        threshold: share of the maximum; 0.4 for VOC, 0.7 for COCO.
        keep_border: let boxes reach the last column and row.

    Returns:
        (R, 4) x0, y0, x1, y1 in cells, ends exclusive; none for a map without a value.

    Raises:
        ShapeError: the map is not (h, w).
        ConfigError: the threshold is not in [0, 1).
    """
    if activation.ndim != 2:
        raise ShapeError(f"a map to box must be (h, w), got {activation.shape}")
    if not 0 <= threshold < 1:
        raise ConfigError(f"the box threshold must be at least 0 and below 1, got {threshold}")
    levels = (np.clip(activation, 0, 1) * 255).astype(np.uint8)
    regions, _ = ndimage.label(levels > int(threshold * levels.max(initial=0)), np.ones((3, 3)))
    height, width = activation.shape
    ends = (width, height) if keep_border else (width - 1, height - 1)
    boxes = [
        (x.start, y.start, min(x.stop, ends[0]), min(y.stop, ends[1]))
        for y, x in ndimage.find_objects(regions)
    ]
    return np.array(boxes, np.int64).reshape(-1, 4)


def box_mask(boxes: IntArray, size: tuple[int, int]) -> BoolArray:
    """Cells inside any of the boxes.

    Args:
        boxes: (R, 4) x0, y0, x1, y1, ends exclusive.
        size: (h, w).

    Returns:
        (h, w) mask.
    """
    mask = np.zeros(size, np.bool_)
    for left, top, right, bottom in boxes:
        mask[top:bottom, left:right] = True
    return mask


@torch.no_grad()
def caa(attention: Tensor, maps: Tensor, *, threshold: float = 0.4, keep_border: bool = False) -> Tensor:
    """Spread the maps of one picture: A A (B * map), A the symmetric affinity, B the mask of the map's boxes.

    The boxes select the cells that are spread from; the result may leave them. The square of A is never formed: the
    cost is N^2 for each map.

    Args:
        attention: (N, N) values >= 0 between the N = h * w cells, row by row.
        maps: (K, h, w) maps in [0, 1].
        threshold: of the boxes (`region_boxes`).
        keep_border: let boxes reach the last column and row.

    Returns:
        (K, h, w) maps >= 0, not normalised (`min_max`).

    Raises:
        ShapeError: attention and maps do not fit together.
        ConfigError: the threshold is not in [0, 1).
    """
    if maps.ndim != 3 or attention.shape != (maps.shape[1] * maps.shape[2],) * 2:
        raise ShapeError(
            f"maps (K, h, w) need attention between h * w cells, got {tuple(maps.shape)} and "
            f"{tuple(attention.shape)}"
        )
    affinity = symmetric_affinity(attention.float())
    size = (maps.shape[1], maps.shape[2])
    masks = np.zeros(tuple(maps.shape), np.bool_)
    for mask, activation in zip(masks, maps.float().cpu().numpy(), strict=True):
        mask[:] = box_mask(region_boxes(activation, threshold, keep_border=keep_border), size)
    sources = (maps.float() * torch.from_numpy(masks).to(maps.device)).flatten(1).T
    return (affinity @ (affinity @ sources)).T.reshape(maps.shape)


def min_max(maps: Tensor) -> Tensor:
    """(x - min) / (max of that + 1e-7) for each of (K, h, w) maps, as CLIP-ES stores them."""
    if not maps.numel():
        return maps
    shifted = maps - maps.amin((1, 2), keepdim=True)
    return shifted / (shifted.amax((1, 2), keepdim=True) + _EPSILON)
