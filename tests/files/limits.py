"""Little memory and little time for the code of a block, so that what wants more fails; and what wants more."""

from __future__ import annotations

import resource
import signal
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MEBIBYTE = 1 << 20


_WAIT = 15
"""Seconds of waiting for each second of work: a machine may be busy with other things."""


class TooSlow(BaseException):
    """The block took too long; no Exception, which readers turn into errors of their own."""


@contextmanager
def little(megabytes: int = 512, seconds: int = 20) -> Iterator[None]:
    """Raise MemoryError, or TooSlow, in a block that takes more than this beyond what is taken already.

    Args:
        megabytes: of address space.
        seconds: of work; a block that only waits is stopped as well, much later.
    """
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    for kind in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(kind, _stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.alarm(seconds * _WAIT)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (megabytes << 20), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)


def _stop(*_: object) -> None:
    raise TooSlow


def packed_zeros(count: int, start: bytes = b"", window: int = -15) -> bytes:
    """A deflate stream of `start` and of `count` MiB of zeros: 1 kB each."""
    packer = zlib.compressobj(9, zlib.DEFLATED, window)
    head = packer.compress(start) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(MEBIBYTE)) + packer.flush(zlib.Z_FULL_FLUSH)
    return head + block * count + packer.flush()
