"""Per-image work on a Dask cluster: results as they come, a dead worker's items again on the others.

joblib's own Dask backend is not used: it fixes the number of workers when it starts, leaves running tasks to the
cluster when it is ended, and cannot tell which item a worker died of.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from irn_pipeline.errors import ConfigError
from irn_pipeline.runtime.faults import WorkerDied
from irn_pipeline.runtime.store import versions

if TYPE_CHECKING:
    import distributed

logger = logging.getLogger(__name__)
A = TypeVar("A")
B = TypeVar("B")
_Introduced: TypeAlias = tuple[dict[str, str], list[str]]
"""Versions by package, and the shared folders that are not seen."""

_PATIENCE = 5.0
"""Seconds in which a scheduler must answer."""
_LOOK_EVERY = 2.0
"""Seconds between two looks at who the workers are."""
_POLL = 0.02
_RETRIES = 2
"""Attempts on other workers after an error; Dask counts dead workers by itself (its setting allowed-failures)."""
_AHEAD = 3
_LEAST_AHEAD = 16
"""Tasks in flight for each thread of the cluster, and at least: a cluster that grows on demand needs to see some."""
_LOST = "the Dask scheduler was lost; what is finished is kept: give the same command again when it is back"
_LOUD = ("distributed", "distributed.client", "tornado", "tornado.application", "asyncio")


def require_dask() -> None:
    """Make sure that the package is there.

    Raises:
        ConfigError: it is not.
    """
    try:
        import distributed  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "--backend dask needs the package distributed, which is not installed: pip install distributed"
        ) from error


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
        stack.enter_context(_dask_unheard())
        client = stack.enter_context(_connected(scheduler, workers))
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
            for future, outcome in finished.next_batch(block=False):
                item = running.pop(future)
                if future.status != "finished":
                    raise _told(future.status, outcome, item)
                yield outcome
    finally:
        if running and client.status == "running":
            client.cancel(list(running), force=True)


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

    def look(self) -> None:
        """Look who is there, now and then.

        Raises:
            ConfigError: a worker that has come cannot do the work.
            WorkerDied: the scheduler was lost.
        """
        if time.monotonic() < self._next_look:
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
            logger.info("%d Dask workers left (%s): what they had goes to others", len(gone), ", ".join(gone))
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
            f"cannot load what it shall run ({_first_line(answer)}); install this version of irn_pipeline there, with "
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
    if isinstance(error, ModuleNotFoundError):
        return ConfigError(f"a Dask worker {_unfit(error)}")
    return error


@contextmanager
def _connected(scheduler: str | None, workers: int) -> Iterator[distributed.Client]:
    import dask
    from distributed import Client, LocalCluster

    address = dask.config.get("scheduler-address", None) if scheduler is None else scheduler
    with ExitStack() as stack:
        if address is None:
            # As with loky nothing but the machine limits memory, and no port is open to other machines.
            local = LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                memory_limit=0,
                dashboard_address="127.0.0.1:0",
                silence_logs=logging.CRITICAL,
            )
            address = stack.enter_context(local)
            logger.info("a Dask cluster of %d processes was started on this machine", workers)
        else:
            _ask_scheduler(address)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other versions: the workers are asked, one by one
            client = Client(address, timeout=_PATIENCE, set_as_default=False, name="irn_pipeline")
        yield stack.enter_context(client)


def _ask_scheduler(address: str) -> None:
    """Make sure that there is one, before a Client is made: one that fails leaves threads and messages behind.

    Raises:
        ConfigError: there is none at that address.
    """
    # In a thread of its own: in a notebook this one has a running loop.
    with ThreadPoolExecutor(1) as thread:
        try:
            kind = thread.submit(lambda: asyncio.run(_kind_at(address))).result()
        except Exception as error:
            late = isinstance(error, asyncio.TimeoutError)
            reason = f"nothing in {_PATIENCE:.0f} s" if late else _first_line(error)
            raise ConfigError(
                f"--scheduler {address}: no Dask scheduler answers there ({reason}); give the address that "
                "`dask scheduler` tells when it starts, such as tcp://HOST:8786"
            ) from error
    if kind != "Scheduler":
        raise ConfigError(f"--scheduler {address}: is the address of a Dask {kind}; give the scheduler's")


async def _kind_at(address: str) -> str:
    from distributed import Security, rpc

    async def ask() -> str:
        async with rpc(
            address, timeout=_PATIENCE, connection_args=Security().get_connection_args("client")
        ) as it:
            return str((await it.identity())["type"])

    return await asyncio.wait_for(ask(), _PATIENCE)


@contextmanager
def _dask_unheard() -> Iterator[None]:
    """Leave out Dask's messages on connections and tasks; what a user can act on is raised."""
    import distributed  # noqa: F401 - sets its loggers' levels when it is imported

    before = [(log, log.level) for log in map(logging.getLogger, _LOUD)]
    for log, _ in before:
        log.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for log, level in before:
            log.setLevel(level)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
