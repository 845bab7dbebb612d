"""The size of a picture as its VOC folder gives it: whether masks were drawn on pixels as stored or as shown."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

from irn_pipeline.datasets.images import read_image_size
from irn_pipeline.errors import DataError
from irn_pipeline.files.regular import regular_bytes
from irn_pipeline.ops.orientation import UPRIGHT
from irn_pipeline.structures import ImageRecord

# Not an XML reader: the file may be in any encoding, and these words are the same in nearly all.
_SIZE = re.compile(rb"<size\b[^>]*>(.*?)</size>", re.DOTALL)
_SIDES = tuple(
    re.compile(rb"<%s>\s*(\d{1,6})(?:\.0*)?\s*</%s>" % (side, side)) for side in (b"height", b"width")
)


def voc_size(voc_root: Path, record: ImageRecord) -> tuple[int, int] | None:
    """(H, W) of a picture by its XML file, else by its class mask; None where neither tells."""
    xml = _file(voc_root / "Annotations", record.image_id, ".xml")
    size = None if xml is None else _SIZE.search(_content(xml))
    height, width = (side.search(size[1]) if size else None for side in _SIDES)
    if height and width and int(height[1]) and int(width[1]):
        return int(height[1]), int(width[1])
    mask = _file(voc_root / "SegmentationClass", record.image_id, ".png")
    try:
        return None if mask is None else read_image_size(mask, UPRIGHT)
    except DataError:
        return None


def _file(folder: Path, image_id: str, suffix: str) -> Path | None:
    names = [unicodedata.normalize(form, image_id) for form in ("NFC", "NFD")]
    paths = [folder / f"{name}{end}" for name in (image_id, *names) for end in (suffix, suffix.upper())]
    return next((path for path in paths if path.is_file()), None)


def _content(path: Path) -> bytes:
    try:
        return regular_bytes(path)
    except OSError:
        return b""
