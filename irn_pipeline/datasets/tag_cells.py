"""What single cells of a table of tags are: missing values, numbers, a yes or no, spellings of one name."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence

MISSING = frozenset({"na", "n/a", "#n/a", "#na", "<na>", "nan", "-nan", "null", "none"})
"""How pandas, R, Excel and databases write a missing value, in lower case."""
_NO_TAG = MISSING | {"-", "--", "?"}
"""The same in a column of tags, and what people put there for nothing."""
NUMBER = re.compile(r"[+-]?\d+(?:\.\d*)?")
YES, NO = frozenset({"1", "1.0", "true", "yes"}), frozenset({"0", "0.0", "-1", "-1.0", "false", "no", ""})


def mark_of(value: object) -> str:
    """A cell of a column of 0 and 1 as text; what cannot be one is told by its kind."""
    if isinstance(value, list | dict):
        return type(value).__name__
    text = str(int(value) if isinstance(value, bool) else value).lower()
    return "" if value is None or text in MISSING else text


def is_filled(cell: object) -> bool:
    """Whether a cell holds anything."""
    return cell is not None and cell != ""


def holds_marks(cells: Iterable[object]) -> bool:
    """Whether all cells are a yes or no, or empty."""
    return all(mark_of(cell) in YES or mark_of(cell) in NO for cell in cells)


def are_numbers(cells: Iterable[object]) -> bool:
    """Whether there are cells, and all that are not empty hold numbers."""
    some = False
    for text in filter(None, map(mark_of, cells)):
        if not NUMBER.fullmatch(text):
            return False
        some = True
    return some


def is_running(cells: Sequence[object]) -> bool:
    """Whether cells are 0, 1, 2 ... or 1, 2, 3 ..."""
    texts = (str(cell).removesuffix(".0") for cell in cells)
    first = next(texts, "")
    return first in ("0", "1") and all(
        text == str(number) for number, text in enumerate(texts, int(first) + 1)
    )


def without_missing(tags: Iterable[str], classes: Collection[str]) -> list[str]:
    """The tags that are no missing values; a class that the user asked for is none."""
    return [tag for tag in tags if tag in classes or tag.lower() not in _NO_TAG]


def name_key(name: str) -> str:
    """Equal for names that differ in case, blanks or Unicode's form only."""
    return " ".join(unicodedata.normalize("NFC", name).casefold().split())


def one_spelling(counts: Mapping[str, int], classes: Collection[str]) -> dict[str, str]:
    """The spelling that stands for each name: the commonest of those that `name_key` takes for one.

    Args:
        counts: name -> how often it is used.
        classes: the names that the user asked for: one of a group stands for it, several keep the group apart.
    """
    groups: dict[str, list[str]] = {}
    for name in counts:
        groups.setdefault(name_key(name), []).append(name)
    chosen: dict[str, str] = {}
    for names in groups.values():
        asked = [name for name in names if name in classes]
        best = (
            asked[0]
            if asked
            else min(names, key=lambda name: (-counts[name], not _composed(name), name.swapcase()))
        )
        chosen.update({name: name if len(asked) > 1 else best for name in names})
    return chosen


def _composed(name: str) -> bool:
    return unicodedata.is_normalized("NFC", name)


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Names sorted: numbers first, by value, then texts."""
    return tuple(
        sorted(names, key=lambda name: (0, float(name), name) if NUMBER.fullmatch(name) else (1, 0.0, name))
    )
