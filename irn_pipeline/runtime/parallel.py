"""Per-image work on many cores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from joblib import Parallel, delayed

A = TypeVar("A")
B = TypeVar("B")


def parallel_map(function: Callable[[A], B], items: Sequence[A], workers: int) -> Iterator[B]:
    """Results of `function` on every item as they come, in any order.

    Args:
        function: picklable, as are its items and results.
        items: the work.
        workers: processes (joblib's loky); 1 works in this process.
    """
    if workers <= 1:
        yield from map(function, items)
        return
    pool = Parallel(n_jobs=workers, return_as="generator_unordered", pre_dispatch="3 * n_jobs")
    yield from pool(delayed(function)(item) for item in items)


def prefetch(function: Callable[[A], B], items: Sequence[A], workers: int) -> Iterator[B]:
    """Results of `function` in order, made by threads a little ahead of their use.

    For work that releases the interpreter lock (decoding, resizing) and feeds a network.
    """
    if workers <= 0:
        yield from map(function, items)
        return
    pool = Parallel(n_jobs=workers, prefer="threads", return_as="generator", pre_dispatch="2 * n_jobs")
    yield from pool(delayed(function)(item) for item in items)
