"""Reaching a Dask cluster, or starting one on this machine, with one clear error where that fails."""

from __future__ import annotations

import asyncio
import logging
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from irn_pipeline.errors import ConfigError

if TYPE_CHECKING:
    import distributed

logger = logging.getLogger(__name__)
_PATIENCE = 5.0
"""Seconds in which a scheduler must answer."""
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


@contextmanager
def connected(scheduler: str | None, workers: int) -> Iterator[distributed.Client]:
    """A client of the scheduler at an address; of Dask's configured one, or else of a cluster of this machine's own.

    Raises:
        ConfigError: no scheduler answers there.
    """
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
            reason = f"nothing in {_PATIENCE:.0f} s" if late else first_line(error)
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
def dask_unheard() -> Iterator[None]:
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


def first_line(error: BaseException) -> str:
    """Type and first line of an error's text."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
