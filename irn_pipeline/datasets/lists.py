"""Texts, image lists and class names that people write, and the messages about them."""

from __future__ import annotations

import codecs
import unicodedata
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from irn_pipeline.errors import DataError
from irn_pipeline.files.regular import regular_bytes
from irn_pipeline.structures import IGNORE


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Raise DataError in the place of the operating system's errors."""
    try:
        yield
    except FileNotFoundError:
        raise DataError(
            f"{path}: no such file; check the folder and the spelling (upper and lower case count)"
        ) from None
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); check the path and its permissions"
        ) from None


def read_bytes(path: Path) -> bytes:
    """Content of a file; DataError where it is missing, unreadable, or no regular file."""
    with reading(path):
        return regular_bytes(path)


def read_text(path: Path) -> str:
    """Text of a file in UTF-8, or in UTF-16 with a byte order mark, as Windows writes it; line ends become LF.

    Raises:
        DataError: the file cannot be read, or is in another encoding.
    """
    data = read_bytes(path)
    utf_16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if utf_16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}: line {line}: not UTF-8 text; save the file as UTF-8") from None
    if "\0" in text:
        raise DataError(f"{path}: not UTF-8 text (it holds zero bytes); save the file as UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_lines(path: Path) -> list[str]:
    """The lines that are not blank, without blanks around them, in Unicode's composed form."""
    lines = (unicodedata.normalize("NFC", line.strip()) for line in read_text(path).splitlines())
    return [line for line in lines if line]


def listed_ids(
    entries: Sequence[str], known: Container[str], path: Path, source: str | Path, warnings: list[str]
) -> tuple[str, ...]:
    """The image ids of a list without repeats, of which `warnings` tells.

    Raises:
        DataError: the list `path` has no entry, or one that is not `known` in the data set `source`.
    """
    if not entries:
        raise DataError(f"{path}: lists no image; write one image id per line")
    image_ids = tuple(dict.fromkeys(entries))
    absent = [image_id for image_id in image_ids if image_id not in known]
    if absent:
        raise DataError(
            f"{path}: not in {source}: {some(absent)} of {len(image_ids)}; does the list belong to this data set?"
        )
    if len(image_ids) < len(entries):
        warnings.append(f"{path}: {len(entries) - len(image_ids)} repeated lines were dropped")
    return image_ids


def check_class_names(names: Sequence[str], source: str) -> None:
    """Raise DataError, naming `source`, unless there are 1 to 254 names and all differ."""
    if not names:
        raise DataError(f"{source}: names no class; write one class name per line")
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise DataError(f"{source}: the class {twice[0][:80]!r} is named twice; class names must differ")
    if len(names) >= IGNORE:
        raise DataError(f"{source}: names {len(names)} classes; 254 at most fit into an 8-bit label")


def some(image_ids: Iterable[str]) -> str:
    """How many ids, and the first three by name, for messages."""
    ids = list(image_ids)
    return f"{len(ids)} ({', '.join(ids[:3])}{', ...' if len(ids) > 3 else ''})"
