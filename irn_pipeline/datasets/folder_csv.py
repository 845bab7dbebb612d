"""A folder of pictures and a table of tags: CSV, TSV or JSON lines, one row a picture and class or class list."""

from __future__ import annotations

import csv
import difflib
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from irn_pipeline.datasets.headers import PICTURE_SUFFIXES
from irn_pipeline.datasets.picture_folder import TagTable, build_set
from irn_pipeline.datasets.picture_scan import has_control_character, picture_id
from irn_pipeline.datasets.voc import LoadedSet
from irn_pipeline.datasets.voc_lists import read_text, some
from irn_pipeline.errors import DataError

_IMAGE_COLUMNS = (
    "image",
    "image_id",
    "image_name",
    "image_path",
    "img",
    "filename",
    "file_name",
    "file",
    "path",
)
_LABEL_COLUMN = re.compile(
    r"(?:label|class|tag|category|labels|classes|tags|categories)[ _-]?\d*", re.IGNORECASE
)
_YES, _NO = {"1", "1.0", "true", "yes"}, {"0", "0.0", "-1", "false", "no", ""}
_DELIMITERS = (",", "\t", ";")
_FORMS = "expected 'image,label[,label...]', or 'image,CLASS,CLASS...' with 0 and 1 below"

Row = tuple[int, list[str]]
Tags = tuple[int, str, list[str]]


def load_folder_csv(label_csv: Path, image_dir: Path, *, classes: Sequence[str] = ()) -> LoadedSet:
    """Read a table of tags and find its pictures; rows of one picture are joined.

    The class names are those of the table, sorted: labels, or the headings of columns of 0 and 1.

    Args:
        label_csv: UTF-8 text with rows that `read_tags` understands.
        image_dir: folder of the pictures, with subfolders.
        classes: names to use, in the order of their class ids; empty for all, sorted.

    Returns:
        The pictures that are there and show a class, in the table's order, and notes on what was left out.

    Raises:
        ConfigError: `classes` holds a name that the table does not know, or one twice.
        DataError: the table or the folder is missing, or the table cannot be understood (its line is named).
    """
    rows, columns = read_tags(label_csv)
    by_picture: dict[str, set[str]] = {}
    repeated: set[str] = set()
    files: dict[str, str] = {}
    for line, name, labels in rows:
        image_id = picture_id(name, f"{label_csv}: line {line}")
        if name.lower().endswith(PICTURE_SUFFIXES):
            # Two suffixes of one picture decide nothing.
            files[image_id] = name if files.get(image_id, name) == name else image_id
        for label in labels:
            _require_class_name(label, f"{label_csv}: line {line}")
        if image_id in by_picture:
            repeated.add(image_id)
        by_picture.setdefault(image_id, set()).update(labels)
    names = tuple(sorted(set(columns).union(*by_picture.values())))
    if not names:
        raise DataError(f"{label_csv}: names no class; {_FORMS}")
    place_of = {name: place for place, name in enumerate(names)}
    tags = {image_id: {place_of[label] for label in labels} for image_id, labels in by_picture.items()}
    warnings = []
    if repeated:
        warnings.append(
            f"{label_csv}: pictures with several rows, whose tags were joined: {some(sorted(repeated))}"
        )
    return build_set(TagTable(names, tags, files), label_csv, image_dir, classes, warnings)[0]


