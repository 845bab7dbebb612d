"""Read `.npy` files, pickled ones too, and `.npz` files of plain arrays, and run nothing that they hold."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Sequence
from pickle import UnpicklingError
from typing import Any, BinaryIO

import numpy as np

from irn_pipeline.errors import ArtifactError
from irn_pipeline.files.regular import Place, open_regular, size_of
from irn_pipeline.files.unpickler import unpickle

_MOST_BYTES = 2**30
"""Of all arrays of an `.npz` file, unpacked."""


def load_pickled_npy(path: Place) -> object:
    """The object inside a `.npy` file written by `numpy.save(path, some_dict)`; arrays come back as they are.

    Raises:
        ArtifactError: the file is missing, damaged, or holds anything besides NumPy arrays, scalars, torch tensors
            (they come back as arrays) and plain containers. Nothing in it is ever run.
        MemoryError: there is less memory than a few times the length of the file.
    """
    try:
        with open_regular(path) as stream:
            return read_npy(stream)
    except FileNotFoundError as error:
        raise ArtifactError(f"{path}: no such file") from error
    except UnpicklingError as error:
        raise ArtifactError(
            f"{path}: refused: {error}; expected only NumPy arrays, scalars and torch tensors"
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # a damaged pickle can raise nearly anything
        reason = " ".join(str(error).split())[:200]
        raise ArtifactError(
            f"{path}: is not a readable .npy file ({type(error).__name__}: {reason}); delete it and run its stage again"
        ) from error


def read_npy(stream: BinaryIO) -> object:
    """The object of an open `.npy` file; raises as Python's and NumPy's readers do, and UnpicklingError."""
    start = stream.tell()
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version} of the .npy format is unknown")
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = header(stream)
    if dtype.hasobject:
        return unpickle(stream.read())
    # NumPy would reserve the memory first.
    if dtype.kind not in "biufcU" or math.prod(shape) * dtype.itemsize != size_of(stream) - stream.tell():
        raise ValueError(f"it announces {shape} of {dtype}, which does not match its length")
    stream.seek(start)
    return np.load(stream, allow_pickle=False)


def read_npz(
    stream: BinaryIO, names: Sequence[str], *, optional: Sequence[str] = ()
) -> list[np.ndarray[Any, Any]]:
    """Arrays of an open `.npz` file.

    Args:
        stream: the file.
        names: of the arrays to read; the file may hold no others.
        optional: of arrays that may be missing; those that are there are read after the others.

    Raises:
        ValueError: it holds others, or unpacks to more than _MOST_BYTES.
        Exception: it is damaged; zipfile, zlib and NumPy raise many types.
    """
    with zipfile.ZipFile(stream) as archive:
        members = {member.filename: member for member in archive.infolist()}
        expected = [f"{name}.npy" for name in names]
        expected += [f"{name}.npy" for name in optional if f"{name}.npy" in members]
        if sorted(members) != sorted(expected) or len(archive.infolist()) != len(expected):
            raise ValueError(f"it holds {', '.join(sorted(members))[:80]}; expected {', '.join(expected)}")
        # The reader stops at the length that the directory announces, so that it may be trusted as a bound.
        if sum(member.file_size for member in members.values()) > _MOST_BYTES:
            raise ValueError(f"it unpacks to more than {_MOST_BYTES} bytes")
        found = [read_npy(io.BytesIO(archive.read(name))) for name in expected]
    arrays = [content for content in found if isinstance(content, np.ndarray) and not content.dtype.hasobject]
    if len(arrays) < len(found):
        raise ValueError("it holds pickled objects")
    return arrays
