"""Read pickled `.npy` files and admit nothing but NumPy arrays and scalars, torch tensors and plain containers."""

from __future__ import annotations

import io
import math
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO

import numpy as np
import torch

from irn_pipeline.errors import ArtifactError
from irn_pipeline.foreign.files import open_regular, size_of
from irn_pipeline.foreign.pickle_machine import Admitted, PickleMachine, is_container
from irn_pipeline.foreign.torch_file import checked_tensor_extent, load_torch

_NUMBERS = "biufc"
"""Kinds of dtype whose arrays are bytes and nothing else."""
_CODECS = ("numpy.core.multiarray", "numpy._core.multiarray", "numpy.core.numeric", "numpy._core.numeric")
_MOST_DIMENSIONS = 32
_COPIES = 4
"""Bytes that all values may take together, per byte of the file (a text of Latin-1 letters takes two a letter)."""
_SLACK = 1 << 16


def load_pickled_npy(path: Path) -> object:
    """The object inside a `.npy` file written by `numpy.save(path, some_dict)`; arrays come back as they are.

    Args:
        path: the file.

    Raises:
        ArtifactError: the file is missing, damaged, or holds anything besides NumPy arrays, scalars, torch tensors
            and plain containers. Nothing in it is ever run, and it takes a few times its own length of memory.
        MemoryError: there is not even that much.
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
            f"{path}: is no readable .npy file ({type(error).__name__}: {reason}); delete it and run its stage again"
        ) from error


def read_npy(stream: BinaryIO) -> object:
    """The object of an open `.npy` file; raises as Python's and NumPy's readers do, and UnpicklingError."""
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(stream)
    else:
        raise ValueError(f"version {version} of the .npy format is unknown")
    size = size_of(stream)
    if dtype.hasobject:
        content = _Values(size * _COPIES + _SLACK).read(stream)
        wrapped = isinstance(content, np.ndarray) and content.dtype.hasobject and shape == ()
        return content.item() if wrapped else content  # type: ignore[attr-defined]
    _require_shape(shape)
    length = math.prod(shape) * dtype.itemsize
    if dtype.kind not in _NUMBERS + "U" or length != size - stream.tell():
        raise ValueError(f"it announces {shape} of {dtype}, which are not the bytes that it has")
    array = np.frombuffer(stream.read(length), dtype)
    return array.reshape(shape, order="F" if fortran else "C").copy()  # one that can be written to


class _Values:
    """Makes the values that one pickle may hold; each reserves no more than the file pays for.

    Args:
        allowance: bytes that all of them may take.
    """

    def __init__(self, allowance: int) -> None:
        self._left = allowance
        self._unfilled: list[np.ndarray[Any, Any]] = []

    def read(self, stream: BinaryIO) -> object:
        return PickleMachine(self._admit, self._build).load(stream)

    def _charge(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise UnpicklingError("its values take many times the length of the file")

    def _admit(self, module: str, name: str) -> Admitted | None:
        call: Callable[..., object] | None
        match (module, name):
            case ("numpy", "ndarray"):
                call = None
            case ("numpy", "dtype"):
                call = _dtype
            case (found, "_reconstruct") if found in _CODECS:
                call = self._empty_array
            case (found, "scalar") if found in _CODECS:
                call = self._scalar
            case (found, "_frombuffer") if found in _CODECS:
                call = _array_over
            case ("torch._utils", "_rebuild_tensor_v2"):
                call = _tensor
            case ("torch.storage", "_load_from_bytes"):
                call = self._storage
            case ("collections", "OrderedDict"):
                call = _ordered
            case ("_codecs", "encode"):
                call = self._latin1
            case ("builtins" | "__builtin__", "bytes"):
                call = _no_bytes
            case _:
                return None
        return Admitted(f"{module}.{name}", call)

    def _latin1(self, text: object, encoding: object) -> bytes:
        if not isinstance(text, str) or encoding != "latin1":
            raise UnpicklingError(f"encoding '{str(encoding)[:20]}' is not admitted")
        self._charge(len(text))
        return text.encode("latin1")

    def _storage(self, content: object) -> object:
        # torch pickles a storage as a nested torch.save file; its own hook for it would run what the file says.
        if not isinstance(content, bytes):
            raise UnpicklingError("it holds a storage that is no bytes")
        self._charge(len(content))
        return load_torch(io.BytesIO(content))

    def _empty_array(self, kind: object, shape: object, typecode: object) -> object:
        # numpy writes every array as an empty one whose state follows; another size would only reserve memory.
        named = isinstance(kind, Admitted) and kind.name == "numpy.ndarray"
        if not named or shape != (0,):
            raise UnpicklingError(f"it makes an array of the shape {str(shape)[:80]} out of nothing")
        self._unfilled.append(np.zeros(0, np.int8))
        return self._unfilled[-1]

    def _scalar(self, dtype: object, content: object) -> object:
        found = _plain_dtype(dtype)
        if not isinstance(content, bytes) or len(content) != found.itemsize:
            raise UnpicklingError(f"it holds a number of {found} that does not have its bytes")
        return np.frombuffer(content, found)[0]

    def _build(self, target: object, state: object) -> None:
        if isinstance(target, np.dtype):
            _set_byte_order(target, state)
        elif isinstance(target, np.ndarray) and self._unfilled and target is self._unfilled[-1]:
            self._unfilled.pop()
            self._fill(target, state)
        elif type(target) is not OrderedDict or state != {}:
            raise UnpicklingError(f"it sets the state of a {type(target).__name__}")

    def _fill(self, array: np.ndarray[Any, Any], state: object) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise UnpicklingError("it holds an array without a state")
        _, shape, dtype, fortran, content = state
        count = _require_shape(shape)
        if not isinstance(dtype, np.dtype) or not isinstance(fortran, bool):
            raise UnpicklingError("it holds an array without a dtype")
        if dtype == np.dtype(object):
            if type(content) is not list or len(content) != count:
                raise UnpicklingError(f"it holds an array of {count} objects that are not there")
            if any(isinstance(inner, np.ndarray) and inner.dtype.hasobject for inner in content):
                raise UnpicklingError("it holds arrays of objects that hold others")
            if count != 1 and any(map(is_container, content)):
                raise UnpicklingError("it holds an array of several containers")
        elif not isinstance(content, bytes) or len(content) != count * _plain_dtype(dtype).itemsize:
            raise UnpicklingError(f"it holds an array of the shape {shape} that does not have its bytes")
        self._charge(count * dtype.itemsize)
        array.__setstate__((1, shape, dtype, fortran, content))  # type: ignore[arg-type]


def _dtype(name: object, align: object = False, copy: object = True) -> np.dtype[Any]:
    if not isinstance(name, str) or len(name) > 12 or not name.isalnum():
        raise UnpicklingError(f"it names the dtype {str(name)[:40]!r}, which is not admitted")
    # A copy, because its byte order may be set.
    dtype = np.dtype(name, copy=True)  # type: ignore[call-overload]
    if dtype.kind not in _NUMBERS + "OUS":
        raise UnpicklingError(f"it names the dtype {name!r}, which is not admitted")
    return dtype


def _plain_dtype(dtype: object) -> np.dtype[Any]:
    if not isinstance(dtype, np.dtype) or dtype.kind not in _NUMBERS + "US" or not dtype.itemsize:
        raise UnpicklingError(f"it holds values of the type {str(dtype)[:40]}, which is not admitted")
    return dtype


def _set_byte_order(dtype: np.dtype[Any], state: object) -> None:
    if not isinstance(state, tuple) or len(state) != 8 or state[1] not in ("<", ">", "=", "|"):
        raise UnpicklingError("it sets the state of a dtype")
    if state[2:5] != (None, None, None) or state[5] not in (-1, dtype.itemsize):
        raise UnpicklingError("it sets the fields of a dtype")
    if dtype.newbyteorder(state[1]) != dtype:
        # NumPy wants these two for texts only, whose length is no part of their kind.
        extent = (dtype.itemsize, dtype.alignment) if dtype.kind in "US" else (-1, -1)
        dtype.__setstate__((3, state[1], None, None, None, *extent, dtype.flags))  # type: ignore[attr-defined]


def _array_over(content: object, dtype: object, shape: object, order: object) -> object:
    found = _plain_dtype(dtype)
    count = _require_shape(shape)
    if not isinstance(content, bytes | bytearray) or len(content) != count * found.itemsize:
        raise UnpicklingError(f"it holds an array of the shape {shape} that does not have its bytes")
    if order not in ("C", "F"):
        raise UnpicklingError("it holds an array whose order is neither C nor F")
    flat = np.frombuffer(content, found) if count else np.zeros(0, found)
    return flat.reshape(shape, order=order)  # type: ignore[call-overload]


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: object) -> torch.Tensor:
    if not isinstance(storage, torch.storage.TypedStorage):
        raise UnpicklingError("it holds a tensor without a storage")
    held = storage._untyped_storage.nbytes() // storage.dtype.itemsize
    # torch's own function enlarges a storage that is too small: a file of a kilobyte could fill the memory.
    checked_tensor_extent(held, offset, size, stride)
    return torch._utils._rebuild_tensor_v2(storage, offset, size, stride, False, OrderedDict())


def _ordered(*arguments: object) -> OrderedDict[Any, Any]:
    if arguments:
        raise UnpicklingError("it makes a dictionary out of something else")
    return OrderedDict()


def _no_bytes(*arguments: object) -> bytes:
    # Protocol 2 writes empty bytes as a call; bytes(10**12) would be a terabyte.
    if arguments:
        raise UnpicklingError("it makes bytes out of something else")
    return b""


def _require_shape(shape: object) -> int:
    """Number of elements of a shape."""
    if not isinstance(shape, tuple) or len(shape) > _MOST_DIMENSIONS:
        raise UnpicklingError(f"it holds an array of the shape {str(shape)[:80]}")
    if not all(type(side) is int and 0 <= side < 2**48 for side in shape):
        raise UnpicklingError(f"it holds an array of the shape {str(shape)[:80]}")
    return math.prod(shape)
