"""Centroids of a displacement field, and the class-agnostic instance map that they give (paper, section 5.1)."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from irn_pipeline.errors import IrnError, ShapeError
from irn_pipeline.structures import FloatArray, IntArray

_MERGE_EVERY = 10
"""Steps between two searches for paths that met; cells at one position stay together for ever after."""


def find_centroids(displacement: FloatArray, iterations: int = 300) -> IntArray:
    """Follow the displacement field from every cell.

    A cell starts at its own coordinate; each iteration adds the field, sampled bilinearly at the current
    position, and clips the result to the grid. All arithmetic is float32, as in the original implementation.

    Args:
        displacement: (2, h, w) float32, dy then dx in cells.
        iterations: number of steps.

    Returns:
        (2, h, w) int64 row and column of the cell nearest to the last position.

    Raises:
        ShapeError: the field is not (2, h, w).
        IrnError: the field holds NaN or infinite values.
    """
    if displacement.ndim != 3 or displacement.shape[0] != 2 or displacement.size == 0:
        raise ShapeError(f"displacement must be (2, h, w), got {displacement.shape}")
    if not np.isfinite(displacement).all():
        raise IrnError("displacement holds NaN or infinite values: the network that made it has diverged")
    height, width = displacement.shape[1:]
    stride = width + 1
    # One repeated row and column spare the bounds check: a neighbour outside the grid has the weight 0.
    field = np.pad(displacement.astype(np.float32, copy=False), ((0, 0), (0, 1), (0, 1)), mode="edge")
    field = field.reshape(2, -1)
    last_cell = np.array([[height - 1], [width - 1]], np.float32)
    position = np.indices((height, width), dtype=np.float32).reshape(2, -1)
    path = np.arange(height * width)
    for iteration in range(iterations):
        cell = np.floor(position)
        after = position - cell
        before = 1 - after
        row, column = cell.astype(np.int64)
        corner = row * stride + column
        moved = position + (
            field.take(corner, axis=1) * (before[0] * before[1])
            + field.take(corner + 1, axis=1) * (before[0] * after[1])
            + field.take(corner + stride, axis=1) * (after[0] * before[1])
            + field.take(corner + stride + 1, axis=1) * (after[0] * after[1])
        )
        np.clip(moved, 0, last_cell, out=moved)
        if np.array_equal(moved, position):
            break
        position = moved
        if iteration % _MERGE_EVERY == _MERGE_EVERY - 1:
            position, merged = _distinct(position)
            path = merged[path]
    return np.rint(position[:, path]).astype(np.int64).reshape(2, height, width)


def instance_map(displacement: FloatArray, *, threshold: float = 2.5, iterations: int = 300) -> IntArray:
    """Group the cells of a displacement field by where they lead.

    Cells with a displacement shorter than `threshold` form 4-connected components, the instances' centres.
    Every cell belongs to the component at its centroid; cells that reach none share one id as well.

    Args:
        displacement: (2, h, w) float32, dy then dx in cells.
        threshold: length in cells below which a displacement counts as a centre.
        iterations: steps of the search for centroids.

    Returns:
        (h, w) int64 ids 0..I - 1, all of them in use; cells that reach no component, if any, have the id 0.

    Raises:
        ShapeError: the field is not (2, h, w).
        IrnError: the field holds NaN or infinite values.
    """
    centroids = find_centroids(displacement, iterations)
    length = np.sqrt(displacement[0] ** 2 + displacement[1] ** 2)
    components, _ = ndimage.label(length < threshold)
    reached = components[centroids[0], centroids[1]]
    ids = np.unique(reached, return_inverse=True)[1]
    return ids.reshape(reached.shape).astype(np.int64)


def _distinct(position: FloatArray) -> tuple[FloatArray, IntArray]:
    """Distinct columns of a (2, N) array, and for each column the number of its equal among them."""
    bits = np.ascontiguousarray(position.T).view(np.int64).ravel()
    _, first, inverse = np.unique(bits, return_index=True, return_inverse=True)
    return position[:, first], inverse.ravel()
