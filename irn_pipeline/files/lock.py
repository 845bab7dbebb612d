"""One process at a time works in a stage's folder; a second one is refused, with the name of the first.

The lock is the kernel's (flock, by the package filelock), so a killed process leaves none. On NFS the server keeps it
for all hosts. Where the file system has no locks, a warning says so and nothing keeps two processes apart.
"""

import errno
import fcntl
import logging
import os
import socket
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from irn_pipeline.errors import ArtifactError
from irn_pipeline.files.atomic import write_fault
from irn_pipeline.files.text import plain_line

logger = logging.getLogger(__name__)
LOCK_NAME = ".lock"
_LONGEST = 800
"""Bytes of the text that names the holder."""


@contextmanager
def stage_lock(folder: Path) -> Iterator[None]:
    """Hold a stage's folder, which is made if it is not there, while the block runs.

    Raises:
        ArtifactError: another process works in it, or it cannot be written.
    """
    path = folder / LOCK_NAME
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    # A process that only looks at the lock (`holder_of`) holds it for a moment.
    lock = FileLock(path, timeout=0.3, fallback_to_soft=False)
    try:
        _take(lock, path)
        yield
    finally:
        if lock.is_locked:
            # While it is still held: whoever waits for this file sees that it is gone, and makes another.
            path.unlink(missing_ok=True)
            lock.release()
        with suppress(OSError):  # a stage that was refused leaves no empty folder
            for place in made:
                place.rmdir()


def holder_of(folder: Path) -> str | None:
    """The process that works in a stage's folder now, in words; None where there is none that can be seen."""
    with suppress(OSError):
        if _may_be_lock(folder / LOCK_NAME):
            with (folder / LOCK_NAME).open("rb") as stream:
                try:
                    fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    return plain_line(stream.read(_LONGEST).decode(errors="replace")) or "another process"
    return None


def _take(lock: FileLock, path: Path) -> None:
    try:
        while not lock.is_locked:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not _may_be_lock(path):
                raise ArtifactError(
                    f"{path}: is a link or not a regular file, so it cannot be locked; remove it"
                )
            with suppress(FileNotFoundError):  # another process has just removed the folder that it had made
                lock.acquire()
        since = datetime.now().astimezone().isoformat(timespec="seconds")
        text = f"process {os.getpid()} on {socket.gethostname()} since {since} ({' '.join(sys.argv)})"
        path.write_bytes(text.encode(errors="replace")[:_LONGEST])
    except Timeout as error:
        raise ArtifactError(
            f"{path.parent}: {holder_of(path.parent) or 'another process'} is working in it; wait for it, stop it, or "
            "give another --run-dir"
        ) from error
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
            refused = ArtifactError(f"{path}: cannot be locked ({error.strerror})")
            raise write_fault(path, error) or refused from error
        logger.warning("%s: cannot be locked (%s); do not start a second process there", path, error.strerror)


def _may_be_lock(path: Path) -> bool:
    """Whether nothing is there, or a file of this folder only: writing to it changes no other, and ends."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return True
    return stat.S_ISREG(found.st_mode) and found.st_nlink == 1
