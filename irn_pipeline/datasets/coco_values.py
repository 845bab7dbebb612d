"""Values of a COCO file as programs write them: ids and sizes that may be texts or have a decimal point."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from irn_pipeline.errors import DataError
from irn_pipeline.structures import MAX_PIXELS

_WHOLE = re.compile(r"\s*([+-]?\d{1,40})(\.0*)?\s*", re.ASCII)


def told(value: object) -> str:
    """A value of the file for a message: short, and not looked into, however deep it is."""
    return str(value)[:40] if isinstance(value, int | float | str | None) else type(value).__name__


def whole_number(value: object) -> int | None:
    """The whole number that 1, 1.0, "1" or "1.0" stands for; None for anything else."""
    if isinstance(value, str):
        match = _WHOLE.fullmatch(value)
        return int(match[1]) if match else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if value == value and abs(value) != float("inf") and value == int(value) else None


def number_or_text(value: object) -> int | str | None:
    """An id in the form in which ids are compared: a whole number, else a text; None where it is neither."""
    number = whole_number(value)
    return value if number is None and isinstance(value, str) else number


def entries(content: dict[str, Any], key: str, path: Path) -> Iterator[dict[str, Any]]:
    """The objects of one of the file's lists.

    Raises:
        DataError: the list is missing, or one of its entries is no object.
    """
    found = content.get(key)
    if not isinstance(found, list):
        raise DataError(
            f"{path}: has no list {key!r}; expected a COCO instances file with images, annotations, categories"
        )
    for place, entry in enumerate(found):
        if not isinstance(entry, dict):
            raise DataError(f"{path}: {key}[{place}] is no object; expected one with an id")
        yield entry


def name_of(annotation: dict[str, Any], place: int) -> str:
    """An annotation for messages: by its id, or by its place in the list where it has none."""
    key = annotation.get("id")
    return f"annotations[{place}]" if key is None else f"annotation {told(key)}"


def is_crowd(annotation: dict[str, Any], path: Path, name: str) -> bool:
    """Whether an annotation stands for a group.

    Raises:
        DataError: its `iscrowd` is no number.
    """
    value = annotation.get("iscrowd")
    number = whole_number(int(value) if isinstance(value, bool) else value or 0)
    if number is None:
        raise DataError(f"{path}: {name}: iscrowd {told(value)!r} is no number; expected 0 or 1")
    return number != 0


def picture_size(image: dict[str, Any], where: str) -> tuple[int, int] | str | None:
    """(H, W) of a picture as the file says; None where it does not; where it is impossible, a sentence that says so.

    It is no error yet: only true masks need the size.
    """
    height, width = image.get("height"), image.get("width")
    if height is None and width is None:
        return None
    size = whole_number(height), whole_number(width)
    if size[0] is None or size[1] is None or min(size[0], size[1]) < 1 or size[0] * size[1] > MAX_PIXELS:
        return (
            f"{where}: height {told(height)} and width {told(width)} are impossible; "
            f"expected whole pixels, at most {MAX_PIXELS} in all"
        )
    return size[0], size[1]
