"""Permutohedral lattice: Gaussian filtering of scattered points in linear time (Adams et al. 2010).

Features become points of a lattice of simplices, values are spread over the corners of their simplex, blurred
along the lattice's axes and gathered again. Blur weights, scaling and rounding are those of Krähenbühl and
Koltun's dense CRF, so that results agree with that library's to the last digits of float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from irn_pipeline.errors import ConfigError, ShapeError
from irn_pipeline.ops.lattice_loops import SPARE_ROWS, blur, chain, embed, gather, splat
from irn_pipeline.structures import FloatArray, IntArray

_MAX_DIMENSIONS = 6
_KEY_BITS = 60
"""Bits of a lattice key for the coordinates."""


@dataclass(frozen=True)
class Lattice:
    """Where N feature points lie in a lattice of M corners, in d dimensions.

    Attributes:
        corners: (N, d + 1) uint32 in 0..M - 1, corners of the simplex around each point.
        weights: (N, d + 1) float32 share of each corner in its point; a point's sum to 1.
        chains: (T,) uint32, rows of two or more corners that follow one another along an axis, each row
            ended by M, axis after axis.
        starts: (d + 2,) int64, where each axis begins in `chains`.
        num_corners: number of corners M.
    """

    corners: npt.NDArray[np.uint32]
    weights: FloatArray
    chains: npt.NDArray[np.uint32]
    starts: IntArray
    num_corners: int

    @property
    def gain(self) -> np.float32:
        """Factor that belongs to splat, blur and gather: 1 / (1 + 2^-d), the reference library's constant."""
        return np.float32(1 / (1 + 2.0 ** (1 - self.corners.shape[1])))


def build_lattice(features: FloatArray) -> Lattice:
    """Place feature points in a lattice; their distance counts in standard deviations of the filter.

    Args:
        features: (d, N) float32, coordinates divided by the filter's standard deviation; d from 1 to 6.

    Returns:
        The lattice.

    Raises:
        ShapeError: features are not (d, N) float32, or hold infinities or NaN.
        ConfigError: features lie too far from 0 for the lattice's keys: the deviation is too small.
    """
    if features.ndim != 2 or features.dtype != np.float32 or not 1 <= features.shape[0] <= _MAX_DIMENSIONS:
        raise ShapeError(
            f"lattice features must be (1 to {_MAX_DIMENSIONS}, N) float32, "
            f"got {features.shape} {features.dtype}"
        )
    largest = float(max(features.max(initial=0), -features.min(initial=0)))
    if not np.isfinite(largest):
        raise ShapeError("lattice features must be finite numbers, got infinities or NaN")
    dimensions = features.shape[0]
    bits = _KEY_BITS // dimensions
    # The double and single precision of these two factors follow the reference library's.
    deviation = np.float32(np.sqrt(2.0 / 3.0) * (dimensions + 1))
    scale = np.array([1 / np.sqrt((i + 2) * (i + 1)) * deviation for i in range(dimensions)], np.float32)
    # A key holds coordinates divided by d + 1, each a sum of d scaled features or d times one.
    if largest * float(scale.max()) * dimensions / (dimensions + 1) >= 2 ** (bits - 1) - 2 * dimensions:
        raise ConfigError(
            f"images or colours reach {largest:.3g} standard deviations, too many for a filter in "
            f"{dimensions} dimensions; use a larger standard deviation (sxy, srgb)"
        )
    corners, weights, keys, table = embed(np.ascontiguousarray(features), scale, bits)
    chains, starts = chain(keys, table, dimensions, bits)
    return Lattice(corners, weights, chains, starts, len(keys))


def filter_values(lattice: Lattice, values: FloatArray) -> FloatArray:
    """Sum of all points' values, weighted by a Gaussian of their feature distance, for every point.

    Args:
        lattice: a lattice of N points.
        values: (N,) float32.

    Returns:
        (N,) float32, not normalised.

    Raises:
        ShapeError: values are not (N,) float32.
    """
    if values.shape != (len(lattice.corners),) or values.dtype != np.float32:
        raise ShapeError(
            f"values of {len(lattice.corners)} points must be ({len(lattice.corners)},) float32, "
            f"got {values.shape} {values.dtype}"
        )
    field = np.zeros(lattice.num_corners + SPARE_ROWS, np.float32)
    splat(lattice.corners, lattice.weights, values, field)
    blur(lattice.chains, lattice.starts, field)
    filtered = np.empty_like(values)
    gather(lattice.corners, lattice.weights, field, filtered)
    return filtered * lattice.gain
