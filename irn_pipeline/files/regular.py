"""Opening what may be anything: a pipe or a device in a file's place would keep a reader waiting, or never end."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading, through links; the caller closes it.

    Raises:
        OSError: it is not there, cannot be opened, or is a folder, a pipe, a socket or a device.
    """
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


def regular_bytes(path: Path) -> bytes:
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
