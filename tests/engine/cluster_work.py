"""What the workers of a test's Dask cluster do. It imports little, because each of them imports it."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Task:
    image_id: str
    text: str


def tasks(count: int) -> list[Task]:
    return [Task(f"w{number}", f"a{number}") for number in range(count)]


def upper(task: Task) -> tuple[str, int]:
    """A result, and who made it."""
    time.sleep(0.01)
    return task.text.upper(), os.getpid()


@dataclass(frozen=True)
class HangsOnce:
    """The first process that gets the task tells its id in a file and waits to be killed."""

    told: Path

    def __call__(self, task: Task) -> tuple[str, int]:
        if task.text == "deadly" and not self.told.exists():
            self.told.write_text(f"{os.getpid()}\n")
            time.sleep(600)
        return upper(task)


def dies(task: Task) -> None:
    """Ends its process."""
    os.kill(os.getpid(), signal.SIGKILL)


def no_memory(task: Task) -> tuple[str, str]:
    """Needs too much for one of them."""
    if task.text == "huge":
        raise MemoryError("8 GB")
    return task.image_id, task.text
