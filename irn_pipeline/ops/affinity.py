"""Affinity of pixel pairs: one minus the strongest boundary on the way between them (paper, section 4.1)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from irn_pipeline.errors import ConfigError, ShapeError
from irn_pipeline.structures import IntArray


@dataclass(frozen=True)
class _Run:
    """Neighbouring cells of one path in one column (`vertical`) or row, from `start` (y, x) on."""

    vertical: bool
    start: tuple[int, int]
    length: int


@dataclass(frozen=True, eq=False)
class PairPaths:
    """Every pair offset within a radius and the cells that lie between its two ends.

    Attributes:
        radius: pairs are closer than this many cells.
        offsets: (P, 2) int64, dy and dx from a source to its destination; half plane dy >= 0.
        paths: P arrays (L, 2) int64 of cells (y, x) relative to the source, both ends included.
        runs: the same paths as straight runs, along the axis that needs fewer of them.
    """

    radius: int
    offsets: IntArray
    paths: tuple[IntArray, ...]
    runs: tuple[tuple[_Run, ...], ...]

    def __len__(self) -> int:
        return len(self.offsets)


@lru_cache(maxsize=8)
def pair_paths(radius: int) -> PairPaths:
    """Offsets and paths of all pairs closer than `radius`.

    Of two opposite offsets the one with dy > 0, or dy = 0 and dx > 0, is kept. The path of (dy, dx) is every
    cell (y, x) of its bounding box with (dy * x - dx * y)^2 / (dy^2 + dx^2) < 1.

    Args:
        radius: at least 2 cells.

    Returns:
        34 offsets for radius 5, 152 for radius 10, sorted by (dy, dx).

    Raises:
        ConfigError: the radius is smaller than 2.
    """
    if radius < 2:
        raise ConfigError(f"radius must be at least 2 cells, got {radius}: a smaller one joins no pair")
    offsets = [
        (dy, dx)
        for dy in range(radius)
        for dx in range(1 - radius, radius)
        if (dy, dx) > (0, 0) and dy**2 + dx**2 < radius**2
    ]
    paths = [_path(dy, dx) for dy, dx in offsets]
    runs = [_split(path, vertical=dy >= abs(dx)) for (dy, dx), path in zip(offsets, paths, strict=True)]
    return PairPaths(radius, _read_only(offsets), tuple(map(_read_only, paths)), tuple(runs))


def pair_sources(values: Tensor, radius: int) -> Tensor:
    """View of the cells whose whole neighbourhood is inside the crop.

    Args:
        values: (..., h, w) map.
        radius: pairs are closer than this many cells.

    Returns:
        (..., rows, columns) without the last `radius - 1` rows and as many columns on either side; rows *
        columns = N, which is 0 in a crop smaller than a neighbourhood.
    """
    return _source_window(values, (0, 0), radius, _source_grid(values, radius))


def pair_destinations(values: Tensor, offset: tuple[int, int] | IntArray, radius: int) -> Tensor:
    """View of the cells at `offset` (dy, dx) from each source; shape and order as of `pair_sources`."""
    return _source_window(values, (int(offset[0]), int(offset[1])), radius, _source_grid(values, radius))


def pair_affinity(boundary: Tensor, paths: PairPaths) -> Tensor:
    """Affinity of every pair: 1 - maximum of the boundary over the pair's path. Differentiable once.

    The gradient of a pair goes to the one cell that is its path's maximum; where cells tie, to one of them.

    Args:
        boundary: (B, h, w) floating point in [0, 1].
        paths: the pairs.

    Returns:
        (B, P, N) in [0, 1]; sources in row-major order.

    Raises:
        ShapeError: the boundary has other than three dimensions.
    """
    if boundary.ndim != 3:
        raise ShapeError(f"boundary must be (B, h, w), got {tuple(boundary.shape)}")
    maxima: Tensor = _PathMaximum.apply(boundary, paths)
    return (1 - maxima).flatten(2)


class _PathMaximum(torch.autograd.Function):
    """Maximum over each path, (B, h, w) -> (B, P, rows, columns).

    Neither direction builds index tensors: cells are read as shifted views, and the maxima of straight runs
    are shared by all paths (a quarter of the work at radius 10). The backward pass finds the winner again by
    comparing with the maximum, so that nothing but the result is kept in memory.
    """

    @staticmethod
    def forward(ctx: Any, boundary: Tensor, paths: PairPaths) -> Tensor:
        rows, columns = _source_grid(boundary, paths.radius)
        maxima = boundary.new_empty(len(boundary), len(paths), rows, columns)
        ctx.save_for_backward(boundary, maxima)
        ctx.paths = paths
        if maxima.numel() == 0:
            return maxima
        tables = _RunTables.of_maxima(boundary, paths.radius)
        for maximum, (first, *others) in zip(maxima.unbind(1), paths.runs, strict=True):
            maximum.copy_(tables.window(first))
            for run in others:
                torch.maximum(maximum, tables.window(run), out=maximum)
        return maxima

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_maxima: Tensor) -> tuple[Tensor, None]:
        boundary, maxima = ctx.saved_tensors
        if maxima.numel() == 0:
            return torch.zeros_like(boundary), None
        tables = _RunTables.of_maxima(boundary, ctx.paths.radius)
        grads, share = tables.zeros_like(), torch.empty_like(maxima[:, 0])
        for maximum, grad, runs in zip(maxima.unbind(1), grad_maxima.unbind(1), ctx.paths.runs, strict=True):
            *others, last = runs
            remaining = grad.clone() if others else grad
            for run in others:
                # a float comparison and products: boolean masks take twice as long on a CPU
                torch.eq(tables.window(run), maximum, out=share)
                grads.window(run).add_(share.mul_(remaining))
                remaining.sub_(share)
            grads.window(last).add_(remaining)
        return grads.fold_into_cells(tables), None


@dataclass(frozen=True)
class _RunTables:
    """A value for every straight run of every length in a crop.

    Attributes:
        radius: the longest run.
        vertical: table L - 1 is (B, h - L + 1, w), runs of L cells down from (y, x).
        horizontal: table L - 1 is (B, h, w - L + 1), runs of L cells to the right of (y, x).
    """

    radius: int
    vertical: tuple[Tensor, ...]
    horizontal: tuple[Tensor, ...]

    @staticmethod
    def of_maxima(boundary: Tensor, radius: int) -> _RunTables:
        vertical, horizontal = [boundary], [boundary]
        for length in range(2, radius + 1):
            vertical.append(torch.maximum(vertical[-1][:, :-1], boundary[:, length - 1 :]))
            horizontal.append(torch.maximum(horizontal[-1][:, :, :-1], boundary[:, :, length - 1 :]))
        return _RunTables(radius, tuple(vertical), tuple(horizontal))

    def zeros_like(self) -> _RunTables:
        vertical, horizontal = (
            tuple(torch.zeros_like(table) for table in tables) for tables in (self.vertical, self.horizontal)
        )
        return _RunTables(self.radius, vertical, horizontal)

    def window(self, run: _Run) -> Tensor:
        """(B, rows, columns) view: the values of one run for every source."""
        table = (self.vertical if run.vertical else self.horizontal)[run.length - 1]
        return _source_window(table, run.start, self.radius, _source_grid(self.vertical[0], self.radius))

    def fold_into_cells(self, maxima: _RunTables) -> Tensor:
        """(B, h, w) gradient of the cells, from this table of gradients of `maxima`; overwrites the table."""
        cells = torch.zeros_like(self.vertical[0])
        for axis, grads, values in (
            (1, self.vertical, maxima.vertical),
            (2, self.horizontal, maxima.horizontal),
        ):
            for longer in range(len(grads) - 1, 0, -1):
                grad, size = grads[longer], grads[longer].shape[axis]
                won = values[longer - 1].narrow(axis, 0, size) == values[longer]
                grads[longer - 1].narrow(axis, 0, size).addcmul_(grad, won)
                cells.narrow(axis, longer, size).add_(grad.masked_fill_(won, 0))
            cells += grads[0]
        return cells


def _path(dy: int, dx: int) -> list[tuple[int, int]]:
    box = ((y, x) for y in range(dy + 1) for x in range(min(dx, 0), max(dx, 0) + 1))
    return [(y, x) for y, x in box if (dy * x - dx * y) ** 2 < dy**2 + dx**2]


def _split(path: list[tuple[int, int]], *, vertical: bool) -> tuple[_Run, ...]:
    across = 1 if vertical else 0
    groups = groupby(sorted(path, key=lambda cell: (cell[across], cell)), key=lambda cell: cell[across])
    runs = [list(cells) for _, cells in groups]
    return tuple(_Run(vertical, cells[0], len(cells)) for cells in runs)


def _source_grid(values: Tensor, radius: int) -> tuple[int, int]:
    return max(values.shape[-2] - (radius - 1), 0), max(values.shape[-1] - 2 * (radius - 1), 0)


def _source_window(values: Tensor, cell: tuple[int, int], radius: int, grid: tuple[int, int]) -> Tensor:
    """View of `values` at `cell` (y, x) from each source."""
    top, left = cell[0], cell[1] + radius - 1
    return values[..., top : top + grid[0], left : left + grid[1]]


def _read_only(cells: list[tuple[int, int]]) -> IntArray:
    array = np.array(cells, np.int64)
    array.setflags(write=False)
    return array
