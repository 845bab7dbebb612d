"""Read pickled `.npy` files and admit nothing but NumPy arrays and scalars, torch tensors and plain containers."""

from __future__ import annotations

import io
import math
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from irn_pipeline.errors import ArtifactError

_NDARRAY = object()
"""Stands for `numpy.ndarray`, which pickles name but need not call."""


def _load_storage(content: bytes) -> object:
    # torch pickles a storage as a nested torch.save file; its own hook for it would run what the file says.
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _rebuild_tensor(storage: Any, offset: int, size: Any, stride: Any, *_: object) -> torch.Tensor:
    # torch's own function enlarges a storage that is too small: a file of a kilobyte could fill the memory.
    held = storage._untyped_storage.nbytes() // storage.dtype.itemsize
    reach = offset + 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if math.prod(size) > held or (math.prod(size) and reach > held):
        raise pickle.UnpicklingError(f"it holds a tensor of the size {tuple(size)} in a storage of {held}")
    return torch._utils._rebuild_tensor_v2(storage, offset, size, stride, False, OrderedDict())


def _reconstruct_array(kind: object, shape: object, typecode: bytes) -> object:
    # numpy writes every array as an empty one whose state follows; another size would only reserve memory.
    if kind is not _NDARRAY or shape != (0,):
        raise pickle.UnpicklingError(f"it makes an array of the shape {shape} out of nothing")
    return _numpy_internal("_reconstruct")(np.ndarray, shape, typecode)


def _numpy_internal(name: str) -> Callable[..., object]:
    # Asked of NumPy's own pickling: the modules that these functions are in have moved between its versions.
    match name:
        case "_reconstruct":
            reduced: Any = np.zeros(0).__reduce__()
        case "scalar":
            reduced = np.float64(0).__reduce__()
        case _:
            reduced = np.zeros(1).__reduce_ex__(5)
    found: Callable[..., object] = reduced[0]
    return found


def _find_admitted(module: str, name: str) -> object | None:
    match (module, name):
        case ("numpy", "ndarray"):
            return _NDARRAY
        case ("numpy", "dtype"):
            return np.dtype
        case (("numpy.core.multiarray" | "numpy._core.multiarray"), "_reconstruct"):
            return _reconstruct_array
        case (("numpy.core.multiarray" | "numpy._core.multiarray"), "scalar"):
            return _numpy_internal(name)
        case (("numpy.core.numeric" | "numpy._core.numeric"), "_frombuffer"):
            return _numpy_internal(name)
        case ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        case ("torch.storage", "_load_from_bytes"):
            return _load_storage
        case ("collections", "OrderedDict"):
            return OrderedDict
        case ("_codecs", "encode"):
            return _latin1_bytes
    if module == "numpy.dtypes" or (module == "numpy" and name.endswith(("int64", "float32", "bool_"))):
        found = getattr(np.dtypes if module == "numpy.dtypes" else np, name, None)
        return found if isinstance(found, type) else None
    return None


def _latin1_bytes(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"encoding '{encoding}' is not admitted")
    return text.encode("latin1")


class _RestrictedUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        found = _find_admitted(module, name)
        if found is None:
            raise pickle.UnpicklingError(f"it names '{module}.{name}', which is not admitted")
        return found


def load_pickled_npy(path: Path) -> object:
    """The object inside a `.npy` file written by `numpy.save(path, some_dict)`; arrays come back as they are.

    Args:
        path: the file.

    Raises:
        ArtifactError: the file is missing, damaged, or holds anything besides NumPy arrays, scalars, torch tensors
            and plain containers. Nothing in it is ever run.
    """
    try:
        with path.open("rb") as stream:
            version = np.lib.format.read_magic(stream)
            if version == (1, 0):
                shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
            elif version == (2, 0):
                shape, _, dtype = np.lib.format.read_array_header_2_0(stream)
            else:
                raise ValueError(f"version {version} of the .npy format is unknown")
            if not dtype.hasobject:
                stream.seek(0)
                return np.load(stream, allow_pickle=False)
            content = _RestrictedUnpickler(stream).load()
    except FileNotFoundError as error:
        raise ArtifactError(f"{path}: no such file") from error
    except pickle.UnpicklingError as error:
        raise ArtifactError(
            f"{path}: refused: {error}; expected only NumPy arrays, scalars and torch tensors"
        ) from error
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise ArtifactError(
            f"{path}: is no readable .npy file ({type(error).__name__}: {error}); delete it and run its stage again"
        ) from error
    if isinstance(content, np.ndarray) and content.dtype.hasobject and shape == ():
        return content.item()
    return content
