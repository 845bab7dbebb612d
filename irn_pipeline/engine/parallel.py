"""Per-image work on many cores."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from irn_pipeline.engine.dask_backend import dask_map
from irn_pipeline.engine.execution import Execution
from irn_pipeline.engine.faults import WorkerDied
from irn_pipeline.errors import MemoryExhausted, is_out_of_memory

A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True)
class _Named(Generic[A, B]):
    """The function, whose lack of memory names the item; travels to worker processes."""

    function: Callable[[A], B]

    def __call__(self, item: A) -> B:
        try:
            return self.function(item)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise MemoryExhausted(f"not enough memory: {error}", getattr(item, "image_id", None)) from error


def parallel_map(
    function: Callable[[A], B], items: Sequence[A], execution: Execution, *, shared: Sequence[Path] = ()
) -> Iterator[B]:
    """Results of `function` on every item as they come, in any order.

    Args:
        function: picklable, as are its items and results. On a Dask cluster it runs in other working folders: the
            paths in it and in the items are absolute.
        items: the work.
        execution: the backend, and the number of its processes; 1 of loky works in this process.
        shared: folders that the work reads; a worker of another machine that does not see them is refused.

    Raises:
        ConfigError: there is no such cluster, or its workers cannot do the work.
        MemoryExhausted: an item needs more memory than there is; the error names it.
        WorkerDied: a worker process was killed; results that came before are whole. On a Dask cluster its items go
            to others first, as often as the cluster allows.
    """
    named, workers = _Named(function), execution.worker_count
    if execution.backend == "dask":
        yield from dask_map(named, items, execution.scheduler, workers, shared)
        return
    if workers <= 1:
        yield from map(named, items)
        return
    from joblib import Parallel, delayed

    pool = Parallel(n_jobs=workers, return_as="generator_unordered", pre_dispatch="3 * n_jobs")
    done = 0
    try:
        for result in pool(delayed(named)(item) for item in items):
            done += 1
            yield result
    except BrokenProcessPool as error:  # joblib's TerminatedWorkerError among them
        raise WorkerDied(
            f"one of {workers} worker processes was killed, most often for lack of memory, with {done} of "
            f"{len(items)} images done; they are kept: give the same command again with fewer --workers, or with "
            "--workers 1"
        ) from error


def batches(items: Iterable[A], kind: Callable[[A], Hashable], size: int) -> Iterator[list[A]]:
    """Items of one kind together, `size` of them at most; each item waits for at most 4 * `size` others.

    Args:
        items: in any order.
        kind: those with equal values go together.
        size: 1 gives every item alone, in order.
    """
    waiting: dict[Hashable, list[A]] = {}
    for item in items:
        group = waiting.setdefault(kind(item), [])
        group.append(item)
        if len(group) == size or sum(map(len, waiting.values())) > 4 * size:
            full = kind(item) if len(group) == size else next(iter(waiting))
            yield waiting.pop(full)
    yield from waiting.values()


def together(work: Callable[[Sequence[A]], Sequence[B]], items: Sequence[A]) -> Sequence[B]:
    """`work` on all items at once, or one after the other where memory does not suffice for that."""
    if len(items) == 1:
        return work(items)
    try:
        return work(items)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    return [result for item in items for result in work([item])]


def prefetch(function: Callable[[A], B], items: Sequence[A], workers: int) -> Iterator[B]:
    """Results of `function` in order, made by threads a little ahead of their use.

    For work that releases the interpreter lock (decoding, resizing) and feeds a network.

    Raises:
        MemoryExhausted: an item needs more memory than there is; the error names it.
    """
    named = _Named(function)
    if workers <= 0:
        yield from map(named, items)
        return
    from joblib import Parallel, delayed

    pool = Parallel(n_jobs=workers, prefer="threads", return_as="generator", pre_dispatch="2 * n_jobs")
    yield from pool(delayed(named)(item) for item in items)
