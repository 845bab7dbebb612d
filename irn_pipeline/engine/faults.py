"""What goes wrong on machines: full disks, memory, processes that die. One explanation for each."""

from __future__ import annotations

import errno
import os
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from irn_pipeline.errors import ArtifactError, IrnError

_WRITE_REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some of your quota",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f)",
    errno.EROFS: "mount it writable, or name another --run-dir",
    errno.EACCES: "make the folder writable, or name another --run-dir",
    errno.EPERM: "make the folder writable, or name another --run-dir",
    errno.ENOTDIR: "remove the file that is in the place of a folder, or name another --run-dir",
    errno.EIO: "look after the disk",
    errno.ESTALE: "mount the file server again",
}
# torch and OpenCV raise types of their own, which others share: only their words tell.
_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "Insufficient memory")
_PROBE = 1 << 16


class WorkerDied(IrnError):
    """A worker process ended before its work was done."""


class MemoryExhausted(IrnError):
    """There was not enough memory.

    Args:
        message: what happened, and the remedy.
        image_id: the picture that was worked on, where it is known.
    """

    def __init__(self, message: str, image_id: str | None = None) -> None:
        super().__init__(message, image_id)
        self.image_id = image_id

    def __str__(self) -> str:
        return str(self.args[0])


def write_fault(path: Path, error: Exception, temporary: Path | None = None) -> ArtifactError | None:
    """Why a file could not be written; None where the error has another cause.

    Args:
        path: what was to be written.
        error: what was raised meanwhile.
        temporary: the file that was written to. Where the error itself does not say what the system refused (those
            of torch, OpenCV and NumPy do not), it is written to once more; its content is lost.
    """
    found = error if isinstance(error, OSError) else None
    if (found is None or found.errno is None) and temporary is not None:
        found = _probe(temporary)
    if found is None or found.errno not in _WRITE_REMEDIES:
        return None
    # The error may be of a file that was only read.
    if temporary is not None and found.filename not in (None, str(temporary), str(path), str(path.parent)):
        return None
    reason = os.strerror(found.errno)
    return ArtifactError(
        f"{path}: cannot be written ({reason}); {_WRITE_REMEDIES[found.errno]}, then give the same command again: "
        "it goes on with what is there"
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory was refused, on whichever device."""
    return isinstance(error, MemoryError) or (
        isinstance(error, Exception)
        and not isinstance(error, IrnError)
        and any(text in str(error) for text in _OUT_OF_MEMORY)
    )


def is_worker_death(error: BaseException) -> bool:
    """Whether an error says that a worker process of joblib or of a torch loader was killed."""
    if isinstance(error, BrokenProcessPool):  # joblib's TerminatedWorkerError among them
        return True
    return isinstance(error, RuntimeError) and "DataLoader worker" in str(error)


def explained(error: Exception, stage: str, folder: Path) -> IrnError | None:
    """The error a user can act on that stands for one of the machine; None where it is none of those.

    Args:
        error: raised by a stage's work.
        stage: name of the stage.
        folder: the stage's folder.
    """
    if is_out_of_memory(error):
        return MemoryExhausted(
            f"{stage}: out of memory ({_first_line(error)}); use smaller batches, crops or scales, fewer --workers, "
            "or another --device; what is finished is kept"
        )
    if is_worker_death(error):
        return WorkerDied(
            f"{stage}: a worker process was killed, most often for want of memory ({_first_line(error)}); what is "
            "finished is kept: give the same command again with fewer --workers, or with --workers 1"
        )
    if isinstance(error, OSError):
        return write_fault(Path(error.filename) if isinstance(error.filename, str) else folder, error)
    return None


def _probe(temporary: Path) -> OSError | None:
    try:
        size = temporary.stat().st_size
        with temporary.open("wb") as stream:
            for _ in range(size // _PROBE + 2):
                stream.write(b"\0" * _PROBE)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as refused:
        return refused
    return None


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
