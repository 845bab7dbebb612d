"""256 steps of the random walk: the stencil's Chebyshev series against dense squaring and sparse products."""

from __future__ import annotations

import numpy as np
import scipy.sparse
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from benchmarks.case import Arrays, Benchmark, Case, Disagreement, Method, Prepared
from irn_pipeline.datasets.synthetic import make_picture
from irn_pipeline.ops.random_walk import build_transition, chebyshev_power, random_walk

RADIUS, BETA, EXP_TIMES = 5, 10, 8
_DENSE_CELLS = 32 * 48
_SPARSE_CELLS = 188 * 250
_TOLERANCE = 1e-3
_TIE = 1e-5
"""Scores closer than this, relative to the largest, may be ordered either way."""


def inputs(case: Case) -> tuple[Tensor, Tensor]:
    """Maps (M, h, w) of objects and noise, and a boundary (h, w) along the outlines of a generated picture."""
    rng = np.random.default_rng(case.cells)
    height, width = case.size
    objects = make_picture(rng, (max(height, 64), max(width, 64))).object_label[:height, :width]
    outlines = np.zeros(case.size, np.float32)
    outlines[:-1] += objects[1:] != objects[:-1]
    outlines[:, :-1] += objects[:, 1:] != objects[:, :-1]
    boundary = np.clip(gaussian_filter(outlines, 0.7) + 0.1 * rng.random(case.size), 0, 0.98)
    maps = np.stack([gaussian_filter(rng.random(case.size), 4) for _ in range(case.count)])
    maps += np.stack([0.3 * (objects == number) for number in range(case.count)])
    return torch.from_numpy(maps.astype(np.float32)), torch.from_numpy(boundary.astype(np.float32))


def ours(case: Case) -> Prepared:
    maps, boundary = inputs(case)
    start = maps * (1 - boundary)

    def audit(results: Arrays) -> None:
        # the walk keeps the sum over cells of map * column sum, at any size
        degree = build_transition(boundary, radius=RADIUS, beta=BETA).degree.double()
        before = (start.double() * degree).sum((1, 2)).numpy()
        after = (torch.from_numpy(results[0]).double() * degree).sum((1, 2)).numpy()
        if not np.allclose(before, after, rtol=1e-4):
            raise Disagreement(f"degree-weighted sums {before} became {after}")

    orders, offsets = len(chebyshev_power(2**EXP_TIMES)) - 1, 34
    # an order: for each map and each of 68 neighbours a difference, a product and a sum, and 6 for the recurrence
    operations = orders * case.cells * case.count * (2 * offsets * 3 + 6)
    # an order: every weight and column sum once; for each map 3 numbers read and 3 written
    moved = 4 * orders * case.cells * (offsets + 1 + 6 * case.count)
    return Prepared(
        lambda: [random_walk(maps, boundary, radius=RADIUS, beta=BETA, exp_times=EXP_TIMES).numpy()],
        audit, operations, moved,
    )  # fmt: skip


def affinity(boundary: np.ndarray) -> scipy.sparse.csr_matrix:
    """Symmetric matrix of all pairs closer than the radius, gathered by index tables as the textbook has it."""
    height, width = boundary.shape
    reach = RADIUS - 1
    padded = np.pad(boundary, ((0, reach), (reach, reach)), constant_values=1)
    y, x = (axis.ravel() for axis in np.indices(boundary.shape))
    rows, columns, values = [], [], []
    for dy in range(RADIUS):
        for dx in range(-reach, RADIUS):
            square = dy**2 + dx**2
            if (dy, dx) <= (0, 0) or square >= RADIUS**2:
                continue
            box = [(a, b) for a in range(dy + 1) for b in range(min(dx, 0), max(dx, 0) + 1)]
            path = [(a, b) for a, b in box if (dy * b - dx * a) ** 2 / square < 1]
            strongest = np.max([padded[y + a, x + b + reach] for a, b in path], axis=0)
            inside = (y + dy < height) & (x + dx >= 0) & (x + dx < width)
            rows.append((y * width + x)[inside])
            columns.append(((y + dy) * width + x + dx)[inside])
            values.append((1 - strongest[inside]) ** BETA)
    pairs = (np.concatenate(rows), np.concatenate(columns))
    half = scipy.sparse.coo_matrix((np.concatenate(values), pairs), (y.size, y.size))
    return (half + half.T + scipy.sparse.identity(y.size, np.float32)).tocsr().astype(np.float32)


def dense(case: Case) -> Prepared:
    """The original's: a dense (hw, hw) matrix, squared 8 times."""
    maps, boundary = inputs(case)

    def work() -> Arrays:
        transition = torch.from_numpy(affinity(boundary.numpy()).toarray())
        transition /= transition.sum(0, keepdim=True)
        for _ in range(EXP_TIMES):
            transition = transition @ transition
        return [((maps * (1 - boundary)).flatten(1) @ transition).reshape(maps.shape).numpy()]

    return Prepared(work)


def sparse(case: Case) -> Prepared:
    """256 products with SciPy's sparse matrix."""
    maps, boundary = inputs(case)

    def work() -> Arrays:
        matrix = affinity(boundary.numpy())
        column_sums = np.asarray(matrix.sum(0), np.float32).ravel()
        walked = (maps * (1 - boundary)).flatten(1).T.contiguous().numpy()
        for _ in range(2**EXP_TIMES):
            walked = (matrix @ walked) / column_sums[:, None]  # x T, with A symmetric
        return [walked.T.reshape(maps.shape)]

    return Prepared(work)


def agreement(ours: Arrays, theirs: Arrays) -> float:
    """Largest difference relative to the largest value; the winning map of every cell is the same."""
    (walked,), (wanted,) = ours, theirs
    largest = float(np.max(wanted))
    error = float(np.abs(walked - wanted).max()) / largest
    if not error <= _TOLERANCE:
        raise Disagreement(f"error {error:.2e} of the maximum, at most {_TOLERANCE} is allowed")
    if len(wanted) > 1:
        best, second = np.sort(wanted, axis=0)[[-1, -2]]
        wrong = (walked.argmax(0) != wanted.argmax(0)) & (best - second > _TIE * largest)
        if wrong.any():
            raise Disagreement(f"another map wins at {int(wrong.sum())} cells")
    return error


BENCHMARK = Benchmark(
    name="random_walk",
    summary="256 steps of the random walk over 5 maps",
    cases=tuple(
        Case(size, 5)
        for size in ((16, 16), (24, 32), (32, 48), (94, 125), (188, 250), (375, 500), (1000, 750))
    ),
    small=(Case((12, 12), 3), Case((16, 20), 3)),
    ours=Method("stencil", ours),
    references=(
        Method(
            "dense squaring",
            dense,
            lambda case: case.cells <= _DENSE_CELLS,
            lambda case: 2 * EXP_TIMES * float(case.cells) ** 3,
        ),
        Method("256 sparse products", sparse, lambda case: case.cells <= _SPARSE_CELLS),
    ),
    agreement=agreement,
)
