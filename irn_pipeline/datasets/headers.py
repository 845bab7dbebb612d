"""What the first bytes of a picture file tell without decoding it: its kind, size and EXIF orientation."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from irn_pipeline.datasets.lists import reading
from irn_pipeline.errors import DataError
from irn_pipeline.files.regular import open_regular
from irn_pipeline.ops.orientation import UPRIGHT, as_orientation, turned_size
from irn_pipeline.structures import MAX_PIXELS

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
_PHOTOMETRIC, _DESCRIPTION, _EXTRA_SAMPLES = 262, 270, 338
_TRANSPARENCY = (1, 2)
"""Values of a TIFF's ExtraSamples: alpha, associated or not; 0 is a further channel."""
_CONVERTED = (3, 5, 6, 8)
"""A TIFF's palettes, CMYK, YCbCr and CIELab become RGB when they are decoded."""
_KINDS = {
    b"\xff\xd8\xff": "JPEG", b"\x89PNG\r\n\x1a\n": "PNG", b"BM": "BMP", b"GIF8": "GIF",
    b"II*\0": "TIFF", b"MM\0*": "TIFF", b"II+\0": "TIFF", b"MM\0+": "TIFF",
}  # fmt: skip
_NOT_READ = {
    b"\0\0\0\x0cjP  ": "a JPEG 2000 image", b"\xff\x4f\xff\x51": "a JPEG 2000 image",
    b"\0\0\0\x0cJXL ": "a JPEG XL image", b"\xff\x0a": "a JPEG XL image",
    b"II*\0\x10\0\0\0CR": "a Canon raw file", b"8BPS": "a Photoshop file", b"%PDF": "a PDF file",
    b"\x76\x2f\x31\x01": "an OpenEXR image", b"<svg": "an SVG drawing",
}  # fmt: skip
_BRANDS = {
    "AVIF": (b"avif", b"avis"),
    "a HEIC image": (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"),
    "a Canon raw file": (b"crx ",),
}


@dataclass(frozen=True)
class Header:
    """What a picture file says of itself.

    Attributes:
        kind: Pillow's name of the format.
        size: (H, W) in pixels, as stored.
        orientation: the EXIF orientation, 1 to 8.
        bits: largest number of bits of a sample.
        samples: samples a pixel, 1 for grey; of PNG and TIFF only.
        more: whether other frames or pages follow.
        channels: samples a pixel without transparency; palettes, CMYK and the like are three.
    """

    kind: str
    size: tuple[int, int]
    orientation: int = UPRIGHT
    bits: int = 8
    samples: int = 1
    more: bool = False
    channels: int = 3

    def seen_size(self, orientation: int | None = None) -> tuple[int, int]:
        """(H, W) when turned by `orientation`, by default the header's own."""
        return turned_size(self.size, self.orientation if orientation is None else orientation)


def read_header(path: Path) -> Header:
    """Read a picture's header; DataError where it is missing, unreadable, or of no kind that can be read."""
    with reading(path), open_regular(path) as file:
        return header_of(file, path)


def header_of(file: BinaryIO, path: Path) -> Header:
    """Read the header of an open file; `path` is for messages.

    Raises:
        DataError: it is not a picture of a kind that can be read, or is of more than MAX_PIXELS.
    """
    kind = picture_kind(file.read(64), path)
    file.seek(0)
    try:
        if kind == "TIFF":
            return _tiff_header(file)
        with open_picture(file, kind) as picture:
            exif = picture.info.get("exif", b"")
            size, more, mode = (picture.height, picture.width), _has_more_frames(picture), picture.mode
        channels = 1 if mode[:1] in ("1", "L", "I", "F") else 3
        if kind != "PNG":
            bits = {"I": 16, "F": 32}.get(mode[:1], 8)
            return Header(kind, size, _exif_orientation(exif), bits, more=more, channels=channels)
        exif = _png_exif(file)
        file.seek(24)
        bits, colours = file.read(2)
        samples = 1 if colours == 0 else 3
        return Header(kind, size, _exif_orientation(exif), bits, samples, more, 1 if colours in (0, 4) else 3)
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises nearly anything for damaged files
        if kind == "AVIF" and isinstance(error, KeyError):  # a Pillow before 11.3
            raise DataError(f"{path}: holds an AVIF image, which needs Pillow 11.3; {_CONVERT}") from None
        raise DataError(f"{path}: not a readable image ({first_line(error)}); {REPLACE}") from None


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
        raise DataError(f"{path}: is a Git LFS pointer, not an image; fetch the file with 'git lfs pull'")
    if not start:
        raise DataError(f"{path}: the file is empty; {REPLACE}")
    raise DataError(f"{path}: not a {READ_KINDS} image; {REPLACE}")


def open_picture(file: BinaryIO, kind: str) -> Image.Image:
    """Open a picture of a known format with Pillow, without its warnings.

    Not warnings.catch_warnings, which undoes itself wrongly when several threads read: what is wrong with a file is
    told by this package.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")
    return Image.open(file, formats=(kind,))


def _tiff_header(file: BinaryIO) -> Header:
    warnings.filterwarnings("ignore", module=r"PIL\.")
    file.seek(0)
    start = file.read(8)
    if 43 in start[2:4]:
        start += file.read(8)
    tags = TiffImagePlugin.ImageFileDirectory_v2(start)
    file.seek(tags.next)
    tags.load(file)
    size = int(tags.get(_HEIGHT, 0)), int(tags.get(_WIDTH, 0))
    if min(size) < 1 or size[0] * size[1] > MAX_PIXELS:
        raise ValueError(f"it has {size[0]} x {size[1]} pixels; at most {MAX_PIXELS} are read")
    bits, samples = tags.get(_BITS, 1), int(tags.get(_SAMPLES, 1))
    bits = max(bits) if isinstance(bits, tuple) else int(bits)
    more, channels = bool(tags.next), samples - (_last(tags.get(_EXTRA_SAMPLES)) in _TRANSPARENCY)
    if tags.get(_PHOTOMETRIC) in _CONVERTED:
        channels = 3
    about = str(tags.get(_DESCRIPTION, ""))
    if samples == 1 and (about.startswith("ImageJ=") or "<OME" in about):
        # Microscopes store each channel as a page. tifffile is slow to import, and a file object of no name needs one.
        from tifffile import TiffFile

        file.seek(0)
        with TiffFile(file, name="picture.tif") as tiff:
            lengths = dict(zip(tiff.series[0].axes, tiff.series[0].shape, strict=True))
        channels = lengths.pop("C", 1)
        more = any(length > 1 for axis, length in lengths.items() if axis not in "YX")
    return Header("TIFF", size, as_orientation(tags.get(_ORIENTATION)), bits, samples, more, channels)


def _last(values: Any) -> Any:
    return values[-1] if isinstance(values, tuple) and values else values


def _exif_orientation(exif: bytes) -> int:
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


def first_line(error: Exception) -> str:
    """The first line of a library's error."""
    if isinstance(
        error, UnidentifiedImageError
    ):  # Pillow tells the address of an object, which is another each time
        return "its header is damaged"
    text = getattr(error, "strerror", None) or str(error)
    return (text.strip().splitlines() or [type(error).__name__])[0]


def _has_more_frames(picture: Image.Image) -> bool:
    if picture.format in ("JPEG", "MPO"):  # the further pictures of an MPO file are previews and depth maps
        return False
    try:
        return bool(getattr(picture, "is_animated", False))
    except MemoryError:
        raise
    except Exception:  # the second frame of a GIF is damaged
        return False


def _png_exif(file: BinaryIO) -> bytes:
    """The EXIF chunk, which may follow the pixels; Pillow would decode them to find it."""
    file.seek(8)
    while len(start := file.read(8)) == 8:
        length = int.from_bytes(start[:4], "big")
        if start[4:] == b"eXIf":
            return file.read(length)
        file.seek(length + 4, os.SEEK_CUR)
    return b""
