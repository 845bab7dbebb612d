"""Progress with rate and time left: a bar where somebody watches, a line now and then where it goes into a file."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from tqdm import tqdm

T = TypeVar("T")
LOG_INTERVAL = 30.0
"""Seconds before the first line of a loop; every further wait is about twice as long as the one before."""
LONGEST_INTERVAL = 900.0
"""Most seconds between two lines of one loop."""

if TYPE_CHECKING:
    _Bar = tqdm[Any]
else:
    _Bar = tqdm  # older versions cannot be indexed


def progress(
    items: Iterable[T], name: str, *, total: int | None = None, unit: str = "image", quiet: bool = False
) -> Iterable[T]:
    """The same items, one after another, with the progress on standard error.

    Args:
        items: gone through once.
        name: what is done to them.
        total: how many there are, for items without a length.
        unit: what one of them is.
        quiet: show nothing.
    """
    return _kind()(items, desc=name, total=total, unit=unit, disable=quiet)


def progress_bar(
    name: str, *, total: int, done: int = 0, unit: str = "image", quiet: bool = False
) -> tqdm[NoReturn]:
    """The progress of a loop that calls `update()` itself, as a context; `done` calls were made by an earlier run."""
    return _kind()(desc=name, total=total, initial=done, unit=unit, disable=quiet)


class _LogLines(_Bar):
    """Whole lines, the first one after `LOG_INTERVAL`; whoever runs a loop reports its end."""

    _due = 0.0
    monitor_interval = 0  # of the thread that quickens bars whose rate has dropped; here time alone decides

    def __init__(self, items: Iterable[Any] | None = None, **options: Any) -> None:
        super().__init__(
            items,
            mininterval=LOG_INTERVAL,
            delay=LOG_INTERVAL,
            miniters=1,
            leave=False,
            bar_format="{desc}: {n_fmt}/{total_fmt} ({percentage:.0f} %), {rate_fmt}, {remaining} left{postfix}",
            **options,
        )

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Called when a line is due, and with an empty text to wipe the bar, of which there is none."""
        elapsed = self.format_dict["elapsed"]
        if msg is None and elapsed >= self._due:
            self._due = elapsed + min(elapsed + LOG_INTERVAL, LONGEST_INTERVAL)
            self.fp.write(f"{' '.join(str(self).split())}\n")
            self.fp.flush()


def _kind() -> type[tqdm[Any]]:
    # A notebook's stream is no terminal, but it does go back to the start of a line.
    notebook = type(sys.stderr).__module__.startswith("ipykernel.")
    return tqdm if notebook or sys.stderr.isatty() else _LogLines
