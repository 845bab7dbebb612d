"""Which way up the pictures of a data set are read, and what else their headers say that a user should know.

Photographs carry an EXIF orientation where the camera was held sideways. Viewers, browsers, OpenCV, detectron2 and CVAT
apply it, and so do we, unless the sizes in the data set's files say that its masks were drawn on the pixels as stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from irn_pipeline.datasets.headers import Header, read_header
from irn_pipeline.datasets.lists import some
from irn_pipeline.errors import DataError
from irn_pipeline.ops.orientation import UPRIGHT
from irn_pipeline.structures import ImageRecord

_READERS = 8
"""Threads: on a network drive each file is waited for."""


def orient(
    records: Iterable[ImageRecord],
    source: Path,
    warnings: list[str],
    told_size: Callable[[ImageRecord], tuple[int, int] | None] | None = None,
) -> tuple[ImageRecord, ...]:
    """Decide for every picture by which EXIF orientation it is turned when it is read; its channels and bits are noted.

    It is the one in the file, except where `told_size` gives the size of the pixels as stored and the turned picture
    has another. Sizes do not tell for square pictures, and for those turned by 180 degrees or mirrored.

    Args:
        records: the pictures; one whose header cannot be read stays as it is.
        source: what the pictures are listed in, for messages.
        warnings: a sentence is added when pictures carry a rotation, and when some hold more than one frame.
        told_size: (H, W) of a picture as the data set gives it, or None; asked for turned pictures only.
    """
    listed = tuple(records)
    with ThreadPoolExecutor(_READERS) as pool:
        found = list(pool.map(_look, (record.path for record in listed)))
    oriented: list[ImageRecord] = []
    applied: list[str] = []
    stored: list[str] = []
    by_size = 0
    for record, header in zip(listed, found, strict=True):
        orientation = None if header is None else header.orientation
        if header is not None and header.orientation != UPRIGHT:
            told = None if told_size is None else told_size(record)
            sizes_differ = header.size != header.seen_size()
            if sizes_differ and told == header.size:
                orientation = UPRIGHT
            (applied if orientation != UPRIGHT else stored).append(record.image_id)
            by_size += sizes_differ and told == header.seen_size()
        if header is not None:
            record = replace(record, channels=header.channels, bits=max(header.bits, 8))
        oriented.append(replace(record, orientation=orientation))
    several = [
        record.image_id for record, header in zip(listed, found, strict=True) if header and header.more
    ]
    if applied or stored:
        warnings.append(_told(source, applied, stored, by_size, sized=told_size is not None))
    if several:
        warnings.append(
            f"{source}: animations and files of several pages, of which the first image is used: {some(several)}"
        )
    return tuple(oriented)


def _look(path: Path) -> Header | None:
    try:
        return read_header(path)
    except DataError:  # told when the picture is read
        return None


def _told(source: Path, applied: list[str], stored: list[str], by_size: int, *, sized: bool) -> str:
    text = f"{source}: images that carry an EXIF rotation: {some([*applied, *stored])}; "
    if not sized:
        return text + "it is applied, so they are used as viewers show them"
    parts = []
    if by_size:
        parts.append(f"applied to {by_size}, as the sizes in the file say")
    if len(applied) > by_size:
        parts.append(f"applied to {len(applied) - by_size} whose sizes do not show it, as viewers do")
    if stored:
        parts.append(f"not applied to {len(stored)}, whose sizes in the file are those of the stored pixels")
    return text + ", ".join(parts)
