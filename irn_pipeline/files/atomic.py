"""Files that are whole or absent, and nothing written or removed behind a link."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from irn_pipeline.errors import ArtifactError

PART_PREFIX = ".part-"
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
_PROBE = 1 << 16


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends without an error.

    The content reaches the disk before the name does: after a power cut, too, a file is whole or absent.

    Raises:
        ArtifactError: the system refused the write: full disk, no permission, read-only folder.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=PART_PREFIX, suffix=path.suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        temporary.chmod(0o644)
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    except Exception as error:
        fault = write_fault(path, error, temporary)
        if fault is None:
            raise
        raise fault from error
    finally:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, have reached the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems cannot
            raise
    finally:
        os.close(descriptor)


def write_json(path: Path, value: object, indent: int | None = 2) -> None:
    """Write JSON atomically, keys in the order given."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=indent) + "\n", encoding="utf-8")


def remove(path: Path) -> None:
    """Remove a file, a folder with all it holds, or a link but nothing behind it; it need not be there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_parts(folder: Path) -> int:
    """Remove what a killed process left half-written below a folder that nobody else writes to; returns how many."""
    parts = [
        Path(place, name)
        for place, _, names in os.walk(folder)
        for name in names
        if name.startswith(PART_PREFIX)
    ]
    for part in parts:
        part.unlink(missing_ok=True)
    return len(parts)


def require_own_folder(root: Path, folder: Path) -> None:
    """Refuse to write to or remove from a folder below `root` that is a link, or lies behind one.

    The run folder itself, `root`, may be a link: its user named it.

    Raises:
        ArtifactError: there is a link on the way.
    """
    for place in (folder, *folder.parents):
        if place == root:
            return
        if place.is_symlink():
            raise ArtifactError(
                f"{place}: is a link, and its target is never written to or removed from; remove the link "
                "(to read results of another run, link them in a --run-dir whose stages are not run again)"
            )


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
    return ArtifactError(
        f"{path}: cannot be written ({os.strerror(found.errno)}); {_WRITE_REMEDIES[found.errno]}, then give the same "
        "command again: it continues with what is there"
    )


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
