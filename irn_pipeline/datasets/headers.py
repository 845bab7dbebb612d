"""What the first bytes of a picture file tell without decoding it: its kind, size and EXIF orientation."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image, TiffImagePlugin

from irn_pipeline.errors import DataError
from irn_pipeline.files.regular import open_regular
from irn_pipeline.ops.orientation import UPRIGHT, as_orientation, turned_size

PICTURE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".heic", ".heif"),
)
"""Suffixes of pictures. What a file holds decides whether it can be read: a JPEG named .heic can."""
REPLACE = "copy the file again from its source, or remove it from the data set"
READ_KINDS = "JPEG, PNG, WebP, BMP, GIF, TIFF, PPM or AVIF"
_CONVERT = "convert it to JPEG or PNG"
_ORIENTATION = 0x0112
_WIDTH, _HEIGHT, _BITS, _SAMPLES = 256, 257, 258, 277
_SCAN_MARKER, _EXIF_MARKER = 0xDA, 0xE1
_FRAME_MARKERS = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_FIRST_READ = 1 << 16
_KINDS = {
    b"\xff\xd8\xff": "JPEG", b"\x89PNG\r\n\x1a\n": "PNG", b"BM": "BMP", b"GIF8": "GIF",
    b"II*\0": "TIFF", b"MM\0*": "TIFF", b"II+\0": "TIFF", b"MM\0+": "TIFF",
}  # fmt: skip
_NOT_READ = {
    b"\0\0\0\x0cjP  ": "a JPEG 2000 picture", b"\xff\x4f\xff\x51": "a JPEG 2000 picture",
    b"\0\0\0\x0cJXL ": "a JPEG XL picture", b"\xff\x0a": "a JPEG XL picture",
    b"II*\0\x10\0\0\0CR": "a Canon raw file", b"8BPS": "a Photoshop file", b"%PDF": "a PDF file",
    b"\x76\x2f\x31\x01": "an OpenEXR picture", b"<svg": "an SVG drawing",
}  # fmt: skip
_BRANDS = {
    "AVIF": (b"avif", b"avis"),
    "a HEIC picture": (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"),
    "a Canon raw file": (b"crx ",),
}


@dataclass(frozen=True)
class Header:
    """What a picture file says of itself.

    Attributes:
        kind: Pillow's name of the format.
        size: (H, W) in pixels, as stored.
        orientation: the EXIF orientation, 1 to 8.
        bits: largest number of bits of a sample; of PNG and TIFF only.
        samples: samples a pixel, 1 for grey; of PNG and TIFF only.
    """

    kind: str
    size: tuple[int, int]
    orientation: int = UPRIGHT
    bits: int = 8
    samples: int = 1

    def seen_size(self, orientation: int | None = None) -> tuple[int, int]:
        """(H, W) when turned by `orientation`, by default the header's own."""
        return turned_size(self.size, self.orientation if orientation is None else orientation)


@dataclass(frozen=True)
class JpegStart:
    """A JPEG up to its first scan.

    Attributes:
        scan: offset of the first scan; the length of the data where there is none.
        size: (H, W) of the frame; (0, 0) where there is none.
        exif: the first EXIF segment.
    """

    scan: int
    size: tuple[int, int] = (0, 0)
    exif: bytes = b""


def read_header(path: Path) -> Header:
    """Read a picture's header.

    Raises:
        DataError: the file is missing, unreadable, or not a picture of a kind that can be read.
    """
    try:
        with open_regular(path) as file:
            return header_of(file, path)
    except FileNotFoundError:
        raise missing(path) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({first_line(error)}); {REPLACE}") from None


def header_of(file: BinaryIO, path: Path) -> Header:
    """Read the header of an open file; `path` is for messages.

    Raises:
        DataError: it is not a picture of a kind that can be read.
    """
    kind = picture_kind(file.read(64), path)
    file.seek(0)
    try:
        if kind == "JPEG":
            return _jpeg_header(file)
        if kind == "TIFF":
            return _tiff_header(file)
        with open_picture(file, kind) as picture:
            exif = picture.info.get("exif", b"")
            size, bits = (picture.height, picture.width), 8
        samples = 1
        if kind == "PNG":
            exif = _png_exif(file)
            file.seek(24)
            bits, colours = file.read(2)
            samples = 1 if colours == 0 else 3
        return Header(kind, size, exif_orientation(exif), bits, samples)
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises nearly anything for damaged files
        if kind == "AVIF" and isinstance(error, KeyError):  # a Pillow before 11.3
            raise DataError(f"{path}: holds an AVIF picture, which needs Pillow 11.3; {_CONVERT}") from None
        raise DataError(f"{path}: not a readable picture ({first_line(error)}); {REPLACE}") from None