def read_tags(path: Path) -> tuple[list[Tags], tuple[str, ...]]:
    """Rows of a table of tags.

    A file that ends in .jsonl or .ndjson holds one object a line: {"image": ..., "labels": [...]}, "label" with
    one name, or one key a class with 0 or 1. Any other is separated by commas, tabs or semicolons, with one
    class a cell or columns of 0 and 1; the first line may be a heading, and must be for columns of 0 and 1.

    Args:
        path: UTF-8 text; a byte order mark, Windows line ends and blank lines are fine.

    Returns:
        (line, picture, labels) of each row, and the headings of columns of 0 and 1 (else none).

    Raises:
        DataError: the file is missing, empty, no UTF-8 text, or a line (which is named) is not understood.
    """
    text = read_text(path)
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        found = _json_rows(text, path)
        if not found[0]:
            raise DataError(f'{path}: holds no row; write one {{"image": ..., "labels": [...]}} a line')
        return found
    rows = _split(text, path)
    if not rows:
        raise DataError(f"{path}: holds no row; {_FORMS}")
    heading = [cell.lower() for cell in rows[0][1]]
    image_column = next((heading.index(name) for name in _IMAGE_COLUMNS if name in heading), None)
    # A class may be called "path": a line that names a picture file is no heading.
    if image_column is None or any(cell.endswith(PICTURE_SUFFIXES) for cell in heading):
        return _rows_without_heading(rows, path), ()
    if len(rows) == 1:
        raise DataError(f"{path}: holds a heading, but no row; {_FORMS}")
    return _rows_below_heading(rows, image_column, path)


def _split(text: str, path: Path) -> list[Row]:
    """Line number and stripped cells of every row that is not blank."""
    start = "\n".join(text.split("\n", 50)[:50])
    rows = _parse(text, "\t" if path.suffix.lower() == ".tsv" else _delimiter(start), path)
    return [(line, cells) for line, cells in rows if any(cells)]


def _delimiter(start: str) -> str:
    # Rows are counted, not marks, and the mark that comes first wins: class names may hold the others.
    lines = [re.sub('"[^"]*"', "", line) for line in start.split("\n") if line.strip()] or [""]
    return max(
        _DELIMITERS,
        key=lambda mark: (
            sum(mark in line for line in lines),
            -(lines[0] + "".join(_DELIMITERS)).index(mark),
        ),
    )


def _parse(text: str, delimiter: str, path: Path) -> Iterable[Row]:
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)
    line = 1
    try:
        for cells in reader:
            yield line, [cell.strip() for cell in cells]
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}: line {line}: {error}; check the quotation marks of this row") from None


def _rows_without_heading(rows: Sequence[Row], path: Path) -> list[Tags]:
    line, first = rows[0]
    named = first[0].lower().endswith(PICTURE_SUFFIXES)
    labels = [cell for cell in first[1:] if cell]
    # A picture's name has a suffix, a folder or a number; anything else in the first line was meant as a heading.
    misspelt = not re.search(r"[./\\\d]", first[0]) or (labels and all(map(_LABEL_COLUMN.fullmatch, labels)))
    if misspelt and not named:
        near = difflib.get_close_matches(first[0].lower(), _IMAGE_COLUMNS, n=1, cutoff=0.5)
        hint = (
            f"did you mean {near[0]!r}?" if near else f"name the column of the pictures {_IMAGE_COLUMNS[0]!r}"
        )
        raise DataError(
            f"{path}: line {line}: heading {', '.join(map(repr, first[:6]))} has no column for the pictures; "
            f"{hint} ({_FORMS})"
        )
    if all(len(cells) > 2 and set(cells[1:]) <= {"0", "1"} for _, cells in rows):
        raise DataError(
            f"{path}: line {line}: columns of 0 and 1 need a heading with the class names; {_FORMS}"
        )
    if all(len(cells) == 1 for _, cells in rows):
        raise DataError(
            f"{path}: line {line}: no row has a label; {_FORMS}, separated by commas, tabs or semicolons"
        )
    return [(line, cells[0], [cell for cell in cells[1:] if cell]) for line, cells in rows]


