"""Per-image work on a Dask cluster: results as they come, a dead worker's items again on the others.

joblib's own Dask backend is not used: it fixes the number of workers when it starts, leaves running tasks to the
cluster when it is ended, and cannot tell which item a worker died of.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from irn_pipeline.errors import ConfigError
from irn_pipeline.runtime.cluster_client import connected, dask_unheard, first_line, require_dask
from irn_pipeline.runtime.faults import WorkerDied
from irn_pipeline.runtime.store import versions

if TYPE_CHECKING:
    import distributed

logger = logging.getLogger(__name__)
A = TypeVar("A")
B = TypeVar("B")
_Introduced: TypeAlias = tuple[dict[str, str], list[str]]
"""Versions by package, and the shared folders that are not seen."""

_LOOK_EVERY = 2.0
"""Seconds between two looks at who the workers are."""
_POLL = 0.02
_RETRIES = 2
"""Attempts on other workers after an error; Dask counts dead workers by itself (its setting allowed-failures)."""
_AHEAD = 3
_LEAST_AHEAD = 16
"""Tasks in flight for each thread of the cluster, and at least: a cluster that grows on demand needs to see some."""
_LOST = "the Dask scheduler was lost; what is finished is kept: give the same command again when it is back"


def cluster_map(
    function: Callable[[A], B],
    items: Sequence[A],
    *,
    scheduler: str | None,
    workers: int,
    shared: Sequence[Path] = (),
) -> Iterator[B]:
    """Results of `function` on every item as they come, in any order, from the workers of a Dask cluster.

    Args:
        function: picklable, as are its items and results; the workers import its module.
        items: the work; a few for each thread of the cluster are in flight at once.
        scheduler: its address; None takes the one of Dask's own configuration, or else starts a cluster here, which
            ends with the work.
        workers: processes of a cluster that is started here.
        shared: folders that every worker must see.

    Raises:
        ConfigError: Dask is not installed, the scheduler does not answer, or a worker lacks this package, a folder,
            or has other versions.
        WorkerDied: an item's workers died as often as the cluster allows, or the scheduler was lost.
    """
    require_dask()
    if not items:
        return
    with ExitStack() as stack:
        stack.enter_context(dask_unheard())
        client = stack.enter_context(connected(scheduler, workers))
        yield from _stream(client, function, items, _Crew(client, function, shared))


def _stream(
    client: distributed.Client, function: Callable[[A], B], items: Sequence[A], crew: _Crew
) -> Iterator[B]:
    from distributed import as_completed

    name, left = uuid.uuid4().hex[:8], iter(enumerate(items))
    running: dict[distributed.Future, A] = {}
    finished = as_completed(loop=client.loop, with_results=True, raise_errors=False)
    try:
        while True:
            crew.look()
            for number, item in islice(left, max(crew.wanted - len(running), 0)):
                # What stands before the first number is the name that the dashboard counts tasks under.
                key = f"picture-{name}-{number}"
                future = client.submit(function, item, key=key, retries=_RETRIES)
                running[future] = item
                finished.add(future)
            if not running:
                return
            while not finished.has_ready():
                crew.look()
                time.sleep(_POLL)
            # Results before errors: those that came are kept.
            for future, outcome in sorted(finished.next_batch(block=False), key=_has_failed):
                item = running.pop(future)
                if future.status == "error":
                    crew.look(at_once=True)  # one that came just now and is unfit would explain it
                if future.status != "finished":
                    raise _told(future.status, outcome, item)
                yield outcome
    finally:
        if running and client.status == "running":
            client.cancel(list(running), force=True)


def _has_failed(pair: tuple[distributed.Future, object]) -> bool:
    return bool(pair[0].status != "finished")


class _Crew:
    """The workers of a cluster, looked at when they come: whether they can do the work at all.

    Args:
        client: connected.
        function: the work.
        shared: folders that every worker must see.
    """

    def __init__(
        self, client: distributed.Client, function: Callable[[Any], Any], shared: Sequence[Path]
    ) -> None:
        self._client, self._function, self._shared = client, function, tuple(map(str, shared))
        self._threads: dict[str, int] = {}
        self._next_look = 0.0
        self._alone = False

    @property
    def wanted(self) -> int:
        """Tasks to keep in flight."""
        return max(_AHEAD * sum(self._threads.values()), _LEAST_AHEAD)

    def look(self, *, at_once: bool = False) -> None:
        """Look who is there, now and then.

        Args:
            at_once: not only when it is time to.

        Raises:
            ConfigError: a worker that has come cannot do the work.
            WorkerDied: the scheduler was lost.
        """
        if time.monotonic() < self._next_look and not at_once:
            return
        try:
            there = dict(self._client.nthreads())
            new = [address for address in there if address not in self._threads]
            found = self._ask(new) if new else {}
        except (
            OSError,
            TimeoutError,
            asyncio.TimeoutError,
        ) as error:  # the last two are one from Python 3.11 on
            raise WorkerDied(_LOST) from error
        for address, answer in found.items():
            problem = _unfit(answer)
            if problem is not None:
                raise ConfigError(f"Dask worker {address} {problem}")
        gone = [address for address in self._threads if address not in there]
        if gone:
            logger.info("Dask workers left (%s): what they had goes to others", ", ".join(gone))
        if not there and not self._alone:
            logger.warning("the Dask cluster has no worker now; waiting for one")
        self._alone = not there
        self._threads = there
        self._next_look = time.monotonic() + _LOOK_EVERY

    def _ask(self, workers: list[str]) -> Mapping[str, BaseException | _Introduced]:
        answers: Mapping[str, BaseException | _Introduced] = self._client.run(
            _introduce, self._function, self._shared, workers=workers, on_error="return"
        )
        # One that has left meanwhile answers with an error of its connection.
        return {address: answer for address, answer in answers.items() if not isinstance(answer, OSError)}


def _introduce(function: Callable[[Any], Any], shared: Sequence[str]) -> _Introduced:
    """What a worker says of itself: its versions, and the folders that it does not see. That it can is an answer."""
    return _versions(), [folder for folder in shared if not Path(folder).is_dir()]


def _versions() -> dict[str, str]:
    """What the record of a stage says of it, which is to be true for every worker; and Dask's own."""
    return {**versions(), "distributed": metadata.version("distributed")}


def _unfit(answer: BaseException | _Introduced) -> str | None:
    """Why a worker cannot do the work; None where it can."""
    if isinstance(answer, BaseException):
        return (
            f"cannot load what it shall run ({first_line(answer)}); install this version of irn_pipeline there, with "
            "its packages, and start the worker again"
        )
    there, unseen = answer
    if unseen:
        return (
            f"does not see the folder {unseen[0]}; every worker reads it, under the same path: mount it there"
        )
    other = [
        f"{name} {there.get(name)}, not {own}" for name, own in _versions().items() if there.get(name) != own
    ]
    if other:
        return f"has other versions than this process: {'; '.join(other)}; install the same ones"
    return None


def _told(status: str, outcome: object, item: object) -> Exception:
    """What to raise for a task that has no result."""
    from distributed import KilledWorker

    error = outcome[1] if isinstance(outcome, tuple) else outcome
    if status != "error" or not isinstance(error, Exception):
        return WorkerDied(_LOST)
    if isinstance(error, KilledWorker):
        name = getattr(item, "image_id", item)
        return WorkerDied(
            f"{name}: {error.allowed_failures + 1} Dask workers died while they had it, most often for want of memory; "
            "what is finished is kept: give the workers more memory or fewer threads (their logs tell more), or leave "
            "that picture out, then give the same command again"
        )
    return error
