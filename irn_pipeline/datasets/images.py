"""Reading pictures and label maps from disk: one decode each, and a one-line error for every broken file.

The kind of a file is told from its first bytes, never from its name. Pixels keep the layout in which they are
stored: an EXIF rotation is not applied, because masks drawn for a picture (VOC's among them) are not rotated.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
from PIL import Image

from irn_pipeline.errors import DataError
from irn_pipeline.foreign.files import open_regular, regular_bytes
from irn_pipeline.structures import MAX_PIXELS, LabelArray

_JPEG_START = b"\xff\xd8\xff"
_JPEG_END = b"\xff\xd9"
_SCAN_MARKER = 0xDA
_FRAME_MARKERS = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
_REPLACE = "copy the file again from its source, or remove it from the data set"


def read_image(path: Path) -> LabelArray:
    """Decode a picture.

    JPEG goes through OpenCV (half the time of Pillow); since OpenCV fills up a cut JPEG silently with grey,
    the end marker is looked for first. Grey and palette pictures become RGB, 16 bits are scaled to 8, alpha
    is dropped.

    Args:
        path: a JPEG, PNG, WebP or BMP file.

    Returns:
        (H, W, 3) uint8 RGB, as stored (no EXIF rotation).

    Raises:
        DataError: the file is missing, unreadable, cut off, not a picture, or of more than MAX_PIXELS.
        MemoryError: there is not enough for its pixels.
    """
    data = _read_bytes(path)
    if data.startswith(_JPEG_START):
        return _decode_jpeg(data, path)
    with _open(data, path) as picture:
        pixels = _load(picture, path)
        if picture.mode.startswith("I"):
            grey = np.asarray(pixels).astype(np.int64)
            return np.repeat(((grey + 128) // 257).clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)
        return np.array(pixels.convert("RGB"))


def read_label(path: Path) -> LabelArray:
    """Decode a label map exactly: palette indices or grey values, without any colour conversion.

    Args:
        path: a palette or grey PNG of 1 to 16 bits.

    Returns:
        (H, W) uint8 labels.

    Raises:
        DataError: the file is missing, unreadable, cut off, in colour, or holds a value above 255.
    """
    data = _read_bytes(path)
    with _open(data, path) as picture:
        pixels = np.asarray(_load(picture, path))
        mode = picture.mode
    if pixels.ndim != 2:
        raise DataError(
            f"{path}: a label map must have one channel (palette or grey), this one has colours ({mode}); "
            f"store class indices, for example as a palette PNG"
        )
    if mode == "L" and data.startswith(b"\x89PNG"):
        # Pillow stretches grey of 2 and 4 bits to 0..255; an index must come back as it was stored.
        depth = data[24]
        return np.array(pixels // (255 // (2**depth - 1)), np.uint8)
    if mode.startswith("I") and pixels.size and int(pixels.max()) > 255:
        raise DataError(f"{path}: label {int(pixels.max())} is above 255; labels must fit into 8 bits")
    return np.array(pixels, np.uint8)


def read_image_size(path: Path) -> tuple[int, int]:
    """Size of a picture from its header, without decoding it.

    Args:
        path: a file that `read_image` or `read_label` accepts.

    Returns:
        (H, W) in pixels, as stored.

    Raises:
        DataError: the file is missing, unreadable or not a picture (a cut-off one is not noticed here).
    """
    try:
        with open_regular(path) as file, _guarded_open(file) as picture:
            return picture.height, picture.width
    except FileNotFoundError:
        raise _missing(path) from None
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises nearly anything for damaged files
        raise DataError(f"{path}: not a readable picture ({_first_line(error)}); {_REPLACE}") from None


def _read_bytes(path: Path) -> bytes:
    try:
        data = regular_bytes(path)
    except FileNotFoundError:
        raise _missing(path) from None
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); check the path and its permissions"
        ) from None
    if not data:
        raise DataError(f"{path}: the file is empty; {_REPLACE}")
    return data


def _decode_jpeg(data: bytes, path: Path) -> LabelArray:
    scan, pixel_count = _first_scan(data)
    if pixel_count > MAX_PIXELS:
        raise DataError(f"{path}: the JPEG has {pixel_count} pixels, above {MAX_PIXELS}; make it smaller")
    if data.find(_JPEG_END, scan) < 0:
        raise DataError(f"{path}: the JPEG is cut off (it has no end marker); {_REPLACE}")
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise DataError(f"{path}: the JPEG cannot be decoded ({_first_line(error)}); {_REPLACE}") from None
    if pixels is None:
        raise DataError(f"{path}: the JPEG cannot be decoded; {_REPLACE}")
    return np.asarray(pixels, np.uint8)


def _first_scan(data: bytes) -> tuple[int, int]:
    """Offset of the first scan, or the end of the data; a preview in the header has an end marker too.

    Also the number of pixels that the header announces.
    """
    position, pixel_count = 2, 0
    while position + 4 <= len(data) and data[position] == 0xFF:
        if data[position + 1] == _SCAN_MARKER:
            return position, pixel_count
        if data[position + 1] == 0xFF:
            position += 1
            continue
        if data[position + 1] in _FRAME_MARKERS:
            sides = data[position + 5 : position + 7], data[position + 7 : position + 9]
            pixel_count = int.from_bytes(sides[0], "big") * int.from_bytes(sides[1], "big")
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return len(data), pixel_count


def _guarded_open(file: BinaryIO) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(file, formats=_FORMATS)


def _open(data: bytes, path: Path) -> Image.Image:
    try:
        return _guarded_open(io.BytesIO(data))
    except Image.UnidentifiedImageError:
        raise DataError(f"{path}: not a JPEG, PNG, WebP or BMP picture; {_REPLACE}") from None
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises nearly anything for damaged files
        raise DataError(f"{path}: not a readable picture ({_first_line(error)}); {_REPLACE}") from None


def _load(picture: Image.Image, path: Path) -> Image.Image:
    try:
        picture.load()
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises nearly anything for damaged files
        raise DataError(
            f"{path}: the picture is cut off or damaged ({_first_line(error)}); {_REPLACE}"
        ) from None
    return picture


def _missing(path: Path) -> DataError:
    return DataError(f"{path}: no such file; check the folder and the spelling (upper and lower case count)")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