def _rows_below_heading(
    rows: Sequence[Row], image_column: int, path: Path
) -> tuple[list[Tags], tuple[str, ...]]:
    line, heading = rows[0]
    columns = [name for place, name in enumerate(heading) if place != image_column]
    if not columns:
        raise DataError(f"{path}: line {line}: the heading has no column for labels; {_FORMS}")
    bodies = [
        (line, cells[image_column] if image_column < len(cells) else "", _without(cells, image_column))
        for line, cells in rows[1:]
    ]
    if all(not name or _LABEL_COLUMN.fullmatch(name) for name in columns):
        return [(line, name, [cell for cell in cells if cell]) for line, name, cells in bodies], ()
    _require_headings(columns, f"{path}: line {line}")
    found = []
    for line, name, cells in bodies:
        if len(cells) != len(columns):
            raise DataError(
                f"{path}: line {line}: has {len(cells) + 1} cells, the heading has {len(columns) + 1}; "
                f"every row needs a 0 or 1 for every class"
            )
        found.append((line, name, _marked(dict(zip(columns, cells, strict=True)), f"{path}: line {line}")))
    return found, tuple(columns)


def _json_rows(text: str, path: Path) -> tuple[list[Tags], tuple[str, ...]]:
    rows: list[Tags] = []
    columns: dict[str, None] = {}
    # Not splitlines(): a JSON text may hold the rarer line separators of Unicode.
    for line, content in enumerate(text.split("\n"), 1):
        if not content.strip():
            continue
        where = f"{path}: line {line}"
        try:
            entry = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: no JSON ({error}); write one whole object a line") from None
        if not isinstance(entry, dict):
            raise DataError(f'{where}: expected an object such as {{"image": "a.jpg", "labels": ["dog"]}}')
        key = next((name for name in _IMAGE_COLUMNS if name in entry), None)
        if key is None or not isinstance(entry[key], str):
            raise DataError(
                f"{where}: names no picture; expected a text under one of {', '.join(_IMAGE_COLUMNS)}"
            )
        others = {name: value for name, value in entry.items() if name != key}
        if others and all(_LABEL_COLUMN.fullmatch(name) for name in others):
            labels = [label for value in others.values() for label in _json_labels(value, where)]
        else:
            _require_headings(list(others), where)
            labels = _marked({name: _json_mark(value) for name, value in others.items()}, where)
            columns.update(dict.fromkeys(others))
        rows.append((line, entry[key].strip(), labels))
    return rows, tuple(columns)


def _json_labels(value: object, where: str) -> list[str]:
    values = value if isinstance(value, list) else [] if value is None else [value]
    for label in values:
        if isinstance(label, bool) or not isinstance(label, str | int):
            found = str(label)[:40] if isinstance(label, bool | float) else type(label).__name__
            raise DataError(f"{where}: {found!r} is no label; expected a text or a list of texts")
    return [text for text in (str(label).strip() for label in values) if text]


def _json_mark(value: object) -> str:
    if isinstance(value, list | dict):
        return type(value).__name__
    return "" if value is None else str(int(value) if isinstance(value, bool) else value)


def _marked(cells: Mapping[str, str], where: str) -> list[str]:
    """Names of the classes whose cell says yes."""
    for name, cell in cells.items():
        if cell.lower() not in _YES | _NO:
            raise DataError(
                f"{where}: {cell[:40]!r} in column {name[:40]!r} is neither 0 nor 1; "
                f"columns of classes hold 0 and 1, and columns of class names must be called 'label'"
            )
    return [name for name, cell in cells.items() if cell.lower() in _YES]


def _require_headings(columns: Sequence[str], where: str) -> None:
    counts = Counter(columns)
    for name in columns:
        if not name or counts[name] > 1:
            problem = "is there twice" if name else "has no name"
            raise DataError(f"{where}: column {name[:40]!r} {problem}; every class needs a name of its own")
        _require_class_name(name, where)


def _require_class_name(name: str, where: str) -> None:
    if has_control_character(name):
        raise DataError(
            f"{where}: class name {name[:40]!r} holds a control character; check the row's quotation marks"
        )


def _without(cells: list[str], place: int) -> list[str]:
    return cells[:place] + cells[place + 1 :]
