"""What a PNG announces, before a decoder reserves memory for it (PNG specification, sections 5.3 and 11.2.2)."""

from __future__ import annotations

from dataclasses import dataclass

_START = b"\x89PNG\r\n\x1a\n"
_AROUND = 12
"""Bytes of a chunk besides its content: length, kind, checksum."""


@dataclass(frozen=True)
class PngHeader:
    """Size in pixels, bits of a sample, and PNG's number of its colours (0 is grey)."""

    height: int
    width: int
    depth: int
    colour: int


def read_png_header(data: bytes) -> PngHeader:
    """The header of a PNG whose chunks are all there.

    Args:
        data: the whole file.

    Raises:
        ValueError: it is no PNG, or a chunk is longer than the file: decoders reserve that length first.
    """
    if not data.startswith(_START) or data[12:16] != b"IHDR" or len(data) < len(_START) + _AROUND + 13:
        raise ValueError("no PNG")
    place = len(_START)
    while data[place + 4 : place + 8] != b"IEND":
        place += _AROUND + int.from_bytes(data[place : place + 4], "big")
        if place >= len(data):
            raise ValueError("a PNG that is cut off")
    sides = (int.from_bytes(data[start : start + 4], "big") for start in (20, 16))
    return PngHeader(*sides, data[24], data[25])
