"""Python's unpickler with a short list of what a pickle may name; nothing else that it names is looked up or called.

What the list names is made here, by functions that check their arguments. Whatever can have a state set while the
pickle is read is of a class of this module. NumPy's and torch's own `__setstate__` never see what a stranger wrote: a
dtype with made-up flags would take bytes for addresses.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from collections.abc import Callable
from pickle import UnpicklingError
from typing import Any

import numpy as np

from irn_pipeline.files.torch_file import load_torch

_CONTAINERS = frozenset(
    ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "LIST", "DICT")
)
_PUTS, _GETS = (
    frozenset(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE")),
    frozenset(("GET", "BINGET", "LONG_BINGET")),
)
_OTHER_OPCODES = (
    "PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT UNICODE "
    "BINUNICODE SHORT_BINUNICODE BINUNICODE8 STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 "
    "BYTEARRAY8 APPEND APPENDS SETITEM SETITEMS GLOBAL STACK_GLOBAL REDUCE BUILD"
)
_OPCODES = _CONTAINERS | _PUTS | _GETS | set(_OTHER_OPCODES.split())
_MOST_STEPS = 20_000
"""Opcodes of one pickle, and so the depth of its containers; a file of ten arrays takes 400."""
_MOST_SHARED = 16
"""Containers that may occur again: each may double what there is to walk through."""
_COPIES, _SLACK = 4, 1 << 16
"""Bytes that all arrays and texts may take together: so many for each of the file, and so many more."""
_NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray", "numpy.core.numeric", "numpy._core.numeric")


def unpickle(body: bytes) -> object:
    """The value of a pickle: plain containers, numbers, texts, and arrays; a torch tensor comes back as an array.

    Args:
        body: the pickle; what follows its end does not matter.

    Raises:
        UnpicklingError: it holds anything else, or more than it has bytes for.
        Exception: it is damaged; the unpickler raises many types.
    """
    _check_opcodes(body)
    return _Unpickler(body).value()


def _check_opcodes(body: bytes) -> None:
    """Look for what keeps Python's unpickler busy, or takes memory that the file does not pay for."""
    shared, before = 0, ""
    containers: dict[int, bool] = {}
    for steps, (opcode, argument, _) in enumerate(pickletools.genops(body)):
        name = opcode.name
        if name not in _OPCODES:
            raise UnpicklingError(f"it holds the instruction {name}, which is not allowed")
        if name in _PUTS:
            place = len(containers) if name == "MEMOIZE" else int(argument or 0)
            containers[place] = before in _CONTAINERS
            if place > len(body):  # Python would reserve all places before it
                raise UnpicklingError(f"it keeps a value in the place {place}")
        elif name in _GETS:
            shared += containers.get(int(argument or 0), True)
        if steps > _MOST_STEPS or shared > _MOST_SHARED:
            raise UnpicklingError(
                f"it takes more than {_MOST_STEPS} steps, or the same containers again and again"
            )
        before = name


class _Admitted:
    """What a name in a pickle stands for: it can be called, and no state of it can be set."""

    __slots__ = ("_call", "name")

    def __init__(self, name: str, call: Callable[..., object]) -> None:
        self.name, self._call = name, call

    def __call__(self, *arguments: object) -> object:
        return self._call(*arguments)

    def __setstate__(self, state: object) -> None:
        raise UnpicklingError(f"it sets the state of {self.name}")


class _Dtype:
    """A dtype of numbers, of texts, or of objects."""

    __slots__ = ("dtype", "name")

    def __init__(self, name: object, align: object = False, copy: object = True) -> None:
        if not isinstance(name, str) or len(name) > 12 or not name.isalnum():
            raise UnpicklingError(f"it names the dtype {str(name)[:40]!r}")
        self.name, self.dtype = "a dtype", np.dtype(name)
        if self.dtype.kind not in "biufcUSO" or not self.dtype.itemsize:
            raise UnpicklingError(f"it names the dtype {name!r}")

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or state[1] not in ("<", ">", "=", "|") or any(state[2:5]):
            raise UnpicklingError("it sets the state of a dtype")
        self.dtype = self.dtype.newbyteorder(state[1])


class _Made:
    """An array, a number or a storage; an array's content follows when it is made."""

    __slots__ = ("_fill", "value")

    def __init__(self, value: Any = None, fill: Callable[[object], Any] | None = None) -> None:
        self.value, self._fill = value, fill

    def __setstate__(self, state: object) -> None:
        if self._fill is None:
            raise UnpicklingError("it sets the state of an array twice")
        self.value, self._fill = self._fill(state), None


