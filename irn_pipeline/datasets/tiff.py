"""Reading TIFF files of more than 8 bits, or of other numbers of channels than one and three."""

from __future__ import annotations

import io
import logging
import math
from pathlib import Path
from typing import Any

import numpy.typing as npt

from irn_pipeline.datasets.headers import REPLACE, Header, first_line
from irn_pipeline.errors import DataError
from irn_pipeline.ops.orientation import turned

MOST_EXPANSION = 2048
"""Bytes of pixels a byte of a file: deflate packs no more than 1032 into one, LZW 1365."""


def require_enough(data: bytes, header: Header, path: Path) -> None:
    """Raise DataError where a file is too short for its pixels, however they are compressed."""
    height, width = header.size
    samples = max(header.samples, header.channels)
    if height * width * samples * header.bits > 8 * MOST_EXPANSION * len(data):
        raise DataError(f"{path}: holds less than its pixels need, it is cut off or damaged; {REPLACE}")


def read_tiff(data: bytes, header: Header, path: Path) -> npt.NDArray[Any] | None:
    """Decode a TIFF of any type and number of channels.

    Returns:
        (H, W, C) values, turned as the file says; None where OpenCV or Pillow should try: the file's compression needs
        a package that is not installed.

    Raises:
        DataError: it is damaged, or of several dimensions beside height, width and channels.
    """
    # Slow to import, and few pictures need it.
    from tifffile import TiffFile

    require_enough(data, header, path)
    # It logs what is odd about a file; what is wrong with one is told by this package.
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    try:
        with TiffFile(io.BytesIO(data)) as tiff:
            paged = header.samples == 1 < header.channels
            source = tiff.series[0] if paged else tiff.pages.first
            for page in source.pages if paged else [source]:
                # No compression makes pixels longer, and what is too long may unpack without end.
                most = 2 * math.prod(page.chunks) * page.dtype.itemsize + 1024
                if max(page.databytecounts) > most:
                    raise ValueError("more data than pixels")
            axes, values = source.axes, source.asarray()
    except MemoryError:
        raise
    except Exception as error:  # tifffile raises nearly anything for damaged files
        lacking = "imagecodecs" in str(error)
        if lacking and header.channels in (1, 3):
            return None
        remedy = "save it without compression, or pip install imagecodecs" if lacking else REPLACE
        raise DataError(f"{path}: the picture cannot be decoded ({first_line(error)}); {remedy}") from None
    # Of times and depths the first; channels are samples of a page (S), or pages (C).
    values = values[tuple(slice(None) if axis in "YXCS" else 0 for axis in axes)]
    axes = "".join(axis for axis in axes if axis in "YXCS")
    if {"C", "S"} <= set(axes) or values.shape[axes.index("Y")] != header.size[0]:
        raise DataError(f"{path}: a TIFF whose axes are {axes}; save it with the axes Y, X and channels")
    channel = next((axis for axis in "SC" if axis in axes), "")
    values = values.transpose([axes.index(axis) for axis in f"YX{channel}"]).reshape(*header.size, -1)
    return turned(values, header.orientation)
