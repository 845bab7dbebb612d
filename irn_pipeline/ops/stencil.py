"""Compiled steps of a Chebyshev series on a grid: the inner loop of the random walk on a CPU."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import njit

from irn_pipeline.structures import FloatArray, IntArray

_BLOCK = 1024
"""Cells worked on together: their weights stay in the second-level cache while all maps pass."""


def stencil_series(
    values: FloatArray,
    weights: FloatArray,
    shifts: Sequence[int],
    degree: FloatArray,
    coefficients: Sequence[float],
) -> FloatArray:
    """Sum of c_k x T_k(T) for row vectors x; T_k are the Chebyshev polynomials of T = A / column sums.

    Args:
        values: (M, n) float32 vectors x.
        weights: (P, n) float32, A between a cell and the cell `shift` further on; 0 where there is none.
        shifts: P positive distances.
        degree: (n,) float32 column sums of A, above 0.
        coefficients: c_0, c_1 ...

    Returns:
        (M, n) float32.
    """
    # empty cells on either side spare the bounds check of every shift
    margin = max(shifts, default=0)
    term = np.pad(values, ((0, 0), (margin, margin)))
    following = term.copy()
    padded_weights = np.pad(weights, ((0, 0), (margin, 0)))
    total = values * np.float32(coefficients[0])
    step = np.zeros_like(total)
    distances = np.array(shifts, np.int64)
    for order, coefficient in enumerate(coefficients[1:], start=1):
        factor = np.float32(1 if order == 1 else 2)
        _advance(
            term, following, step, total, padded_weights, distances, degree, factor, np.float32(coefficient)
        )
        term, following = following, term
    return total


@njit(cache=True, nogil=True, fastmath={"contract"})
def _advance(
    term: FloatArray,
    following: FloatArray,
    step: FloatArray,
    total: FloatArray,
    weights: FloatArray,
    shifts: IntArray,
    degree: FloatArray,
    factor: np.float32,
    coefficient: np.float32,
) -> None:
    """T_(k+1) = T_k + step, step += factor * (T_k T - T_k); the sum of differences keeps float32's digits."""
    count, size = total.shape
    margin = (term.shape[1] - size) // 2
    inflow = np.empty(_BLOCK, np.float32)
    for start in range(0, size, _BLOCK):
        length = min(_BLOCK, size - start)
        begin, end = start + margin, start + margin + length
        for m in range(count):
            flow, centre = inflow[:length], term[m, begin:end]
            flow[:] = 0
            for p in range(len(shifts)):
                shift = shifts[p]
                after, before = term[m, begin + shift : end + shift], term[m, begin - shift : end - shift]
                to_after, to_before = weights[p, begin:end], weights[p, begin - shift : end - shift]
                for i in range(length):
                    here = centre[i]
                    flow[i] += to_after[i] * (after[i] - here) + to_before[i] * (before[i] - here)
            moved, change = following[m, begin:end], step[m, start : start + length]
            summed, column = total[m, start : start + length], degree[start : start + length]
            for i in range(length):
                change[i] += factor * flow[i] / column[i]
                moved[i] = centre[i] + change[i]
                summed[i] += coefficient * moved[i]
