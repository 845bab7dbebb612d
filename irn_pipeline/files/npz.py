"""Read `.npz` files of plain arrays; what they unpack to is known, and bounded, before anything is unpacked."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np

from irn_pipeline.files.npy import read_npy

MOST_BYTES = 2**30
"""Of all arrays of a file, unpacked."""


def read_npz(
    stream: BinaryIO, names: Sequence[str], *, optional: Sequence[str] = ()
) -> list[np.ndarray[Any, Any]]:
    """Arrays of an open `.npz` file.

    Args:
        stream: the file.
        names: of the arrays to read; the file may hold no others.
        optional: of arrays that may be missing; those that are there are read after the others.

    Raises:
        ValueError: it holds others, or unpacks to more than MOST_BYTES.
        Exception: it is damaged; zipfile, zlib and NumPy raise many types.
    """
    with zipfile.ZipFile(stream) as archive:
        members = {member.filename: member for member in archive.infolist()}
        expected = [f"{name}.npy" for name in names]
        expected += [f"{name}.npy" for name in optional if f"{name}.npy" in members]
        if sorted(members) != sorted(expected) or len(archive.infolist()) != len(expected):
            raise ValueError(f"it holds {', '.join(sorted(members))[:80]}; expected {', '.join(expected)}")
        # The reader stops at the length that the directory announces, so that it may be trusted as a bound.
        if sum(member.file_size for member in members.values()) > MOST_BYTES:
            raise ValueError(f"it unpacks to more than {MOST_BYTES} bytes")
        arrays = []
        for name in expected:
            with archive.open(name) as content:
                arrays.append(_plain(read_npy(io.BytesIO(content.read()))))
    return arrays


def _plain(content: object) -> np.ndarray[Any, Any]:
    if not isinstance(content, np.ndarray) or content.dtype.hasobject:
        raise ValueError("it holds pickled objects")
    return content
