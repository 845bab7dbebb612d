"""Reading pictures and label maps from disk: one decode each, and a one-line error for every broken file.

The kind of a file is told from its first bytes, never from its name. A picture is turned as its EXIF orientation says,
as viewers, browsers and OpenCV show it, unless the caller asks for another orientation.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from irn_pipeline.datasets.headers import (
    REPLACE,
    Header,
    first_line,
    header_of,
    open_picture,
    picture_kind,
    read_header,
)
from irn_pipeline.datasets.lists import read_bytes
from irn_pipeline.datasets.tiff import read_tiff, require_enough
from irn_pipeline.errors import DataError
from irn_pipeline.ops.orientation import UPRIGHT, inverse, turned
from irn_pipeline.structures import LabelArray

_JPEG_SCAN, _JPEG_END = b"\xda", b"\xff\xd9"
_BIT_DEPTHS = (8, 10, 12, 14, 16)


def read_image(path: Path, orientation: int | None = None) -> LabelArray:
    """Decode a picture.

    JPEG goes through OpenCV; since OpenCV fills up a cut JPEG silently with grey, the end marker is looked for first.
    Grey and palette pictures become RGB, transparent pixels are laid over white (a picture without one opaque pixel is
    taken as opaque), and of several frames or pages the first is read.

    More than 8 bits become 8: values are divided by the largest value of the smallest of 8, 10, 12, 14 and 16 bits that
    holds the picture's maximum, since cameras and microscopes store 12 bits in 16. Floating-point values of at most 1
    are fractions of white. Each picture is looked at alone. Of other numbers of channels than one and three, the first
    three are shown; of two, the first is red and blue, the second green.

    Args:
        path: a JPEG, PNG, WebP, BMP, GIF, TIFF, PPM or AVIF file.
        orientation: the EXIF orientation to turn it by; None for what the file says, 1 for pixels as stored.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        DataError: the file is missing, unreadable, cut off, not a picture, or of more than MAX_PIXELS.
        MemoryError: there is not enough for its pixels.
    """
    data = read_bytes(path)
    header = header_of(io.BytesIO(data), path)
    return _oriented(_decode(data, header, path), header, orientation)


def read_values(path: Path, channels: int, orientation: int | None = None) -> npt.NDArray[Any]:
    """Decode a picture without changing its values.

    Args:
        path: as for `read_image`.
        channels: wanted. Of more in the file, the first are taken, a transparency last. Where three are wanted of one
            or two, these are repeated in turn.
        orientation: as for `read_image`.

    Returns:
        (H, W, channels) of the file's type; 8-bit RGB of palettes, CMYK and the like.

    Raises:
        DataError: as `read_image`, or there are too few channels.
    """
    data = read_bytes(path)
    header = header_of(io.BytesIO(data), path)
    most = header.samples if header.kind == "TIFF" or header.bits > 8 else header.channels
    if channels > max(most, header.channels) and channels != 3:
        raise DataError(
            f"{path}: has {header.channels} channels, {channels} are wanted; give a smaller --channels, or leave it out"
        )
    whole = channels == header.samples > header.channels
    if header.kind == "TIFF" and (header.bits > 8 or whole or header.channels not in (1, 3)):
        values = _tiff(data, header, path)
    elif header.bits > 8:
        values = _deep(data, header, path)
    else:
        values = _decode(data, header, path)[..., : header.channels]
    if values.shape[-1] != channels:
        values = values[..., np.arange(channels) % min(header.channels, values.shape[-1])]
    return _oriented(values, header, orientation)


def _oriented(values: npt.NDArray[Any], header: Header, orientation: int | None) -> npt.NDArray[Any]:
    # TIFF files are turned when they are decoded, and no others.
    done = header.orientation if header.kind == "TIFF" else UPRIGHT
    wanted = header.orientation if orientation is None else orientation
    if wanted == done:
        return values
    return np.ascontiguousarray(turned(turned(values, inverse(done)), wanted))


def read_label(path: Path) -> LabelArray:
    """Decode a label map exactly: palette indices or grey values, without any colour conversion.

    Args:
        path: a palette or grey PNG of 1 to 16 bits.

    Returns:
        (H, W) uint8 labels, as stored.

    Raises:
        DataError: the file is missing, unreadable, cut off, in colour, or holds a value above 255.
    """
    ids = read_ids(path)
    if ids.size and int(ids.max()) > 255:
        raise DataError(f"{path}: label {int(ids.max())} is above 255; labels must fit into 8 bits")
    return ids.astype(np.uint8)


def read_ids(path: Path) -> npt.NDArray[np.uint16]:
    """As `read_label`, with values of up to 16 bits.

    Returns:
        (H, W) uint16 values, as stored; what does not fit, which a PNG cannot hold, is 65535.

    Raises:
        DataError: the file is missing, unreadable, cut off, or in colour.
    """
    data = read_bytes(path)
    picture = _pillow(data, picture_kind(data[:64], path), path)
    pixels = np.asarray(picture)
    if pixels.ndim != 2:
        raise DataError(
            f"{path}: a label map must have one channel (palette or grey), this one has colours ({picture.mode}); "
            f"store class indices, for example as a palette PNG"
        )
    if picture.mode == "L" and data.startswith(b"\x89PNG"):
        # Pillow stretches grey of 2 and 4 bits to 0..255; an index must come back as it was stored.
        depth = data[24]
        pixels = pixels // (255 // (2**depth - 1))
    if pixels.dtype.itemsize > 2:
        pixels = np.where((pixels >= 0) & (pixels < 2**16), pixels, 2**16 - 1)
    return pixels.astype(np.uint16)


def read_image_size(path: Path, orientation: int | None = None) -> tuple[int, int]:
    """Size of a picture from its header, without decoding it.

    Args:
        path: a file that `read_image` accepts.
        orientation: as for `read_image`.

    Returns:
        (H, W) in pixels, of what `read_image` returns.

    Raises:
        DataError: the file is missing, unreadable or not a picture (a cut-off one is not noticed here).
    """
    return read_header(path).seen_size(orientation)


def _decode(data: bytes, header: Header, path: Path) -> LabelArray:
    """(H, W, 3) pixels as stored, but for TIFF."""
    if header.kind == "JPEG":
        if data.find(_JPEG_END, _first_scan(data)) < 0:
            raise DataError(f"{path}: the JPEG is cut off (it has no end marker); {REPLACE}")
        return np.asarray(_opencv(data, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION, path), np.uint8)
    if header.kind == "TIFF" and (header.bits > 8 or header.channels not in (1, 3)):
        return _shown(_tiff(data, header, path), header.channels)
    if header.bits > 8 and header.samples > 1:
        return _shown(_deep(data, header, path), header.channels)
    return _rgb(_pillow(data, header.kind, path), path)


def _tiff(data: bytes, header: Header, path: Path) -> npt.NDArray[Any]:
    values = read_tiff(data, header, path)
    return _deep(data, header, path) if values is None else values


def _deep(data: bytes, header: Header, path: Path) -> npt.NDArray[Any]:
    """(H, W, C) values of more than 8 bits; red, green, blue, alpha."""
    # Pillow drops the lower half of 16-bit colours, and reads no colours in floating point.
    if header.samples == 1 and header.bits <= 32:
        return np.asarray(_pillow(data, header.kind, path))[..., None]
    require_enough(data, header, path)
    # OpenCV 4 and 5 have it in different places. What is wrong with a file is told by this package.
    set_log_level = getattr(cv2, "setLogLevel", None) or cv2.utils.logging.setLogLevel
    level = set_log_level(0)
    try:
        pixels = _opencv(data, cv2.IMREAD_UNCHANGED, path)
    finally:
        set_log_level(level)
    return pixels[..., None] if pixels.ndim == 2 else pixels[..., [2, 1, 0, 3][: pixels.shape[-1]]]


def _first_scan(data: bytes) -> int:
    """Offset of a JPEG's pixels: a preview in the segments before them has an end marker too."""
    place = 2
    while data[place : place + 1] == b"\xff" and data[place + 1 : place + 2] != _JPEG_SCAN:
        filled = data[place + 1 : place + 2] == b"\xff"
        place += 1 if filled else 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return place


