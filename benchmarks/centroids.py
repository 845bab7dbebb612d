"""Centroids and instance map: merged paths against 300 NumPy sweeps over all cells."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter, label

from benchmarks.case import Array, Arrays, Benchmark, Case, Disagreement, Method, Prepared
from irn_pipeline.ops.instance_map import instance_map

SWEEPS, THRESHOLD = 300, 2.5


def inputs(case: Case) -> np.ndarray:
    """(2, h, w) field that leads part of the way to the nearest of some centres, with smooth errors."""
    rng = np.random.default_rng(case.cells)
    height, width = case.size
    centres = rng.random((case.count, 2)) * [height - 1, width - 1]
    offsets = centres[:, :, None, None] - np.indices(case.size)
    nearest = (offsets**2).sum(1).argmin(0)
    field = np.take_along_axis(offsets, nearest[None, None], 0)[0]
    errors = np.stack([gaussian_filter(noise, 3) for noise in rng.normal(0, 6, (2, *case.size))])
    return (0.7 * field + errors).astype(np.float32)


def ours(case: Case) -> Prepared:
    field = inputs(case)
    return Prepared(lambda: [instance_map(field, threshold=THRESHOLD, iterations=SWEEPS)])


def textbook(case: Case) -> Prepared:
    field = inputs(case)
    return Prepared(lambda: [plain_instance_map(field)])


def plain_instance_map(field: np.ndarray) -> Array:
    """Every cell, every sweep, four corners each."""
    height, width = field.shape[1:]
    y, x = np.indices((height, width), dtype=np.float32)
    for _ in range(SWEEPS):
        top, left = np.floor(y).astype(np.int64), np.floor(x).astype(np.int64)
        bottom, right = np.ceil(y).astype(np.int64), np.ceil(x).astype(np.int64)
        down, along = y - top.astype(np.float32), x - left.astype(np.float32)
        step_y, step_x = (
            part[top, left] * ((1 - down) * (1 - along))
            + part[top, right] * ((1 - down) * along)
            + part[bottom, left] * (down * (1 - along))
            + part[bottom, right] * (down * along)
            for part in field
        )
        y = np.clip(y + step_y, 0, height - 1)
        x = np.clip(x + step_x, 0, width - 1)
    components, _ = label(np.sqrt(field[0] ** 2 + field[1] ** 2) < THRESHOLD)
    reached = components[np.round(y).astype(np.int64), np.round(x).astype(np.int64)]
    return np.unique(reached, return_inverse=True)[1].reshape(reached.shape)


def agreement(ours: Arrays, theirs: Arrays) -> float:
    """0; the same cells are together, whatever the groups are called."""
    pairs = np.unique(np.stack([ours[0].ravel(), theirs[0].ravel()]), axis=1)
    counts = {len(np.unique(ids[0])) for ids in (ours, theirs)}
    if counts != {pairs.shape[1]}:
        raise Disagreement(f"groups differ: {counts} ids make {pairs.shape[1]} pairs")
    return 0.0


BENCHMARK = Benchmark(
    name="centroids",
    summary="centroids and instance map",
    cases=tuple(Case(size, 6) for size in ((94, 125), (188, 250), (375, 500))),
    small=(Case((23, 31), 3),),
    ours=Method("merged paths", ours),
    references=(Method("300 sweeps", textbook),),
    agreement=agreement,
)
