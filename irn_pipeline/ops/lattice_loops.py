"""Compiled loops of the permutohedral lattice: where points lie, what is next to what, splat, blur and gather."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from numba import njit

from irn_pipeline.structures import FloatArray, IntArray

IndexArray: TypeAlias = npt.NDArray[np.uint32]
SlotArray: TypeAlias = npt.NDArray[np.int32]

SPARE_ROWS = 2
"""Rows that a field of corner values has after its M corners: one of zeros, one that takes what nobody needs."""
_REMAINDER_BITS = 3
_BLOCK = 128
"""Points worked on together, in loops that become vector code."""
_HASH_FACTOR = np.uint64(0x9E3779B97F4A7C15)
"""2^64 divided by the golden ratio: spreads neighbouring keys over the hash table (Knuth)."""


@njit(cache=True, nogil=True)
def blur(chains: IndexArray, starts: IntArray, field: FloatArray) -> None:
    """Blur corner values in place, along every axis, with the weights 1/2, 1, 1/2.

    Args:
        chains: (T,) uint32, as in `Lattice`.
        starts: (d + 2,) int64, as in `Lattice`.
        field: (M + SPARE_ROWS,) float32; row M must be 0, row M + 1 is overwritten.
    """
    half = np.float32(0.5)
    zero_row = np.uint32(len(field) - SPARE_ROWS)
    for axis in range(len(starts) - 1):
        before, here = np.float32(0), np.float32(0)
        if starts[axis] < starts[axis + 1]:
            here = field[chains[starts[axis]]]
        for t in range(starts[axis], starts[axis + 1]):
            row = chains[t]
            after = field[chains[t + 1]] if t + 1 < starts[axis + 1] else np.float32(0)
            # Chains are short: to write their ends nowhere is cheaper than a branch that cannot be foreseen.
            field[row + (row == zero_row)] = here + half * (before + after)
            before, here = here, after


@njit(cache=True, nogil=True)
def splat(corners: IndexArray, weights: FloatArray, values: FloatArray, field: FloatArray) -> None:
    """Add (N,) values to the (M + SPARE_ROWS,) field, at the corners of their points."""
    for i in range(corners.shape[0]):
        for j in range(corners.shape[1]):
            field[corners[i, j]] += weights[i, j] * values[i]


@njit(cache=True, nogil=True)
def gather(corners: IndexArray, weights: FloatArray, field: FloatArray, values: FloatArray) -> None:
    """Overwrite (N,) values by those of the field at the corners of their points."""
    for i in range(corners.shape[0]):
        total = np.float32(0)
        for j in range(corners.shape[1]):
            total += weights[i, j] * field[corners[i, j]]
        values[i] = total


@njit(cache=True, nogil=True)
def _find(table: SlotArray, keys: IntArray, key: int) -> int:
    """Slot of a key in an open hash table of positions in `keys`, or the empty slot where it belongs."""
    mask = np.uint64(len(table) - 1)
    slot = ((np.uint64(key) * _HASH_FACTOR) >> np.uint64(32)) & mask
    while table[slot] >= 0 and keys[table[slot]] != key:
        slot = (slot + np.uint64(1)) & mask
    return slot


@njit(cache=True, nogil=True)
def _grown(table: SlotArray, keys: IntArray, count: int) -> tuple[SlotArray, IntArray]:
    """Table and keys of twice the size with the same entries."""
    larger_keys = np.empty(2 * len(keys), np.int64)
    larger_keys[:count] = keys[:count]
    larger = np.full(2 * len(table), -1, np.int32)
    for i in range(count):
        larger[_find(larger, larger_keys, larger_keys[i])] = i
    return larger, larger_keys


@njit(cache=True, nogil=True)
def _simplices(
    features: FloatArray,
    scale: FloatArray,
    start: int,
    size: int,
    quotient: FloatArray,
    rank: FloatArray,
    share: FloatArray,
) -> None:
    """Simplex of each feature of a block (Adams et al. 2010, section 3.1): all (d + 1, block) float32.

    Args:
        features: (d, N).
        scale: (d,) length of the lattice's axes.
        start: first point of the block.
        size: points in the block.
        quotient: coordinates of the simplex's first corner, divided by d + 1.
        rank: place of each coordinate among the point's remainders, the largest first.
        share: remainders, divided by d + 1.
    """
    d = len(features)
    full = np.float32(d + 1)
    inverse = np.float32(1) / full
    elevated, excess = np.zeros((d + 1, size), np.float32), np.zeros(size, np.float32)
    for j in range(d, 0, -1):
        for p in range(size):
            coordinate = features[j - 1, start + p] * scale[j - 1]
            elevated[j, p] = elevated[0, p] - np.float32(j) * coordinate
            elevated[0, p] += coordinate
    for i in range(d + 1):
        for p in range(size):
            quotient[i, p] = np.rint(inverse * elevated[i, p])
            share[i, p] = elevated[i, p] - quotient[i, p] * full
            excess[p] += quotient[i, p]
    for i in range(d + 1):
        for p in range(size):
            rank[i, p] = excess[p]
        for j in range(d + 1):
            if j < i:
                for p in range(size):
                    rank[i, p] += np.float32(1) if share[i, p] <= share[j, p] else np.float32(0)
            elif j > i:
                for p in range(size):
                    rank[i, p] += np.float32(1) if share[i, p] < share[j, p] else np.float32(0)
    for i in range(d + 1):
        for p in range(size):
            # Rounded coordinates must sum to 0: the ranks tell which of them to correct.
            step = np.float32(0)
            step += np.float32(1) if rank[i, p] < 0 else np.float32(0)
            step -= np.float32(1) if rank[i, p] > d else np.float32(0)
            rank[i, p] += step * full
            quotient[i, p] += step
            share[i, p] = (elevated[i, p] - quotient[i, p] * full) * inverse


@njit(cache=True, nogil=True)
def embed(
    features: FloatArray, scale: FloatArray, bits: int
) -> tuple[IndexArray, FloatArray, IntArray, SlotArray]:
    """Corners and barycentric coordinates of every feature (Adams et al. 2010, sections 3.1 and 3.2).

    A corner's coordinates are all equal modulo d + 1, so that its key is one integer: the remainder in the
    lowest bits, then the first d quotients. Steps between corners are then additions of constants.

    Args:
        features: (d, N).
        scale: (d,) length of the lattice's axes.
        bits: bits of a quotient in a key.

    Returns:
        corners and weights, (N, d + 1) as in `Lattice`; keys (M,) of the corners; and the hash table, positions
        in the keys or -1.
    """
    d, points = features.shape
    unit = np.zeros(d + 1, np.int64)  # the last coordinate follows from the others and is not in the key
    origin = np.int64(0)
    for i in range(d):
        unit[i] = np.int64(1) << (_REMAINDER_BITS + bits * i)
        origin += unit[i] << (bits - 1)
    corners = np.empty((points, d + 1), np.uint32)
    weights = np.empty((points, d + 1), np.float32)
    capacity = 64
    while 4 * capacity < points:  # a table that grows once or twice is faster than one that leaves the cache
        capacity *= 2
    # Half full at most: 2 slots a key.
    table, keys = np.full(2 * capacity, -1, np.int32), np.empty(capacity, np.int64)
    count = 0
    last_key, last_corner = np.full(d + 1, -1, np.int64), np.zeros(d + 1, np.uint32)
    quotient, rank = np.empty((d + 1, _BLOCK), np.float32), np.empty((d + 1, _BLOCK), np.float32)
    share = np.empty((d + 1, _BLOCK), np.float32)
    axis, ordered = np.empty(d + 1, np.int64), np.empty(d + 1, np.float32)
    for start in range(0, points, _BLOCK):
        size = min(_BLOCK, points - start)
        _simplices(features, scale, start, size, quotient, rank, share)
        for p in range(size):
            key = origin
            for i in range(d + 1):
                place = np.uint32(rank[i, p])
                axis[place] = i
                ordered[place] = share[i, p]
                key += np.int64(quotient[i, p]) * unit[i]
            weights[start + p, 0] = ordered[d] + (np.float32(1) - ordered[0])
            for corner in range(d + 1):
                if corner > 0:
                    weights[start + p, corner] = ordered[d - corner] - ordered[d - corner + 1]
                    key += 1 - unit[axis[d + 1 - corner]]
                if key != last_key[corner]:  # pixels side by side often share corners
                    if count == len(keys):
                        table, keys = _grown(table, keys, count)
                    slot = _find(table, keys, key)
                    if table[slot] < 0:
                        table[slot] = count
                        keys[count] = key
                        count += 1
                    last_key[corner] = key
                    last_corner[corner] = table[slot]
                corners[start + p, corner] = last_corner[corner]
    return corners, weights, keys[:count].copy(), table


@njit(cache=True, nogil=True)
def chain(keys: IntArray, table: SlotArray, d: int, bits: int) -> tuple[IndexArray, IntArray]:
    """Rows of corners along every axis; corners without neighbours are in none.

    Args:
        keys: (M,) of the corners.
        table: hash table of `embed`.
        d: dimensions.
        bits: bits of a quotient in a key.

    Returns:
        chains and starts, as in `Lattice`.
    """
    count = len(keys)
    units = np.int64(0)
    for i in range(d):
        units += np.int64(1) << (_REMAINDER_BITS + bits * i)
    parts = np.empty((d + 1) * (count + count // 2 + 1), np.uint32)
    starts = np.zeros(d + 2, np.int64)
    after, has_before = np.empty(count, np.int32), np.empty(count, np.bool_)
    used = 0
    for j in range(d + 1):
        unit = np.int64(1) << (_REMAINDER_BITS + bits * j) if j < d else np.int64(0)
        has_before.fill(False)
        for i in range(count):
            # d + 1 is added to coordinate j, and 1 taken from all: a borrow where the remainder is 0.
            borrow = (keys[i] & ((1 << _REMAINDER_BITS) - 1)) == 0
            after[i] = table[_find(table, keys, keys[i] + unit + (d - units if borrow else -1))]
            if after[i] >= 0:
                has_before[after[i]] = True
        for i in range(count):
            if has_before[i] or after[i] < 0:
                continue
            corner = i
            while corner >= 0:
                parts[used] = corner
                used += 1
                corner = after[corner]
            parts[used] = count
            used += 1
        starts[j + 1] = used
    return parts[:used].copy(), starts