def _opencv(data: bytes, flags: int, path: Path) -> npt.NDArray[Any]:
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise DataError(f"{path}: the image cannot be decoded ({first_line(error)}); {REPLACE}") from None
    if pixels is None:
        raise DataError(f"{path}: the image cannot be decoded; {REPLACE}")
    return pixels


def _shown(values: npt.NDArray[Any], channels: int) -> LabelArray:
    """(H, W, C) values of any type, of which a further one is transparency -> RGB of 8 bits."""
    colours = _eight_bits(values[..., np.arange(3) % channels])
    if values.shape[-1] <= channels:
        return colours
    full = np.iinfo(values.dtype).max if values.dtype.kind in "iu" else 1
    alpha = (values[..., -1:].clip(0, full) * (255.0 / full)).round().astype(np.uint8)
    return _over_white(colours, alpha)


def _rgb(picture: Image.Image, path: Path) -> LabelArray:
    if picture.mode.startswith("I") or picture.mode == "F":
        return _grey(_eight_bits(np.asarray(picture)))
    try:
        if picture.mode not in ("RGBA", "LA", "PA", "RGBa") and "transparency" not in picture.info:
            return np.array(picture.convert("RGB"))
        pixels = np.array(picture.convert("RGBA"))
    except ValueError as error:
        raise DataError(f"{path}: its colours cannot be read ({first_line(error)}); save it as RGB") from None
    return _over_white(pixels[..., :3], pixels[..., 3:])


def _grey(values: LabelArray) -> LabelArray:
    return np.repeat(values[..., None], 3, axis=2)


def _over_white(colours: LabelArray, alpha: LabelArray) -> LabelArray:
    """Colours (H, W, 3) over white, as opaque as alpha (H, W, 1) says."""
    if not alpha.any():  # some programs leave the alpha of BMP files unset
        return np.ascontiguousarray(colours)
    opaque = alpha.astype(np.uint16)
    return ((colours * opaque + 255 * (255 - opaque) + 127) // 255).astype(np.uint8)


def _eight_bits(values: npt.NDArray[Any]) -> LabelArray:
    """Values of any type to 0..255, as `read_image` says."""
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values)
    if values.dtype.kind == "f":
        values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    highest = float(values.max(initial=0))
    white = next((2**bits - 1 for bits in _BIT_DEPTHS if highest <= 2**bits - 1), highest)
    if values.dtype.kind == "f" and highest <= 1:
        white = 1
    if values.dtype == np.uint16:  # a table instead of a copy in floating point
        table = (np.arange(2**16) * (255 / white)).round().clip(0, 255).astype(np.uint8)
        return table[values]
    return (values.clip(0, white) * (255 / white)).round().astype(np.uint8)


def _pillow(data: bytes, kind: str, path: Path) -> Image.Image:
    try:
        picture = open_picture(io.BytesIO(data), kind)
        picture.load()
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises nearly anything for damaged files
        raise DataError(f"{path}: the image is cut off or damaged ({first_line(error)}); {REPLACE}") from None
    return picture
