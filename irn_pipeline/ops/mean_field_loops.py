"""Compiled loops of mean-field inference: one pass over the pixels is one iteration."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from numba import njit

from irn_pipeline.ops.lattice_loops import SPARE_ROWS, IndexArray
from irn_pipeline.structures import FloatArray, IntArray

SeedArray: TypeAlias = npt.NDArray[np.int16]

CORNERS = 9
"""Corners around a pixel: 6 in the appearance lattice (x, y, red, green, blue), 3 in the smoothness lattice."""
LANES = 4
"""Channels side by side in a field: two runs of three labels have four. Their loops are written out: the compiler
would keep an array of four in memory, not in registers."""
_FUSED = {"contract"}
"""Multiply and add in one instruction, where the processor has it."""
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
    weight = np.float32(0 if first else 1)
    for s in range(runs):
        for p in range(size):
            zero[s, p] = weight * total[start + p]
            zero[s, p] += evidence if seeds[s, start + p] == 0 else np.float32(0)
        for k in range(others):
            for p in range(size):
                value = weight * message[s * others + k, p]
                zero[s, p] -= value
                belief[s, k, p] = value + (evidence if seeds[s, start + p] == k + 1 else np.float32(0))


@njit(cache=True, nogil=True)
def _normalise(
    message: FloatArray, belief: FloatArray, zero: FloatArray, power: npt.NDArray[np.int32], size: int
) -> None:
    """Softmax of the logarithms, back in the order of the channels."""
    runs, others, _ = belief.shape
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
            for p in range(size):
                message[s * others + k, p] = belief[s, k, p] * zero[s, p]


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


@njit(cache=True, nogil=True, fastmath=_FUSED)
def _gather(corners: IndexArray, weights: FloatArray, field: FloatArray, message: FloatArray) -> None:
    """`lattice_loops.gather` of LANES channels: (M, LANES) field, (LANES, block) message."""
    for p in range(len(corners)):
        a = b = c = d = np.float32(0)
        for j in range(CORNERS):
            row, weight = corners[p, j], weights[p, j]
            a += weight * field[row, 0]
            b += weight * field[row, 1]
            c += weight * field[row, 2]
            d += weight * field[row, 3]
        message[0, p], message[1, p], message[2, p], message[3, p] = a, b, c, d


@njit(cache=True, nogil=True, fastmath=_FUSED)
def _splat(corners: IndexArray, weights: FloatArray, message: FloatArray, field: FloatArray) -> None:
    """`lattice_loops.splat` of LANES channels: (LANES, block) message, (M, LANES) field."""
    for p in range(len(corners)):
        a, b, c, d = message[0, p], message[1, p], message[2, p], message[3, p]
        for j in range(CORNERS):
            row, weight = corners[p, j], weights[p, j]
            field[row, 0] += weight * a
            field[row, 1] += weight * b
            field[row, 2] += weight * c
            field[row, 3] += weight * d


@njit(cache=True, nogil=True, fastmath=_FUSED)
def blur_lanes(chains: IndexArray, starts: IntArray, field: FloatArray) -> None:
    """`lattice_loops.blur` of LANES channels: (M + SPARE_ROWS, LANES) field."""
    half = np.float32(0.5)
    zero_row = np.uint32(len(field) - SPARE_ROWS)
    for axis in range(len(starts) - 1):
        a = b = c = d = np.float32(0)  # the values of the row before
        for t in range(starts[axis], starts[axis + 1]):
            row = chains[t]
            after = chains[t + 1] if t + 1 < starts[axis + 1] else zero_row
            target = row + (row == zero_row)
            e, f, g, h = field[row, 0], field[row, 1], field[row, 2], field[row, 3]
            field[target, 0] = e + half * (a + field[after, 0])
            field[target, 1] = f + half * (b + field[after, 1])
            field[target, 2] = g + half * (c + field[after, 2])
            field[target, 3] = h + half * (d + field[after, 3])
            a, b, c, d = e, f, g, h


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
    """One pass over all pixels, in blocks: messages, softmax, and the next splat, or the label at last.

    Args:
        corners: (N, CORNERS), as in `PairwiseModel`.
        weights: (N, CORNERS) float32, as in `PairwiseModel`.
        total: (N,) float32, as in `PairwiseModel`.
        blurred: (G, M, LANES) float32 corner values of the last iteration; G groups hold all channels.
        splatted: of the same shape, zeros; takes the values of this iteration.
        seeds: (S, N) int16 given labels.
        num_labels: number of labels L; there are S * (L - 1) channels.
        evidence: logarithm of how much more probable the given label is.
        refined: (S, N) int16, takes the labels in the last pass.
        first: there are no messages yet.
        last: take the labels, and splat no more.
    """
    runs, pixels = seeds.shape
    groups = len(blurred)
    message = np.zeros((groups * LANES, _BLOCK), np.float32)
    belief = np.zeros((runs, num_labels - 1, _BLOCK), np.float32)
    zero = np.zeros((runs, _BLOCK), np.float32)
    power = np.empty(belief.size, np.int32)
    for start in range(0, pixels, _BLOCK):
        size = min(_BLOCK, pixels - start)
        near, shares = corners[start : start + size], weights[start : start + size]
        if not first:
            for g in range(groups):
                _gather(near, shares, blurred[g], message[g * LANES : (g + 1) * LANES])
        _log_odds(message, belief, zero, total, seeds, start, size, evidence, first)
        if last:
            _decide(belief, zero, refined, start, size)
            continue
        _normalise(message, belief, zero, power, size)
        for g in range(groups):
            _splat(near, shares, message[g * LANES : (g + 1) * LANES], splatted[g])
