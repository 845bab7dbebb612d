"""What goes wrong on machines while a stage works: memory, killed processes, disks. One explanation for each."""

from __future__ import annotations

from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from irn_pipeline.errors import IrnError, MemoryExhausted, first_line, is_out_of_memory
from irn_pipeline.files.atomic import write_fault


class WorkerDied(IrnError):
    """A worker process ended before its work was done."""


def explained(error: Exception, stage: str, folder: Path) -> IrnError | None:
    """The error for the user that stands for a fault of the machine; None if `error` is none.

    Args:
        error: raised by a stage's work.
        stage: name of the stage.
        folder: the stage's folder.
    """
    if isinstance(error, IrnError):
        return None
    reason = first_line(error)
    if is_out_of_memory(error):
        return MemoryExhausted(
            f"{stage}: out of memory ({reason}); use smaller batches, crops or scales, fewer --workers, or another "
            "--device; finished work is kept"
        )
    # joblib's TerminatedWorkerError is a BrokenProcessPool.
    if isinstance(error, BrokenProcessPool) or (
        isinstance(error, RuntimeError) and "DataLoader worker" in str(error)
    ):
        return WorkerDied(
            f"{stage}: a worker process was killed, most often for lack of memory ({reason}); what is finished is "
            "kept: give the same command again with fewer --workers, or with --workers 1"
        )
    if isinstance(error, OSError):
        return write_fault(Path(error.filename) if isinstance(error.filename, str) else folder, error)
    return None
