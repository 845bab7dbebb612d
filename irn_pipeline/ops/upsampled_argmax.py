"""Which of many maps at stride 4 is the largest at each pixel, without upsampling them all."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from irn_pipeline.errors import ShapeError
from irn_pipeline.structures import CAM_STRIDE, FloatArray, grid_stride, strided_size

_PEAK_KEPT = 0.375
"""Upsampling keeps more than this share of a map's largest cell: the weight of the cell nearest to a pixel is
at least 5/8 along each axis, and 25/64 > 0.375."""
_PEAK_KEPT_COARSELY = 0.25
"""The same of longer cells: more than 1/2 along each axis."""


def argmax_upsampled(
    maps: Tensor, size: tuple[int, int], bg_threshold: float
) -> tuple[npt.NDArray[np.int32], FloatArray]:
    """Position of the largest of [bg_threshold, *maps] after upsampling the maps to the picture's size.

    The maps are upsampled bilinearly by their stride, cropped, and divided by the largest value of them all. One map is
    upsampled at a time, and only where it can exceed the background, so that memory does not grow with M.

    Args:
        maps: (M, h, w) float32 maps at stride 4, or 8, 16 ..., not negative.
        size: (H, W) of the picture in pixels.
        bg_threshold: score of the background, in [0, 1].

    Returns:
        index (H, W) int32, 0 for background and m + 1 for map m; and score (H, W) float32 in [0, 1], the
        value of that map, 0 at background.

    Raises:
        ShapeError: the maps are not (M, h, w) with the grid of `size`.
    """
    if maps.ndim != 3:
        raise ShapeError(f"maps of an image {size} must be (M, *{strided_size(size)}), got {maps.shape}")
    stride = grid_stride((maps.shape[1], maps.shape[2]), size)
    index = torch.zeros(size, dtype=torch.int32, device=maps.device)
    score = maps.new_zeros(size)
    # Pixels that depend on cells up to this value only stay below the background, whatever the final scale.
    kept = _PEAK_KEPT if stride == CAM_STRIDE else _PEAK_KEPT_COARSELY
    negligible = bg_threshold * kept * float(maps.max()) if maps.numel() else 0.0
    for number, cells in enumerate(maps, start=1):
        strong = cells > negligible
        if not strong.any():
            continue
        rows, columns = _extent(strong.any(1)), _extent(strong.any(0))
        patch = interpolate(cells[None, None, rows, columns], scale_factor=stride, mode="bilinear")[0, 0]
        place = _pixels(rows, stride), _pixels(columns, stride)
        window = score[place]
        patch = patch[: window.shape[0], : window.shape[1]]
        index[place].masked_fill_(patch > window, number)
        torch.maximum(window, patch, out=window)
    largest = float(score.max())
    if largest > 0:
        score /= largest
    background = score <= bg_threshold
    return index.masked_fill_(background, 0).cpu().numpy(), score.masked_fill_(background, 0).cpu().numpy()


def _extent(marked: Tensor) -> slice:
    """From the first to the last marked cell, and one cell beyond, to which upsampling spreads them."""
    cells = marked.nonzero()[:, 0]
    return slice(max(int(cells[0]) - 1, 0), int(cells[-1]) + 2)


def _pixels(cells: slice, stride: int) -> slice:
    return slice(cells.start * stride, cells.stop * stride)