def picture_kind(start: bytes, path: Path) -> str:
    """Pillow's name of a file's format.

    Args:
        start: its first 64 bytes.
        path: for messages.

    Raises:
        DataError: it is of no format that is read; known ones are named.
    """
    kind = ""
    known = next((name for mark, name in _NOT_READ.items() if start.startswith(mark)), "")
    if start[4:8] == b"ftyp":
        brands = {start[8:12], *(start[at : at + 4] for at in range(16, min(start[3], len(start)), 4))}
        known = next((name for name, marks in _BRANDS.items() if brands & set(marks)), "a video")
        kind = known if known == "AVIF" else ""
    elif not known:
        kind = next((name for mark, name in _KINDS.items() if start.startswith(mark)), "")
        if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
            kind = "WEBP"
        elif start[:1] == b"P" and start[1:2] in b"123456" and start[2:3].isspace():
            kind = "PPM"
    if kind:
        return kind
    if known:
        raise DataError(f"{path}: holds {known}, which cannot be read; {_CONVERT}")
    if start.startswith(b"version https://git-lfs"):
        raise DataError(f"{path}: is a Git LFS pointer and no picture; fetch the file with 'git lfs pull'")
    if not start:
        raise DataError(f"{path}: the file is empty; {REPLACE}")
    raise DataError(f"{path}: not a {READ_KINDS} picture; {REPLACE}")


def has_more_frames(path: Path) -> bool:
    """Whether a picture is followed by others: an animation, or pages. False where it cannot be read."""
    try:
        with open_regular(path) as file:
            kind = picture_kind(file.read(64), path)
            file.seek(0)
            if kind == "JPEG":  # the further pictures of an MPO file are previews and depth maps
                return False
            if kind == "TIFF":
                return bool(tiff_directory(file).next)
            with open_picture(file, kind) as picture:
                picture.seek(1)
        return True
    except MemoryError:
        raise
    except Exception:  # EOFError where there are none; Pillow raises nearly anything for damaged files
        return False


def open_picture(file: BinaryIO, kind: str) -> Image.Image:
    """Open a picture of a known format with Pillow, without its warnings.

    Not warnings.catch_warnings, which undoes itself wrongly when several threads read: what is wrong with a file is
    told by this package.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")
    return Image.open(file, formats=(kind,))


def tiff_directory(file: BinaryIO) -> Any:
    """Tags of a TIFF file's first page."""
    warnings.filterwarnings("ignore", module=r"PIL\.")
    file.seek(0)
    start = file.read(8)
    if 43 in start[2:4]:
        start += file.read(8)
    directory = TiffImagePlugin.ImageFileDirectory_v2(start)
    file.seek(directory.next)
    directory.load(file)
    return directory


def jpeg_start(data: bytes) -> JpegStart:
    """Walk over the segments of a JPEG; a preview in its header has a frame and an end marker too."""
    position, size, exif = 2, (0, 0), b""
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == _SCAN_MARKER:
            return JpegStart(position, size, exif)
        if marker == 0xFF:
            position += 1
            continue
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        if marker in _FRAME_MARKERS:
            height, width = data[position + 5 : position + 7], data[position + 7 : position + 9]
            size = int.from_bytes(height, "big"), int.from_bytes(width, "big")
        elif marker == _EXIF_MARKER and not exif and data[position + 4 : position + 10] == b"Exif\0\0":
            exif = data[position + 4 : end]
        position = end
    return JpegStart(len(data), size, exif)


def exif_orientation(exif: bytes) -> int:
    """Orientation of an EXIF block; 1 where it has none or is damaged."""
    if not exif:
        return UPRIGHT
    warnings.filterwarnings("ignore", module=r"PIL\.")
    try:
        tags = Image.Exif()
        tags.load(exif)
        return as_orientation(tags.get(_ORIENTATION))
    except MemoryError:
        raise
    except Exception:  # Pillow raises nearly anything for damaged files
        return UPRIGHT


def missing(path: Path) -> DataError:
    """The error of a file that is not there."""
    return DataError(f"{path}: no such file; check the folder and the spelling (upper and lower case count)")


def first_line(error: Exception) -> str:
    """The first line of a library's error."""
    text = getattr(error, "strerror", None) or str(error)
    return (text.strip().splitlines() or [type(error).__name__])[0]


def _jpeg_header(file: BinaryIO) -> Header:
    data = file.read(_FIRST_READ)
    start = jpeg_start(data)
    if start.scan == len(data):
        data += file.read()
        start = jpeg_start(data)
    if 0 in start.size:
        raise ValueError("it has no size")
    return Header("JPEG", start.size, exif_orientation(start.exif))


def _tiff_header(file: BinaryIO) -> Header:
    tags = tiff_directory(file)
    size = int(tags.get(_HEIGHT, 0)), int(tags.get(_WIDTH, 0))
    if min(size) < 1:
        raise ValueError("it has no size")
    bits, samples = tags.get(_BITS, 1), int(tags.get(_SAMPLES, 1))
    orientation = as_orientation(tags.get(_ORIENTATION))
    return Header("TIFF", size, orientation, max(bits) if isinstance(bits, tuple) else int(bits), samples)


def _png_exif(file: BinaryIO) -> bytes:
    """The EXIF chunk, which may follow the pixels; Pillow would decode them to find it."""
    file.seek(8)
    while len(start := file.read(8)) == 8:
        length = int.from_bytes(start[:4], "big")
        if start[4:] == b"eXIf":
            return file.read(length)
        file.seek(length + 4, os.SEEK_CUR)
    return b""
