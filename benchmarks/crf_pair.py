"""Both CRFs of a picture: one pair of lattices for both seeds against two pydensecrf runs."""

from __future__ import annotations

import numpy as np

from benchmarks import crf
from benchmarks.case import Arrays, Benchmark, Case, Disagreement, Method, Prepared

_SAME = 0.999


def ours(case: Case) -> Prepared:
    image, seeds = crf.inputs(np.random.default_rng(0), case.size, case.count)
    return Prepared(lambda: crf.ours(image, seeds, case.count))


def textbook(case: Case) -> Prepared:
    image, seeds = crf.inputs(np.random.default_rng(0), case.size, case.count)
    return Prepared(lambda: crf.textbook(image, seeds, case.count))


def agreement(ours: Arrays, theirs: Arrays) -> float:
    """Share of pixels whose label differs."""
    same = float(np.mean([a == b for a, b in zip(ours, theirs, strict=True)]))
    if not same >= _SAME:
        raise Disagreement(f"labels are equal on {same:.4%} of the pixels, {_SAME:.1%} are needed")
    return 1 - same


BENCHMARK = Benchmark(
    name="crf",
    summary="both CRFs of an image; a case's count is its labels with the background",
    cases=(Case((375, 500), 3), Case((750, 1000), 3), Case((375, 500), 4)),
    small=(Case((96, 128), 3),),
    ours=Method("shared lattices", ours),
    references=(Method("two pydensecrf runs", textbook),),
    agreement=agreement,
)
