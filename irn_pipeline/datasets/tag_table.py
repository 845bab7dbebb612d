"""Tables of tags as they stand in the file: CSV, TSV or JSON lines, cut into a heading and cells."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from pathlib import Path

from irn_pipeline.datasets.lists import read_text
from irn_pipeline.errors import DataError

FORMS = "expected 'image,label[,label...]', or 'image,CLASS,CLASS...' with 0 and 1 below"
JSON_SUFFIXES = (".jsonl", ".ndjson")
_DELIMITERS = (",", "\t", ";")
_SEPARATOR_LINE = re.compile(r"""\s*"?sep=(\\t|\t|[^\w\s"'])"?[ \t,;]*(?:\n|$)""", re.IGNORECASE)


@dataclass(frozen=True)
class Row:
    """A row: its first line in the file, from 1, and its cells.

    Cells are stripped texts; in JSON lines, values of any kind, and None where the object lacks a key.
    """

    line: int
    cells: list[object]

    def __getitem__(self, place: int) -> object:
        """The cell at a place; an empty text beyond the end."""
        return self.cells[place] if place < len(self.cells) else ""


@dataclass(frozen=True)
class Table:
    """A heading and rows, which may have more or fewer cells than it; `line` is the heading's.

    A column without heading has an empty text in `names`; `path` is the file, for messages.
    """

    path: Path
    names: list[str]
    rows: list[Row]
    line: int = 1

    def column(self, place: int) -> Sequence[object]:
        """The cells of a column; an empty text where a row ends before it."""
        return self._columns[place] if place < len(self._columns) else [""] * len(self.rows)

    @cached_property
    def _columns(self) -> list[tuple[object, ...]]:
        return list(zip_longest(*(row.cells for row in self.rows), fillvalue=""))


def read_rows(path: Path) -> list[Row]:
    """Rows of a CSV or TSV file, with its heading if it has one.

    The separator is a tab in a .tsv file, the one that Excel's first line `sep=;` names, or the mark (comma, tab,
    semicolon) that most lines hold.

    Raises:
        DataError: the file is missing, empty or no UTF-8 text, or its quotation marks do not match (the line is named).
    """
    text = read_text(path)
    if text.lstrip()[:1] in ("{", "[") and path.suffix.lower() == ".json":
        raise DataError(
            f"{path}: holds JSON; a COCO file is given with --coco-json, and a table has one object a line "
            f'({{"image": "a.jpg", "labels": ["dog"]}}) and a name that ends in .jsonl'
        )
    named = _SEPARATOR_LINE.match(text)
    if named:
        text = "\n" * named[0].count("\n") + text[named.end() :]
    delimiter = "\t" if path.suffix.lower() == ".tsv" else _delimiter(text)
    if named:
        delimiter = named[1].replace("\\t", "\t")
    rows = [
        Row(line, list(_rejoined(cells, delimiter)))
        for line, cells in _parse(text, delimiter, path)
        if any(cells)
    ]
    if not rows:
        raise DataError(f"{path}: holds no row; {FORMS}")
    return rows


def read_objects(path: Path) -> Table:
    """The table that JSON lines make: one object a line, one column for every key.

    Raises:
        DataError: the file is missing, empty or no UTF-8 text, or a line is not a JSON object (the line is named).
    """
    found: list[tuple[int, dict[str, object]]] = []
    # Not splitlines(): a JSON text may hold the rarer line separators of Unicode.
    for line, content in enumerate(read_text(path).split("\n"), 1):
        if not content.strip():
            continue
        where = f"{path}: line {line}"
        try:
            entry = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: not JSON ({error}); write one object per line") from None
        if not isinstance(entry, dict):
            raise DataError(f'{where}: expected an object such as {{"image": "a.jpg", "labels": ["dog"]}}')
        found.append((line, entry))
    if not found:
        raise DataError(f'{path}: holds no row; write one {{"image": ..., "labels": [...]}} per line')
    names = list(dict.fromkeys(name for _, entry in found for name in entry))
    rows = [Row(line, [_stripped(entry.get(name)) for name in names]) for line, entry in found]
    return Table(path, [name.strip() for name in names], rows, found[0][0])


def _stripped(value: object) -> object:
    return value.strip() if isinstance(value, str) else value


def _delimiter(text: str) -> str:
    # Rows are counted, not marks, and the mark that comes first wins: class names may hold the others.
    start = text.strip().split("\n", 50)[:50]
    lines = [re.sub('"[^"]*"', "", line) for line in start if line.strip()] or [""]
    return max(
        _DELIMITERS,
        key=lambda mark: (
            sum(mark in line for line in lines),
            -(lines[0] + "".join(_DELIMITERS)).index(mark),
        ),
    )


def _parse(text: str, delimiter: str, path: Path) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True, skipinitialspace=True)
    line = 1
    try:
        for cells in reader:
            yield line, [cell.strip() for cell in cells]
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}: line {line}: {error}; check the quotation marks of this row") from None


def _rejoined(cells: Sequence[str], delimiter: str) -> Iterator[str]:
    """The cells, those of a list that was written without quotation marks (a.jpg,['cat', 'dog']) put together."""
    waiting = ""
    for place, cell in enumerate(cells):
        waiting = f"{waiting}{delimiter} {cell}" if waiting else cell
        is_open = waiting[:1] in ("[", "{") and any(
            waiting.count(left) > waiting.count(right) for left, right in ("[]", "{}")
        )
        if not is_open or place == len(cells) - 1:
            yield waiting
            waiting = ""
