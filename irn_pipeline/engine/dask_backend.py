"""Per-image work on a Dask cluster: results as they come, a dead worker's items again on the others.

Not joblib's Dask backend: it keeps the number of workers that it started with, leaves running tasks to the cluster when
it ends early, and does not say which item a worker died of.
"""

from __future__ import annotations

import asyncio
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from irn_pipeline.engine.faults import WorkerDied
from irn_pipeline.engine.store import versions
from irn_pipeline.errors import ConfigError

if TYPE_CHECKING:
    from distributed import Client, Future

logger = logging.getLogger(__name__)
A = TypeVar("A")
B = TypeVar("B")
_PATIENCE = 5.0
"""Seconds in which a scheduler must answer."""
_LOUD = ("distributed", "distributed.client", "distributed.core", "tornado", "tornado.application", "asyncio")
_LOST = "the Dask scheduler was lost; finished work is kept: give the same command again when it is back"


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


def dask_map(
    function: Callable[[A], B],
    items: Sequence[A],
    scheduler: str | None,
    workers: int,
    shared: Sequence[Path],
) -> Iterator[B]:
    """`parallel_map` on a Dask cluster: of an address, of Dask's own configuration, or else started here."""
    require_dask()
    if not items:
        return
    from distributed import as_completed

    task = _Task(function, tuple(shared), _versions())
    with _unheard(), _connected(scheduler, workers) as client:
        _require_fit(client, task)
        left = iter(items)
        running: dict[Future, A] = {}
        finished = as_completed(loop=client.loop, with_results=True, raise_errors=False)
        try:
            while True:
                # A few for each thread; a cluster that grows on demand needs to see some.
                wanted = max(3 * sum(client.nthreads().values()), 16)
                for item in islice(left, wanted - len(running)):
                    future = client.submit(task, item, pure=False)
                    running[future] = item
                    finished.add(future)
                if not running:
                    return
                # Results before errors: those that came are kept.
                for future, result in sorted(
                    finished.next_batch(), key=lambda pair: pair[0].status != "finished"
                ):
                    item = running.pop(future)
                    if future.status != "finished":
                        raise _explained(future, item)
                    yield result
        except OSError as error:
            raise WorkerDied(_LOST) from error
        finally:
            if client.status == "running":
                client.cancel(list(running), force=True)


@dataclass(frozen=True)
class _Task(Generic[A, B]):
    """The work on one item, by a worker that is fit for it; travels to the workers."""

    function: Callable[[A], B]
    shared: tuple[Path, ...]
    versions: dict[str, str]

    def __call__(self, item: A) -> B:
        from distributed import get_worker

        problem = self.problem()
        if problem:
            raise ConfigError(f"Dask worker {get_worker().address} {problem}")
        return self.function(item)

    def problem(self) -> str:
        """Why the worker that this runs on cannot do the work; "" where it can."""
        unseen = [folder for folder in self.shared if not folder.is_dir()]
        if unseen:
            return f"does not see the folder {unseen[0]}; every worker reads it, under the same path: mount it there"
        here = _versions()
        other = [
            f"{name} {here.get(name)}, not {own}"
            for name, own in self.versions.items()
            if here.get(name) != own
        ]
        differ = f"has other versions than this process: {'; '.join(other)}; install the same ones"
        return differ if other else ""


def _require_fit(client: Client, task: _Task[A, B]) -> None:
    """Ask the workers that are there; one that comes later is asked by its first task."""
    answers = client.run(task.problem, on_error="return")
    if not answers:
        logger.warning("the Dask cluster has no worker now; waiting for one")
    for address, answer in answers.items():
        # One that has left meanwhile answers with an error of its connection.
        if isinstance(answer, Exception) and not isinstance(answer, OSError):
            raise ConfigError(
                f"Dask worker {address} cannot load the code that it should run ({type(answer).__name__}: {answer}); "
                "install this version of irn_pipeline there, with its packages, and start the worker again"
            )
        if answer and isinstance(answer, str):
            raise ConfigError(f"Dask worker {address} {answer}")


def _versions() -> dict[str, str]:
    """What the record of a stage says of this process, which must be true for every worker; and Dask's version."""
    return {**versions(), "distributed": metadata.version("distributed")}


def _explained(future: Future, item: object) -> BaseException:
    """What to raise for a task that has no result."""
    from distributed import KilledWorker

    error = future.exception() if future.status == "error" else None
    if isinstance(error, KilledWorker):
        return WorkerDied(
            f"{getattr(item, 'image_id', item)}: {error.allowed_failures + 1} Dask workers died while working on it, "
            "most often for lack of memory; finished work is kept: give the workers more memory or fewer threads "
            "(see their logs), or leave that image out, then give the same command again"
        )
    return error or WorkerDied(_LOST)


@contextmanager
def _connected(scheduler: str | None, workers: int) -> Iterator[Client]:
    """A client of the scheduler at an address; of Dask's configured one, or else of a cluster on this machine."""
    import dask
    from distributed import Client, LocalCluster

    address = dask.config.get("scheduler-address", None) if scheduler is None else scheduler
    with ExitStack() as stack:
        if address is None:
            # As with loky nothing but the machine limits memory, and no port is open to other machines.
            cluster = LocalCluster(
                n_workers=workers, threads_per_worker=1, memory_limit=0, dashboard_address="127.0.0.1:0",
                silence_logs=logging.CRITICAL,
            )  # fmt: skip
            address = stack.enter_context(cluster)
            logger.info("a Dask cluster of %d processes was started on this machine", workers)
        else:
            # Before a Client is made: one that fails leaves threads and messages behind.
            _require_scheduler(address)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other versions: every task looks at those of its worker
            client = Client(address, timeout=_PATIENCE, set_as_default=False, name="irn_pipeline")
        yield stack.enter_context(client)


def _require_scheduler(address: str) -> None:
    from distributed import Security, rpc

    async def ask() -> str:
        arguments = Security().get_connection_args("client")
        async with rpc(address, timeout=_PATIENCE, connection_args=arguments) as it:
            return str((await it.identity())["type"])

    async def ask_in_time() -> str:
        return await asyncio.wait_for(ask(), _PATIENCE)

    try:
        with ThreadPoolExecutor(1) as thread:  # in a notebook, this one has a running loop
            kind = thread.submit(lambda: asyncio.run(ask_in_time())).result()
    except Exception as error:
        late = isinstance(error, asyncio.TimeoutError)
        reason = f"nothing in {_PATIENCE:.0f} s" if late else f"{type(error).__name__}: {str(error)[:200]}"
        raise ConfigError(
            f"--scheduler {address}: no Dask scheduler answers there ({reason.splitlines()[0]}); give the address that "
            "`dask scheduler` prints when it starts, such as tcp://HOST:8786"
        ) from error
    if kind != "Scheduler":
        raise ConfigError(f"--scheduler {address}: is the address of a Dask {kind}; give the scheduler's")


@contextmanager
def _unheard() -> Iterator[None]:
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
