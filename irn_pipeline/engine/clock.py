"""Where a stage's time goes: named sections of its work, in seconds of the wall clock."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
_TOLD_FROM = 0.005
"""Shares below this would be told as 0 %."""


class Clock:
    """Seconds spent in named sections, in the order in which they were first entered.

    For the thread that runs a stage only. On a GPU, work is counted in the section that waits for its result.

    Example:
        >>> clock = Clock()
        >>> with clock.section("network"):
        ...     pass
        >>> list(clock.seconds)
        ['network']
    """

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by section; a copy."""
        return dict(self._seconds)

    def add(self, name: str, seconds: float) -> None:
        """Count time that was measured elsewhere, as in a worker process."""
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        """Count the time until the block ends, by an error too. Sections must not be nested, nor hold a `yield`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - start)

    def waiting(self, name: str, items: Iterable[T]) -> Iterator[T]:
        """The items, with the time that each is waited for counted; what is done between them is not."""
        iterator = iter(items)
        while True:
            with self.section(name):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item


def told_shares(sections: Mapping[str, float], total: float) -> str:
    """Shares of a stage's time as text: "network 62 %, walk 30 %, other 8 %".

    Args:
        sections: seconds by section.
        total: seconds of the whole stage; what no section covers is called "other".

    Returns:
        The sections in their order; "" where there are none or no time has passed.
    """
    if not sections or total <= 0:
        return ""
    other = max(total - sum(sections.values()), 0.0)
    shares = {name: seconds / total for name, seconds in {**sections, "other": other}.items()}
    return ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares.items() if share >= _TOLD_FROM)
