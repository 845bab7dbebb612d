"""Scenes that are too large for one pass: networks see overlapping tiles, and the random walk a coarser grid."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from irn_pipeline.structures import FloatArray, IntArray, strided_size

if TYPE_CHECKING:
    from torch import Tensor

SCENE, TILE = 4000, 2048
"""Longest side, in pixels, from which a picture is cut unless the user says otherwise, and the tiles' side then."""
_STEP = 16
"""Tiles begin at multiples of it, so that the cells of every map lie where they lie in the whole picture."""
_OVERLAP = 1 / 8
"""Of a tile's side."""
_MOST_CELLS, _MOST_VALUES = 2**21, 2**28
"""Cells of the grid that is walked on, and cells times maps: 1 GiB in float32."""


def require_tile(tile: int | None) -> None:
    """Refuse a side of tiles that networks see too little in.

    Raises:
        ValueError: it is neither None, 0 nor 256 and more.
    """
    if tile is not None and tile != 0 and tile < 256:
        raise ValueError(f"tile is {tile}; it must be 0 (never cut) or 256 pixels at least")


def tile_side(size: tuple[int, int], tile: int | None) -> int:
    """Side of the tiles of a picture; 0 where it is not cut.

    Args:
        size: (H, W) of the picture in pixels.
        tile: what the user wants: a side, 0 for none, None for TILE from SCENE on.
    """
    if tile is None:
        return TILE if max(size) >= SCENE else 0
    return tile // _STEP * _STEP if max(size) > tile else 0


def tiled(see: Callable[[Tensor], Sequence[Tensor]], picture: Tensor, side: int) -> list[Tensor]:
    """What a network makes of a picture, tile by tile; where tiles overlap, a weighted mean that fades towards edges.

    Args:
        see: (C, h, w) part of the picture -> maps (..., ceil(h / s), ceil(w / s)), each with a stride s of its own that
            divides 16.
        picture: (C, H, W).
        side: of the tiles, a multiple of 16; 0, or one that is not shorter than the picture, for the whole at once.

    Returns:
        The maps of the whole picture, (..., ceil(H / s), ceil(W / s)).
    """
    height, width = picture.shape[-2:]
    if not side or max(height, width) <= side:
        return list(see(picture))
    found: list[Tensor] = []
    for top, bottom in _spans(height, side):
        for left, right in _spans(width, side):
            parts = see(picture[..., top:bottom, left:right])
            strides = [_stride((bottom - top, right - left), part) for part in parts]
            if not found:
                found = [
                    part.new_zeros((*part.shape[:-2], *strided_size((height, width), stride))).float()
                    for part, stride in zip(parts, strides, strict=True)
                ]
            for whole, part, stride in zip(found, parts, strides, strict=True):
                rows, columns = (
                    part.new_tensor(_weights(length, side, start, stride)).float()
                    for length, start in ((height, top), (width, left))
                )
                window = whole[..., top // stride :, left // stride :][..., : len(rows), : len(columns)]
                window += part.float() * rows[:, None] * columns
    return found


def _stride(size: tuple[int, int], maps: Tensor) -> int:
    return next(s for s in (1, 2, 4, 8, 16) if strided_size(size, s) == tuple(maps.shape[-2:]))


def _spans(length: int, side: int) -> list[tuple[int, int]]:
    """Beginnings and ends of the tiles along an axis."""
    last = -(-max(length - side, 0) // _STEP) * _STEP
    count = math.ceil(last / (side * (1 - _OVERLAP))) + 1
    starts = [round(last * number / max(count - 1, 1) / _STEP) * _STEP for number in range(count)]
    return [(start, min(start + side, length)) for start in starts]


def _weights(length: int, side: int, start: int, stride: int) -> FloatArray:
    """Weight of each cell of one tile along an axis: together those of all tiles are 1 in every cell."""
    spans = _spans(length, side)
    total = np.zeros(-(-length // stride))
    own = total
    for begin, end in spans:
        cells = np.arange(-(-(end - begin) // stride)) + 0.5
        before = cells if begin else np.full(len(cells), np.inf)
        after = len(cells) - cells if end < length else np.full(len(cells), np.inf)
        weight = np.minimum(np.minimum(before, after), side * _OVERLAP / stride)
        total[begin // stride : begin // stride + len(cells)] += weight
        own = weight if begin == start else own
    return np.asarray(own / total[start // stride :][: len(own)], np.float32)


def walk_factor(cam: FloatArray, groups: IntArray) -> int:
    """By what the grid of a walk is coarsened, a power of two; 1 for all but the largest pictures.

    Args:
        cam: (K, h, w) activation maps.
        groups: (h, w) instance map.
    """
    cells, most = groups.size, len(cam) * (int(groups.max(initial=-1)) + 1)
    if cells <= _MOST_CELLS and cells * most <= _MOST_VALUES:  # without counting
        return 1
    maps = sum(len(np.unique(groups[one > 0])) for one in cam)
    needed = max(cells / _MOST_CELLS, cells * maps / _MOST_VALUES, 1.0)
    return 2 ** math.ceil(math.log2(needed) / 2)


def coarse_grid(
    cam: FloatArray, boundary: FloatArray, groups: IntArray, factor: int
) -> tuple[FloatArray, FloatArray, IntArray]:
    """Maps on a grid of longer cells: means of maps, the strongest boundary, the instance id of a corner.

    Args:
        cam: (K, h, w) activation maps.
        boundary: (h, w) class boundary probability.
        groups: (h, w) instance map.
        factor: cells that become one, along each axis.

    Returns:
        The three of (ceil(h / factor), ceil(w / factor)).
    """
    import torch
    from torch.nn.functional import avg_pool2d

    maps = avg_pool2d(torch.from_numpy(cam)[None], factor, ceil_mode=True, count_include_pad=False)[0]
    return (
        maps.numpy(),
        coarse_boundary(torch.from_numpy(boundary), factor).numpy(),
        groups[::factor, ::factor],
    )


def coarse_boundary(boundary: Tensor, factor: int) -> Tensor:
    """(h, w) -> (ceil(h / factor), ceil(w / factor)): the strongest boundary of each cell, so that no wall opens."""
    from torch.nn.functional import max_pool2d

    return boundary if factor == 1 else max_pool2d(boundary[None], factor, ceil_mode=True)[0]
