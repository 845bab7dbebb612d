"""Read `torch.save` files after a look at what they announce.

`torch.load(weights_only=True)` runs no code, but reserves what a file names: a bytearray of any length, a tensor
larger than its storage, what a compressed archive unpacks to. So the pickle in it is read first by a machine that
makes nothing.
"""

from __future__ import annotations

import math
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pickle import UnpicklingError
from typing import Any, BinaryIO

import torch

from irn_pipeline.foreign.files import size_of
from irn_pipeline.foreign.pickle_machine import Admitted, PickleMachine

_ITEM_BYTES = {
    "DoubleStorage": 8, "FloatStorage": 4, "HalfStorage": 2, "BFloat16Storage": 2, "LongStorage": 8, "IntStorage": 4,
    "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1, "BoolStorage": 1, "UntypedStorage": 1,
    "ComplexFloatStorage": 8, "ComplexDoubleStorage": 16,
}  # fmt: skip
_ZIP_START = b"PK\x03\x04"
_LEGACY_PICKLES = 5
"""Of a file from before torch 1.6: magic number, version, system, the value, the keys of its storages."""


def load_torch(stream: BinaryIO) -> Any:
    """The value of an open `torch.save` file: plain containers, numbers, texts and dense tensors, on the CPU.

    Args:
        stream: stands at the beginning of the file.

    Raises:
        UnpicklingError: it holds something else, or announces more than it has.
        Exception: it is damaged; torch, zipfile and pickle raise many types.
    """
    size = size_of(stream)
    start = stream.tell()
    zipped = stream.read(len(_ZIP_START)) == _ZIP_START
    stream.seek(start)
    if zipped:
        _check_archive(stream, size)
    else:
        for _ in range(_LEGACY_PICKLES):
            PickleMachine(_admit, _no_state, _LegacyStorages(size)).load(stream)
    stream.seek(start)
    return torch.load(stream, map_location="cpu", weights_only=True)


def checked_tensor_extent(held: int, offset: object, size: object, stride: object) -> None:
    """Check that a tensor lies within its storage.

    Args:
        held: elements of the storage.
        offset: of its first element.
        size: of each dimension.
        stride: elements from one to the next in each dimension.

    Raises:
        UnpicklingError: it reaches beyond, shows an element twice, or these are no such numbers.
    """
    sides = _counts(size)
    steps = _counts(stride)
    if len(sides) != len(steps) or type(offset) is not int or not 0 <= offset < 2**48:
        raise UnpicklingError(f"it holds a tensor of the size {str(size)[:80]} without strides")
    reach = offset + 1 + sum((n - 1) * step for n, step in zip(sides, steps, strict=True))
    count = math.prod(sides)
    if count > held or (count and reach > held) or offset > held:
        raise UnpicklingError(f"it holds a tensor of the size {tuple(sides)} in a storage of {held}")


def _counts(value: object) -> tuple[int, ...]:
    if isinstance(value, _Made):
        value = value.arguments[0] if len(value.arguments) == 1 else None
    if not isinstance(value, tuple) or len(value) > 64:
        raise UnpicklingError("it holds a tensor without a size")
    if not all(type(side) is int and 0 <= side < 2**48 for side in value):
        raise UnpicklingError(f"it holds a tensor of the size {str(value)[:80]}")
    return value


@dataclass(frozen=True, eq=False)
class _Storage:
    count: int


@dataclass(frozen=True, eq=False)
class _Made:
    """Stands for a small value that torch will make."""

    name: str
    arguments: tuple[Any, ...]


class _ZipStorages:
    """Storages of an archive: each must have the bytes that the pickle says."""

    def __init__(self, lengths: dict[str, int], folder: str) -> None:
        self._lengths, self._folder = lengths, folder

    def __call__(self, key: object) -> _Storage:
        kind, name, count = _storage_key(key, 5)
        length = self._lengths.get(f"{self._folder}data/{name}", -1)
        if length != count * _ITEM_BYTES[kind]:
            raise UnpicklingError(f"it holds a storage of {count} elements in {length} bytes")
        return _Storage(count)


