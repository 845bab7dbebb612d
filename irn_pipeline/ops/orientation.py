"""The eight EXIF orientations: how stored pixels are turned to be shown upright."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

T = TypeVar("T", bound=np.generic)
UPRIGHT = 1
"""Pixels are stored as they are shown."""


def turned(array: npt.NDArray[T], orientation: int, *, rows: int = 0) -> npt.NDArray[T]:
    """Turn or mirror pixels as an EXIF orientation says.

    Args:
        array: (..., H, W, ...) of any dtype.
        orientation: 1 to 8 (EXIF 2.32, tag 0x0112); 1 leaves the array as it is.
        rows: which axis is H; W is the next one.

    Returns:
        A view, (..., W, H, ...) for the orientations 5 to 8.
    """
    columns = rows + 1
    if orientation >= 5:
        array = np.swapaxes(array, rows, columns)
    if orientation in (2, 3, 6, 7):
        array = np.flip(array, columns)
    if orientation in (3, 4, 7, 8):
        array = np.flip(array, rows)
    return array


def inverse(orientation: int) -> int:
    """The orientation that undoes another."""
    return {6: 8, 8: 6}.get(orientation, orientation)


def turned_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """(H, W) after `turned`."""
    return (size[1], size[0]) if orientation >= 5 else size


def as_orientation(value: Any) -> int:
    """The value of an EXIF tag as an orientation; 1 where it is none."""
    return value if isinstance(value, int) and 1 <= value <= 8 else UPRIGHT
