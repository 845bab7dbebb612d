"""Opening what may be anything: a pipe or a device in a file's place would keep a reader waiting, or never end."""

from __future__ import annotations

import errno
import io
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeAlias


@dataclass(frozen=True, slots=True)
class Member:
    """A file inside a shard (`files.shards`), which readers take in the place of a path.

    Attributes:
        shard: the tar file.
        name: of the file in it.
        offset: of its first byte in the shard.
        size: in bytes.
    """

    shard: Path
    name: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.shard} ({self.name})"


Place: TypeAlias = Path | Member
"""Where a file of a run folder lies."""


def open_regular(path: Place) -> BinaryIO:
    """Open a regular file for reading, through links; the caller closes it.

    Raises:
        OSError: it is not there, cannot be opened, or is a folder, a pipe, a socket or a device; or a shard ends
            before its member does.
    """
    if isinstance(path, Member):
        with open_regular(path.shard) as stream:
            if path.offset + path.size > size_of(stream):
                raise OSError(errno.EIO, "the shard is cut off", str(path.shard))
            stream.seek(path.offset)
            return io.BytesIO(stream.read(path.size))
    try:
        # Without O_NONBLOCK the opening of a pipe waits for its writer.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except ValueError as error:
        raise OSError(errno.EINVAL, f"not a valid file name: {error}", str(path)) from error
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        raise OSError(errno.EINVAL, "not a regular file but a pipe, a socket or a device", str(path))
    return os.fdopen(descriptor, "rb")


def regular_bytes(path: Place) -> bytes:
    """Content of a regular file.

    Raises:
        OSError: as for `open_regular`, or the disk fails.
    """
    with open_regular(path) as stream:
        return stream.read()


def size_of(stream: BinaryIO) -> int:
    """Length of an open file in bytes; its position stays where it is."""
    place = stream.tell()
    end = stream.seek(0, os.SEEK_END)
    stream.seek(place)
    return end