class _LegacyStorages:
    """Storages behind a pickle: together they must fit into the file."""

    def __init__(self, size: int) -> None:
        self._left = size
        self._known: dict[str, int] = {}

    def __call__(self, key: object) -> _Storage:
        kind, name, count = _storage_key(key, 6)
        if name not in self._known:
            self._known[name] = count
            self._left -= count * _ITEM_BYTES[kind]
        if self._left < 0 or self._known[name] != count:
            raise UnpicklingError(f"it holds a storage of {count} elements, more than the file has")
        return _Storage(count)


def _storage_key(key: object, length: int) -> tuple[str, str, int]:
    if not isinstance(key, tuple) or len(key) != length or key[0] != "storage":
        raise UnpicklingError("it holds a storage without a key")
    kind, name, count = key[1], key[2], key[4]
    if not isinstance(kind, Admitted) or kind.name not in _ITEM_BYTES or not isinstance(name, str):
        raise UnpicklingError("it holds a storage of an unknown kind")
    if type(count) is not int or not 0 <= count < 2**48 or (length == 6 and key[5] is not None):
        raise UnpicklingError(f"it holds a storage of {str(count)[:40]} elements")
    return kind.name, name, count


def _check_archive(stream: BinaryIO, size: int) -> None:
    with zipfile.ZipFile(stream) as archive:
        members = archive.infolist()
        lengths = {member.filename: member.file_size for member in members}
        if len(lengths) != len(members):
            raise UnpicklingError("its archive holds a name twice")
        # torch stores; whatever unpacks to more than it takes is no file of torch.
        if (
            any(member.compress_type != zipfile.ZIP_STORED for member in members)
            or sum(lengths.values()) > size
        ):
            raise UnpicklingError("its archive unpacks to more than the file holds")
        pickles = [name for name in lengths if name.split("/")[-1] == "data.pkl"]
        if len(pickles) != 1:
            raise UnpicklingError(f"its archive holds {len(pickles)} pickles, expected one")
        with archive.open(pickles[0]) as content:
            folder = pickles[0].removesuffix("data.pkl")
            PickleMachine(_admit, _no_state, _ZipStorages(lengths, folder)).load(content)  # type: ignore[arg-type]


def _admit(module: str, name: str) -> Admitted | None:
    full = f"{module}.{name}"
    if module in ("torch", "torch.storage") and name in _ITEM_BYTES:
        return Admitted(name)
    call = _CALLS.get(full)
    return None if call is None else Admitted(full, call)


def _tensor(storage: object, offset: object, size: object, stride: object, *rest: object) -> _Made:
    if not isinstance(storage, _Storage):
        raise UnpicklingError("it holds a tensor without a storage")
    checked_tensor_extent(storage.count, offset, size, stride)
    return _Made("tensor", ())


def _parameter(tensor: object, *rest: object) -> _Made:
    if not isinstance(tensor, _Made) or tensor.name != "tensor":
        raise UnpicklingError("it holds a parameter without a tensor")
    return tensor


def _size(*arguments: object) -> _Made:
    return _Made("size", arguments)


def _ordered(*arguments: object) -> OrderedDict[Any, Any]:
    if arguments:
        raise UnpicklingError("it makes a dictionary out of something else")
    return OrderedDict()


def _no_state(target: object, state: object) -> None:
    # state_dict() notes the versions of its modules as an attribute of its dictionary.
    if type(target) is not OrderedDict or not isinstance(state, dict) or state.keys() - {"_metadata"}:
        raise UnpicklingError(f"it sets the state of a {type(target).__name__}")


_CALLS: dict[str, Callable[..., object]] = {
    "collections.OrderedDict": _ordered,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch.Size": _size,
}
