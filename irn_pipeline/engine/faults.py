"""What goes wrong on machines while a stage works: memory, killed processes, disks. One explanation for each."""

from __future__ import annotations

from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from irn_pipeline.errors import IrnError
from irn_pipeline.files.atomic import write_fault

# torch and OpenCV raise types of their own, which other errors share: only their words tell.
_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "Insufficient memory")


class WorkerDied(IrnError):
    """A worker process ended before its work was done."""


class MemoryExhausted(IrnError):
    """There was not enough memory; `image_id` is the picture that was worked on, if it is known."""

    def __init__(self, message: str, image_id: str | None = None) -> None:
        super().__init__(message, image_id)
        self.image_id = image_id

    def __str__(self) -> str:
        return str(self.args[0])


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory was refused, on whichever device."""
    if isinstance(error, IrnError):
        return isinstance(error, MemoryExhausted)
    return isinstance(error, MemoryError) or any(text in str(error) for text in _OUT_OF_MEMORY)


def explained(error: Exception, stage: str, folder: Path) -> IrnError | None:
    """The error for the user that stands for a fault of the machine; None if `error` is none.

    Args:
        error: raised by a stage's work.
        stage: name of the stage.
        folder: the stage's folder.
    """
    if isinstance(error, IrnError):
        return None
    first_line = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    if is_out_of_memory(error):
        return MemoryExhausted(
            f"{stage}: out of memory ({first_line}); use smaller batches, crops or scales, fewer --workers, or another "
            "--device; what is finished is kept"
        )
    # joblib's TerminatedWorkerError is a BrokenProcessPool.
    if isinstance(error, BrokenProcessPool) or (
        isinstance(error, RuntimeError) and "DataLoader worker" in str(error)
    ):
        return WorkerDied(
            f"{stage}: a worker process was killed, most often for want of memory ({first_line}); what is finished is "
            "kept: give the same command again with fewer --workers, or with --workers 1"
        )
    if isinstance(error, OSError):
        return write_fault(Path(error.filename) if isinstance(error.filename, str) else folder, error)
    return None
