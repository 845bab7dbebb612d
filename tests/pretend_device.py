"""A device that is not there: tensors with values that may not be mixed with the CPU's.

Code for a GPU fails where a tensor was left on the CPU, and a machine without a GPU does not show it. Here a tensor
that is moved to `DEVICE` keeps its values, computes on the CPU, and raises as CUDA does when it meets one of the CPU.
`meta` is the only name that torch accepts without a driver; torch's own `meta` tensors have no values.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("meta")
_aten = torch.ops.aten
_MAY_MIX = {
    _aten.copy_.default,
    _aten._to_copy.default,
    # CUDA takes indices that lie on the CPU.
    _aten.index.Tensor,
    _aten.index_put.default,
    _aten.index_put_.default,
    _aten._index_put_impl_.default,
}


class _OnDevice(Tensor):
    """Says that it is on `DEVICE`; `value` holds the numbers."""

    value: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, value: Tensor) -> _OnDevice:
        result: _OnDevice = torch.Tensor._make_wrapper_subclass(
            cls,
            value.shape,
            strides=value.stride(),
            storage_offset=value.storage_offset(),
            dtype=value.dtype,
            device=DEVICE,
        )
        result.value = value
        return result

    def __init__(self, value: Tensor) -> None:
        pass

    def tolist(self) -> Any:
        """As CUDA's tensors: the numbers."""
        return self.value.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["value"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], _meta: None, _size: Any, _stride: Any) -> _OnDevice:
        return _OnDevice(inner["value"])


class _Dispatch(TorchDispatchMode):
    """Sees the operations without a tensor on the device too: factories and moves."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
    there = {id(t.value): t for t in tensors if isinstance(t, _OnDevice)}
    # A scalar of the CPU may meet any tensor, as with CUDA.
    left_behind = [t for t in tensors if not isinstance(t, _OnDevice) and t.ndim]
    if there and left_behind and func not in _MAY_MIX:
        raise RuntimeError(
            f"{func}: expected all tensors to be on the same device, found one of shape "
            f"{tuple(left_behind[0].shape)} on the CPU"
        )
    onto = bool(there)
    if kwargs.get("device") is not None:
        onto = torch.device(kwargs["device"]).type == DEVICE.type
        kwargs = {**kwargs, "device": torch.device("cpu")}
    args, kwargs = tree_map(lambda t: t.value if isinstance(t, _OnDevice) else t, (args, kwargs))
    out = func(*args, **kwargs)

    # An operation in place gives back the tensor that it got.
    def placed(value: Any) -> Any:
        if not onto or not isinstance(value, Tensor):
            return value
        return there[id(value)] if id(value) in there else _OnDevice(value)

    return tree_map(placed, out)


@contextmanager
def pretend_device() -> Iterator[torch.device]:
    """Within it, `DEVICE` exists; autocast, which torch does not have for it, is left out."""
    real, generator = torch.autocast, torch.Generator

    def autocast(device_type: str, *args: Any, **kwargs: Any) -> Any:
        return nullcontext() if device_type == DEVICE.type else real(device_type, *args, **kwargs)

    def from_data(make: Any) -> Any:
        # Built from Python's numbers, a tensor of `meta` would have no values, and no operation tells of it.
        return lambda data, *, device=None, **kwargs: make(data, **kwargs).to(device or "cpu")

    def new_tensor(like: Tensor, data: Any) -> Tensor:
        return torch.tensor(data, dtype=like.dtype, device=like.device)

    with (
        mock.patch.object(torch, "autocast", autocast),
        mock.patch.object(torch, "tensor", from_data(torch.tensor)),
        mock.patch.object(torch, "as_tensor", from_data(torch.as_tensor)),
        mock.patch.object(Tensor, "new_tensor", new_tensor),
        mock.patch.object(torch, "Generator", lambda _device="cpu": generator()),
        _Dispatch(),
    ):
        yield DEVICE
