"""Little memory and little time for the code of a block: what wants more fails, instead of stopping the machine."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class TooSlow(Exception):
    """The block took too long."""


@contextmanager
def little(megabytes: int = 512, seconds: int = 20) -> Iterator[None]:
    """Raise MemoryError, or TooSlow, in a block that takes more than this beyond what is taken already."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    signal.signal(signal.SIGALRM, _stop)
    signal.alarm(seconds)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (megabytes << 20), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
        signal.alarm(0)


def _stop(*_: object) -> None:
    raise TooSlow
