"""Compiled loops of mean-field inference: one pass over the pixels is one iteration."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from numba import njit

from irn_pipeline.ops.lanes import blur_lanes, gather_lanes, splat_lanes
from irn_pipeline.ops.lattice_loops import SPARE_ROWS, IndexArray
from irn_pipeline.structures import FloatArray, IntArray

SeedArray: TypeAlias = npt.NDArray[np.int16]

CORNERS = 9
"""Corners around a pixel: 6 in the appearance lattice (x, y, red, green, blue), 3 in the smoothness lattice."""
_BLOCK = 128
"""Pixels worked on together: their beliefs fit in the first-level cache."""
_LOG2_E = np.float32(1.4426950408889634)
_LN2_HIGH = np.float32(0.693359375)
_LN2_LOW = np.float32(-2.12194440e-4)
_NEGLIGIBLE = np.float32(-40)
"""Logarithm of a belief too small to matter; products of still smaller ones would be denormal and slow."""


@njit(cache=True, nogil=True)
def _exponentials(x: FloatArray, power: npt.NDArray[np.int32]) -> None:
    """Overwrite x <= 0 by e^x, to 2 units in the last place: 2^n times a polynomial (Cephes' expf).

    Both loops are written so that the compiler turns them into vector code; math.exp is called one by one.
    """
    scale = power.view(np.float32)
    for i in range(len(x)):
        value = max(x[i], _NEGLIGIBLE)
        n = np.floor(value * _LOG2_E + np.float32(0.5))
        power[i] = (np.int32(n) + np.int32(127)) << np.int32(23)
        r = value - n * _LN2_HIGH - n * _LN2_LOW
        y = np.float32(1.9875691500e-4) * r + np.float32(1.3981999507e-3)
        y = y * r + np.float32(8.3334519073e-3)
        y = y * r + np.float32(4.1665795894e-2)
        y = y * r + np.float32(1.6666665459e-1)
        y = y * r + np.float32(5.0000001201e-1)
        x[i] = y * r * r + r + np.float32(1)
    for i in range(len(x)):
        x[i] *= scale[i]


@njit(cache=True, nogil=True)
def _log_odds(
    message: FloatArray,
    belief: FloatArray,
    zero: FloatArray,
    total: FloatArray,
    seeds: SeedArray,
    start: int,
    size: int,
    evidence: np.float32,
    first: bool,
) -> None:
    """Logarithms of unnormalised beliefs, (S, L - 1, block), and label 0's, (S, block); no messages at first."""
    runs, others, _ = belief.shape
    lanes = message.shape[2]
    weight = np.float32(0 if first else 1)
    for s in range(runs):
        for p in range(size):
            zero[s, p] = weight * total[start + p]
            zero[s, p] += evidence if seeds[s, start + p] == 0 else np.float32(0)
        for k in range(others):
            group, lane = (s * others + k) // lanes, (s * others + k) % lanes
            for p in range(size):
                value = weight * message[group, p, lane]
                zero[s, p] -= value
                belief[s, k, p] = value + (evidence if seeds[s, start + p] == k + 1 else np.float32(0))


@njit(cache=True, nogil=True)
def _normalise(
    message: FloatArray, belief: FloatArray, zero: FloatArray, power: npt.NDArray[np.int32], size: int
) -> None:
    """Softmax of the logarithms, back in the order of the channels."""
    runs, others, _ = belief.shape
    lanes = message.shape[2]
    best = np.empty(size, np.float32)
    for s in range(runs):
        for p in range(size):
            best[p] = zero[s, p]
        for k in range(others):
            for p in range(size):
                best[p] = max(best[p], belief[s, k, p])
        for p in range(size):
            zero[s, p] -= best[p]
        for k in range(others):
            for p in range(size):
                belief[s, k, p] -= best[p]
    _exponentials(belief.reshape(-1), power)
    _exponentials(zero.reshape(-1), power)
    for s in range(runs):
        for k in range(others):
            for p in range(size):
                zero[s, p] += belief[s, k, p]
        for p in range(size):
            zero[s, p] = np.float32(1) / zero[s, p]
        for k in range(others):
            group, lane = (s * others + k) // lanes, (s * others + k) % lanes
            for p in range(size):
                message[group, p, lane] = belief[s, k, p] * zero[s, p]


@njit(cache=True, nogil=True)
def _decide(belief: FloatArray, zero: FloatArray, refined: SeedArray, start: int, size: int) -> None:
    runs, others, _ = belief.shape
    for s in range(runs):
        for p in range(size):
            best, label = zero[s, p], 0
            for k in range(others):
                if belief[s, k, p] > best:
                    best, label = belief[s, k, p], k + 1
            refined[s, start + p] = label


def _compiled_loops(lanes: int) -> tuple[Callable[..., None], Callable[..., None]]:
    """The loops over pixels and over corners, for one number of channels side by side."""

    @njit(cache=True, nogil=True)
    def iterate(
        corners: IndexArray,
        weights: FloatArray,
        total: FloatArray,
        blurred: FloatArray,
        splatted: FloatArray,
        seeds: SeedArray,
        num_labels: int,
        evidence: np.float32,
        refined: SeedArray,
        first: bool,
        last: bool,
    ) -> None:
        """One pass over all pixels, in blocks: messages, softmax, and the next splat, or the label at last."""
        runs, pixels = seeds.shape
        groups = len(blurred)
        message = np.zeros((groups, _BLOCK, lanes), np.float32)
        belief = np.zeros((runs, num_labels - 1, _BLOCK), np.float32)
        zero = np.zeros((runs, _BLOCK), np.float32)
        power = np.empty(belief.size, np.int32)
        for start in range(0, pixels, _BLOCK):
            size = min(_BLOCK, pixels - start)
            if not first:
                for g in range(groups):
                    for p in range(size):
                        gather_lanes(message[g], p, blurred[g], corners, weights, start + p, CORNERS, lanes)
            _log_odds(message, belief, zero, total, seeds, start, size, evidence, first)
            if last:
                _decide(belief, zero, refined, start, size)
                continue
            _normalise(message, belief, zero, power, size)
            for g in range(groups):
                for p in range(size):
                    splat_lanes(message[g], p, splatted[g], corners, weights, start + p, CORNERS, lanes)

    @njit(cache=True, nogil=True)
    def blur(chains: IndexArray, starts: IntArray, field: FloatArray) -> None:
        """`permutohedral.blur` of several channels side by side."""
        zero_row = len(field) - SPARE_ROWS
        before = np.empty((1, lanes), np.float32)
        for axis in range(len(starts) - 1):
            before.fill(0)
            for t in range(starts[axis], starts[axis + 1]):
                row = np.int64(chains[t])
                following = np.int64(chains[t + 1]) if t + 1 < starts[axis + 1] else zero_row
                blur_lanes(field, row, following, row + (row == zero_row), before, lanes)

    return iterate, blur


FEW_LANES, MANY_LANES = 4, 8
"""Two or three labels of two runs fill 2 or 4 channels; a vector register holds 4 or, mostly, 8."""
iterate_few, blur_few = _compiled_loops(FEW_LANES)
iterate_many, blur_many = _compiled_loops(MANY_LANES)
