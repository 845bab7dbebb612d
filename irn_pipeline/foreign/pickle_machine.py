"""A reader of pickles that builds plain values and what a table admits, and calls nothing that a pickle names.

Python's own unpickler, however restricted in what it may import, sets attributes and calls `__setstate__` of whatever
it holds, grows its memo to the index a pickle names (six bytes take 64 GB) and hashes tuples that hold one another (a
hundred bytes take years). This one reads the same opcodes (`pickletools`) one by one and does none of that.
"""

from __future__ import annotations

import pickletools
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pickle import UnpicklingError
from typing import Any, BinaryIO, cast

from irn_pipeline.foreign.files import size_of

_MOST_STEPS = 500_000
"""Opcodes of one pickle; a network of a thousand tensors takes about 50 000."""
_MOST_SHARED = 1_000_000
"""Items of containers that occur again, in all."""
_LARGEST_KEY = 2**60
"""Beyond, whole numbers with equal hashes are easily found: a dictionary of them takes quadratic time."""

_PLAIN = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING", "SHORT_BINSTRING"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclass(frozen=True)
class Admitted:
    """What a name in a pickle stands for.

    Attributes:
        name: as the pickle writes it.
        call: makes the value from the arguments, each of which it must check; None where it must not be called.
    """

    name: str
    call: Callable[..., object] | None = None


Admit = Callable[[str, str], Admitted | None]
Build = Callable[[Any, Any], None]


class PickleMachine:
    """Reads one pickle.

    Args:
        admit: module, name -> what it stands for; None refuses it.
        build: fills a value that a call has made with the state that follows it; refuses by UnpicklingError.
        persistent: what a persistent id stands for; None refuses all.
    """

    def __init__(
        self, admit: Admit, build: Build, persistent: Callable[[object], object] | None = None
    ) -> None:
        self._admit, self._build, self._persistent = admit, build, persistent
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._frozen: set[int] = set()
        self._shared = 0

    def load(self, stream: BinaryIO) -> object:
        """The value; the stream then stands behind the pickle.

        Raises:
            UnpicklingError: it holds something that is not admitted, or is larger than it looks.
            ValueError, IndexError, OSError and others: it is damaged.
        """
        size = size_of(stream)
        for steps, (opcode, argument, _) in enumerate(
            pickletools.genops(cast(BinaryIO, _Bounded(stream, size)))
        ):
            if steps > _MOST_STEPS:
                raise UnpicklingError(f"it takes more than {_MOST_STEPS} steps")
            if opcode.name == "STOP":
                return self._pop()
            self._step(opcode.name, argument)
        raise UnpicklingError("it has no end")

    def _step(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name in _PLAIN:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            self._memo[argument] = self._top()
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = self._top()
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(self._shared_value(argument))
        elif name == "MARK":
            self._marks.append(len(stack))
        elif name in _TUPLES:
            stack.append(tuple(self._pop_many(_TUPLES[name])))
        elif name in ("PROTO", "FRAME"):
            return
        elif name in _CONTAINERS:
            _CONTAINERS[name](self)
        elif name == "GLOBAL":
            stack.append(self._named(*argument.split(" ", 1)))
        elif name in ("BINPERSID", "PERSID") and self._persistent is not None:
            stack.append(self._persistent(self._pop() if name == "BINPERSID" else argument))
        else:
            raise UnpicklingError(f"it holds the instruction {name}, which is not admitted")

    def _named(self, module: object, name: object) -> Admitted:
        found = self._admit(module, name) if isinstance(module, str) and isinstance(name, str) else None
        if found is None:
            raise UnpicklingError(f"it names '{str(module)[:80]}.{str(name)[:80]}', which is not admitted")
        return found

    def _stack_global(self) -> None:
        self._stack.append(self._named(*self._pop_many(2)))

    def _reduce(self) -> None:
        function, arguments = self._pop_many(2)
        if not isinstance(function, Admitted) or function.call is None or not isinstance(arguments, tuple):
            raise UnpicklingError("it calls something that is not admitted")
        self._stack.append(function.call(*arguments))

    def _build_top(self) -> None:
        target, state = self._pop_many(2)
        self._build(target, state)
        self._stack.append(target)

    def _append(self) -> None:
        self._extend([self._pop()])

    def _appends(self) -> None:
        self._extend(self._pop_to_mark())

    def _extend(self, items: list[Any]) -> None:
        target = self._top()
        if type(target) is not list or id(target) in self._frozen:
            raise UnpicklingError("it adds to something that is no list of its own")
        target += items

    def _set_item(self) -> None:
        self._set(self._pop_many(2))

    def _set_items(self) -> None:
        self._set(self._pop_to_mark())

    def _set(self, items: list[Any]) -> None:
        target = self._top()
        if type(target) not in (dict, OrderedDict) or id(target) in self._frozen or len(items) % 2:
            raise UnpicklingError("it adds to something that is no dictionary of its own")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not (isinstance(key, str) or (isinstance(key, int) and abs(key) < _LARGEST_KEY)):
                raise UnpicklingError(
                    f"it has a key of type {type(key).__name__}; names and numbers are admitted"
                )
            target[key] = value

    def _shared_value(self, index: int) -> Any:
        """A value that occurs again: nothing may be added to it, and it may not hold others that hold others."""
        value = self._memo[index]
        if is_container(value):
            inner = value.values() if isinstance(value, dict) else value
            self._shared += len(value)
            if self._shared > _MOST_SHARED or any(map(is_container, inner)):
                raise UnpicklingError("containers that occur again hold others, or are too many")
            self._frozen.add(id(value))
        return value

    def _top(self) -> Any:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise UnpicklingError("it takes what it has not put down")
        return self._stack[-1]

    def _pop(self) -> Any:
        self._top()
        return self._stack.pop()

    def _pop_many(self, count: int) -> list[Any]:
        return [self._pop() for _ in range(count)][::-1]

    def _pop_to_mark(self) -> list[Any]:
        if not self._marks:
            raise UnpicklingError("it takes what it has not put down")
        place = self._marks.pop()
        items = self._stack[place:]
        del self._stack[place:]
        return items

    def _push_dict(self) -> None:
        items = self._pop_to_mark()
        self._stack.append({})
        self._set(items)


_CONTAINERS: dict[str, Callable[[PickleMachine], None]] = {
    "EMPTY_DICT": lambda machine: machine._stack.append({}),
    "EMPTY_LIST": lambda machine: machine._stack.append([]),
    "EMPTY_TUPLE": lambda machine: machine._stack.append(()),
    "TUPLE": lambda machine: machine._stack.append(tuple(machine._pop_to_mark())),
    "LIST": lambda machine: machine._stack.append(machine._pop_to_mark()),
    "DICT": PickleMachine._push_dict,
    "APPEND": PickleMachine._append,
    "APPENDS": PickleMachine._appends,
    "SETITEM": PickleMachine._set_item,
    "SETITEMS": PickleMachine._set_items,
    "STACK_GLOBAL": PickleMachine._stack_global,
    "REDUCE": PickleMachine._reduce,
    "BUILD": PickleMachine._build_top,
}


class _Bounded:
    """A stream from which nobody reads more than there is: Python reserves the memory before it looks."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream, self._size = stream, size

    def read(self, count: int) -> bytes:
        if count > self._size:
            raise UnpicklingError(f"it names a value of {count} bytes, and the whole file has {self._size}")
        return self._stream.read(count)

    def readline(self) -> bytes:
        return self._stream.readline()

    def tell(self) -> int:
        return self._stream.tell()


def is_container(value: object) -> bool:
    """Whether a value may hold others."""
    return isinstance(value, list | tuple | dict)
