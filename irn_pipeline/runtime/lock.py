"""One process at a time works in a stage's folder; the lock names its holder, and one left by a dead process is told.

The kernel's record lock (fcntl) is given back whenever its process ends, however it ends, and is not inherited by
children that outlive it. Where a file system has no such locks, what the file says decides.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path

from irn_pipeline.errors import ArtifactError
from irn_pipeline.foreign.json_text import parse_json
from irn_pipeline.foreign.text import plain_line
from irn_pipeline.runtime.faults import write_fault

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)
LOCK_NAME = ".lock"
_HELD = (errno.EACCES, errno.EAGAIN)
_NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
_LONGEST = 1 << 16
_HIGHEST_PID = 2**31 - 1


@dataclass(frozen=True)
class Holder:
    """Who works in a folder.

    Attributes:
        host: name of the machine.
        pid: process id on it.
        started: when the process was started, in the kernel's ticks since boot; tells it from a later one with the
            same id. None where the system does not say.
        since: when the lock was taken, local time, ISO 8601.
        command: its command line.
    """

    host: str
    pid: int
    started: int | None
    since: str
    command: str

    @staticmethod
    def here() -> Holder:
        """This process."""
        return Holder(
            socket.gethostname(),
            os.getpid(),
            _start_time(os.getpid()),
            datetime.now().astimezone().isoformat(timespec="seconds"),
            " ".join(sys.argv)[:500],
        )

    @property
    def is_local(self) -> bool:
        """Whether it runs, or ran, on this machine."""
        return self.host == socket.gethostname()

    @property
    def is_alive(self) -> bool:
        """Whether it still runs; only a local one can be told."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
        return self.started is None or _start_time(self.pid) == self.started

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since} ({self.command})"


@contextmanager
def stage_lock(folder: Path) -> Iterator[None]:
    """Hold a stage's folder, which is made if it is not there, while the block runs.

    Raises:
        ArtifactError: another process works in it, or one of another machine has left its lock; or the folder cannot
            be written.
    """
    path = folder / LOCK_NAME
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        descriptor = _take(path)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ArtifactError(
                f"{path}: is a link, and what it leads to would be overwritten; remove it"
            ) from error
        raise write_fault(path, error) or ArtifactError(
            f"{path}: cannot be made ({error.strerror})"
        ) from error
    try:
        yield
    finally:
        # Removed while it is still held: whoever waits for this file finds that it is no longer the one in place.
        with suppress(OSError):
            path.unlink()
        os.close(descriptor)
        with suppress(OSError):  # a stage that was refused leaves no empty folder
            for place in made:
                place.rmdir()


def holder_of(folder: Path) -> Holder | None:
    """Who works in a stage's folder now, as far as can be told; None where nobody does."""
    try:
        descriptor = os.open(folder / LOCK_NAME, os.O_RDONLY | _NO_LINK)
    except OSError:
        return None
    try:
        regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
        holder = _parse(os.read(descriptor, _LONGEST)) if regular else None
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return holder if holder is not None and (not holder.is_local or holder.is_alive) else None


def _take(path: Path) -> int:
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | _NO_LINK, 0o644)
        except FileNotFoundError:  # another one has just removed the folder it had made
            continue
        try:
            _require_own_file(descriptor, path)
            free = _lock(descriptor)
            previous = _parse(os.pread(descriptor, _LONGEST, 0))
            if not free or (previous is not None and (not previous.is_local or previous.is_alive)):
                raise ArtifactError(_refusal(path, previous))
            if not _is_in_place(descriptor, path):
                os.close(descriptor)
                continue
            if previous is not None:
                logger.warning("%s: left by %s, which no longer runs; taken over", path, previous)
            content = json.dumps(asdict(Holder.here())).encode()
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, content, 0)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor


def _require_own_file(descriptor: int, path: Path) -> None:
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        what = "has a second name (a hard link)" if stat.S_ISREG(found.st_mode) else "is no regular file"
        raise ArtifactError(f"{path}: {what}, so it is no lock of this program; remove it")


def _lock(descriptor: int) -> bool:
    """Whether nobody else holds the file; also true where the file system cannot tell."""
    if fcntl is None:
        return True
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in _HELD
    return True


def _is_in_place(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _parse(content: bytes) -> Holder | None:
    try:
        found = parse_json(content)
        host, pid, started, since, command = (found[entry.name] for entry in fields(Holder))
    except (ValueError, TypeError, KeyError):
        return None  # its holder died while it wrote this, or is about to write it
    if not all(isinstance(text, str) for text in (host, since, command)):
        return None
    # Signals to 0 and below go to groups of processes.
    if type(pid) is not int or not 0 < pid <= _HIGHEST_PID or type(started) not in (int, type(None)):
        return None
    return Holder(plain_line(host[:200]), pid, started, plain_line(since[:40]), plain_line(command[:500]))


def _refusal(path: Path, holder: Holder | None) -> str:
    if holder is None:
        return f"{path.parent}: another process works in it; wait for it, or name another --run-dir"
    if holder.is_local:
        remedy = f"wait for it, end it (kill {holder.pid}), or name another --run-dir"
        return f"{path.parent}: {holder} works in it; {remedy}"
    return (
        f"{path.parent}: is held by {holder}, and from here cannot be told whether it still runs; if it does not, "
        f"remove {path} and give the same command again"
    )


def _start_time(pid: int) -> int | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        # The name of the program, in brackets, may itself hold blanks and brackets (proc(5), fields 3 and 22).
        fields = text.rpartition(")")[2].split()
        # A process that was killed keeps its id until its parent asks after it.
        return None if fields[0] in "ZX" else int(fields[19])
    except (OSError, ValueError, IndexError):
        return None