class _Unpickler(pickle.Unpickler):
    def __init__(self, body: bytes) -> None:
        super().__init__(io.BytesIO(body))
        self._left = len(body) * _COPIES + _SLACK
        self._calls: dict[str, Callable[..., object]] = {
            "numpy.ndarray": _refused,
            "numpy.dtype": _Dtype,
            "collections.OrderedDict": _empty_dict,
            "builtins.bytes": _no_bytes,
            "__builtin__.bytes": _no_bytes,
            "_codecs.encode": self._latin1,
            "torch.storage._load_from_bytes": self._storage,
            "torch._utils._rebuild_tensor_v2": self._tensor,
        }
        for module in _NUMPY:
            self._calls |= {
                f"{module}._reconstruct": self._empty_array,
                f"{module}.scalar": self._scalar,
                f"{module}._frombuffer": self._array_over,
            }

    def find_class(self, module: str, name: str) -> _Admitted:
        call = self._calls.get(f"{module}.{name}")
        if call is None:
            raise UnpicklingError(f"it names '{module[:80]}.{name[:80]}', which is not allowed")
        return _Admitted(f"{module}.{name}", call)

    def value(self) -> object:
        """The value of the pickle, free of what stands for arrays while it is read."""
        found = self.load()
        # numpy.save writes a dictionary as an array of objects without dimensions.
        if isinstance(found, _Made) and isinstance(found.value, list):
            found = found.value[0]
        return _plain(found)

    def _charge(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise UnpicklingError("its values take many times the length of the file")

    def _latin1(self, text: object, encoding: object) -> bytes:
        if not isinstance(text, str) or encoding != "latin1":
            raise UnpicklingError(f"it encodes a text as {str(encoding)[:20]}")
        self._charge(len(text))
        return text.encode("latin1")

    def _empty_array(self, kind: object, shape: object, typecode: object) -> _Made:
        # numpy writes every array as an empty one whose state follows.
        if not isinstance(kind, _Admitted) or kind.name != "numpy.ndarray" or shape != (0,):
            raise UnpicklingError(f"it makes an array of the shape {str(shape)[:80]} out of nothing")
        return _Made(fill=self._filled)

    def _filled(self, state: object) -> object:
        _, shape, dtype, fortran, content = state if isinstance(state, tuple) else ()
        if isinstance(dtype, _Dtype) and dtype.dtype.hasobject:
            if shape != () or type(content) is not list or len(content) != 1:
                raise UnpicklingError(f"it holds an array of objects of the shape {str(shape)[:80]}")
            return content
        return self._array(content, dtype, shape, "F" if fortran else "C")

    def _array(self, content: object, dtype: object, shape: object, order: object) -> np.ndarray[Any, Any]:
        count = _count(shape)
        if not isinstance(dtype, _Dtype) or dtype.dtype.hasobject or order not in ("C", "F"):
            raise UnpicklingError("it holds an array without a dtype, or without an order")
        if not isinstance(content, bytes | bytearray) or len(content) != count * dtype.dtype.itemsize:
            raise UnpicklingError(f"it holds an array of the shape {shape} that does not have its bytes")
        self._charge(len(content))
        flat = np.frombuffer(bytearray(content), dtype.dtype) if count else np.zeros(0, dtype.dtype)
        return flat.reshape(shape, order=order)  # type: ignore[call-overload, no-any-return]

    def _array_over(self, content: object, dtype: object, shape: object, order: object) -> _Made:
        return _Made(self._array(content, dtype, shape, order))

    def _scalar(self, dtype: object, content: object) -> _Made:
        return _Made(self._array(content, dtype, (), "C")[()])

    def _storage(self, content: object) -> _Made:
        # torch pickles a storage as a nested torch.save file; its own hook for it would run what the file says.
        if not isinstance(content, bytes):
            raise UnpicklingError("it holds a storage that is not bytes")
        self._charge(len(content))
        return _Made(load_torch(io.BytesIO(content)))

    def _tensor(self, storage: object, offset: Any, size: Any, stride: Any, *_: object) -> _Made:
        import torch

        stored = storage.value if isinstance(storage, _Made) else None
        if not isinstance(stored, torch.storage.TypedStorage):
            raise UnpicklingError("it holds a tensor without a storage")
        held = stored._untyped_storage.nbytes() // stored.dtype.itemsize
        flat = torch.empty(0, dtype=stored.dtype).set_(stored._untyped_storage, 0, (held,), (1,))  # type: ignore[call-overload]
        try:
            if _count(size) > held:
                raise ValueError
            tensor = flat.as_strided(size, stride, offset)  # refuses what is not inside
        except (RuntimeError, TypeError, ValueError) as error:
            raise UnpicklingError(f"it holds a tensor of the size {size} in a storage of {held}") from error
        self._charge(tensor.numel() * tensor.element_size())
        return _Made((tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy().copy())


def _plain(value: object) -> object:
    if isinstance(value, dict):
        if not all(isinstance(key, str | int) for key in value):
            raise UnpicklingError("it has a key that is neither a name nor a number")
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_plain, value))
    if isinstance(value, _Made):
        value = value.value
        if not isinstance(value, np.ndarray | np.generic):
            raise UnpicklingError("it holds an array of objects, or a storage, as a value")
    elif not isinstance(value, str | bytes | bytearray | int | float | None):
        raise UnpicklingError(f"it holds {getattr(value, 'name', type(value).__name__)} itself")
    return value


def _count(shape: object) -> int:
    if not isinstance(shape, tuple) or not all(type(side) is int and 0 <= side < 2**48 for side in shape):
        raise UnpicklingError(f"it holds an array of the shape {str(shape)[:80]}")
    return math.prod(shape)


def _refused(*arguments: object) -> object:
    raise UnpicklingError("it makes an array out of nothing")


def _empty_dict(*arguments: object) -> dict[Any, Any]:
    if arguments:
        raise UnpicklingError("it makes a dictionary out of something else")
    return {}


def _no_bytes(*arguments: object) -> bytes:
    # Protocol 2 writes empty bytes as a call; bytes(10**12) would be a terabyte.
    if arguments:
        raise UnpicklingError("it makes bytes out of something else")
    return b""
