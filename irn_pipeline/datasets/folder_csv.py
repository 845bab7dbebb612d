"""A folder of pictures and a table of tags: CSV, TSV or JSON lines, one row a picture and class or class list."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from irn_pipeline.datasets.data_set import DataSet
from irn_pipeline.datasets.headers import PICTURE_SUFFIXES
from irn_pipeline.datasets.lists import some
from irn_pipeline.datasets.picture_folder import TagTable, build_set, chosen_names
from irn_pipeline.datasets.picture_scan import picture_id
from irn_pipeline.datasets.tag_cells import NO, YES, in_order, mark_of, one_spelling, without_missing
from irn_pipeline.datasets.tag_columns import (
    Columns,
    columns_of,
    columns_without_heading,
    require_class_name,
    stem_of,
    with_heading,
)
from irn_pipeline.datasets.tag_lists import Asked, listed_tags, split_texts
from irn_pipeline.datasets.tag_table import FORMS, JSON_SUFFIXES, Row, Table, read_objects, read_rows
from irn_pipeline.errors import DataError

_ZERO = ("0", "0.0")
_WHOLE = re.compile(r"-?\d+\.0")


@dataclass(frozen=True)
class TagRows:
    """What a table of tags says.

    Attributes:
        rows: (line, picture, tags) of each row.
        columns: headings of columns of 0 and 1; empty where the cells hold tags.
        notes: sentences about what was passed over, and about cells that can be read in two ways.
    """

    rows: list[tuple[int, str, list[str]]]
    columns: tuple[str, ...]
    notes: list[str]


def load_folder_csv(label_csv: Path, image_dir: Path, *, classes: Sequence[str] = ()) -> DataSet:
    """Read a table of tags and find its pictures; rows of one picture are joined.

    The class names are those of the table, sorted, numbers by value: tags, or the headings of columns of 0 and 1.
    Names that differ in case or blanks only are one class, but for those that `classes` holds.

    Args:
        label_csv: UTF-8 text with rows that `read_tags` understands.
        image_dir: folder of the pictures, with subfolders.
        classes: names to use, in the order of their class ids, also several in one text with commas between them;
            empty for all, sorted.

    Returns:
        The pictures that are there, in the table's order, and notes on what was left out.

    Raises:
        ConfigError: `classes` holds a name that the table does not know, or one twice.
        DataError: the table or the folder is missing, or the table cannot be understood (its line is named).
    """
    found = read_tags(label_csv, classes)
    warnings = [f"{label_csv}: {note}" for note in found.notes]
    by_picture: dict[str, set[str]] = {}
    repeated: set[str] = set()
    files: dict[str, str] = {}
    for line, name, labels in found.rows:
        image_id = picture_id(name, f"{label_csv}: line {line}")
        if name.lower().endswith(PICTURE_SUFFIXES):
            # Two suffixes of one picture decide nothing.
            files[image_id] = name if files.get(image_id, name) == name else image_id
        for label in labels:
            require_class_name(label, f"{label_csv}: line {line}")
        if image_id in by_picture:
            repeated.add(image_id)
        by_picture.setdefault(image_id, set()).update(labels)
    counts = Counter(found.columns) + Counter(label for labels in by_picture.values() for label in labels)
    spelling = one_spelling(counts, set(chosen_names(classes, counts)))
    names = in_order(set(spelling.values()))
    if not names:
        raise DataError(
            f"{label_csv}: names no class: none of its {len(by_picture)} pictures has a tag; {FORMS}"
        )
    joined = [f"{name!r} as {best!r}" for name, best in sorted(spelling.items()) if name != best]
    if joined:
        warnings.append(
            f"{label_csv}: class names that differ in case or blanks only were joined: {', '.join(joined[:5])}"
            f"{', ...' if len(joined) > 5 else ''}; --classes with both keeps them apart"
        )
    place_of = {name: place for place, name in enumerate(names)}
    tags = {image_id: {place_of[spelling[tag]] for tag in labels} for image_id, labels in by_picture.items()}
    if repeated:
        warnings.append(
            f"{label_csv}: images with several rows, whose tags were joined: {some(sorted(repeated))}"
        )
    return build_set(TagTable(names, tags, files), label_csv, image_dir, classes, warnings)[0]


def read_tags(path: Path, classes: Sequence[str] = ()) -> TagRows:
    """Rows of a table of tags.

    A file that ends in .jsonl or .ndjson holds one object a line: {"image": ..., "labels": [...]}, "label" with
    one name, or one key a class with 0 or 1. Any other is separated by commas, tabs or semicolons, with one
    class a cell, several in a cell, or columns of 0 and 1; the first line may be a heading, and must be for columns of
    0 and 1.

    Args:
        path: UTF-8 text; a byte order mark, Windows line ends and blank lines are fine.
        classes: names that the user asked for; they decide where a table can be read in two ways.

    Raises:
        DataError: the file is missing, empty, no UTF-8 text, or a line (which is named) is not understood.
    """
    if path.suffix.lower() in JSON_SUFFIXES:
        table: Table | None = read_objects(path)
        rows = []
    else:
        rows = read_rows(path)
        table = with_heading(rows, path)
    if table is None:
        table = Table(path, [], rows)
        columns = columns_without_heading(rows, path)
    else:
        columns = columns_of(table, frozenset(chosen_names(classes, table.names)))
    if columns.marks:
        return _marked_rows(table, columns)
    return _tagged_rows(table, columns, classes)


def _marked_rows(table: Table, columns: Columns) -> TagRows:
    names = [table.names[place] for place in columns.marks]
    rows = []
    missing = 0
    for row in table.rows:
        where = f"{table.path}: line {row.line}"
        if len(row.cells) < len(table.names) or any(row.cells[len(table.names) :]):
            raise DataError(
                f"{where}: has {len(row.cells)} cells, the heading has {len(table.names)}; "
                f"every row needs a 0 or 1 for every class"
            )
        labels = []
        for place, name in zip(columns.marks, names, strict=True):
            mark = mark_of(row[place])
            if mark not in YES | NO:
                told = row[place] if isinstance(row[place], str) else mark
                raise DataError(
                    f"{where}: {str(told)[:40]!r} in column {name[:40]!r} is neither 0 nor 1; columns of classes hold "
                    f"0 and 1 (name them with --classes if there are others), and columns of class names must be "
                    f"called 'label'"
                )
            if mark in YES:
                labels.append(name)
            missing += not mark and bool(row[place])
        rows.append((row.line, _picture_of(row, columns, table), labels))
    told = [f"cells that are missing values (NA and the like), read as 0: {missing}"] if missing else []
    return TagRows(rows, tuple(names), [*columns.notes, *told])


def _tagged_rows(table: Table, columns: Columns, classes: Sequence[str]) -> TagRows:
    notes = list(columns.notes)
    cells = [(row, _cells_of(row, columns, table)) for row in table.rows]
    sure = None if columns.certainty is None else table.column(columns.certainty)
    denied = {row.line for row, cell in zip(table.rows, sure or (), strict=False) if mark_of(cell) in _ZERO}
    if denied:
        notes.append(f"rows left out because 0 says that the tag is not in the image: {len(denied)}")
        cells = [(row, [] if row.line in denied else found) for row, found in cells]
    lists = _lists_tags(cells, columns, table)
    if not lists:
        # Lists of one may hold "cat, dog" as well as plain cells.
        cells = [
            (row, [cell[0] if isinstance(cell, list) and cell else cell for cell in found])
            for row, found in cells
        ]
    texts = {cell for _, found in cells for cell in found if isinstance(cell, str)}
    alone = {tag for _, found in cells for cell in found if isinstance(cell, list) for tag in cell}
    asked = Asked.of(classes, texts | alone)
    tags_of, told = split_texts(texts, alone, asked, lists=lists)
    rows, missing = [], Counter[str]()
    for row, found in cells:
        tags = [tag for cell in found for tag in (tags_of.get(cell, ()) if isinstance(cell, str) else cell)]
        kept = without_missing(tags, asked.names)
        missing.update(set(tags) - set(kept))
        rows.append((row.line, _picture_of(row, columns, table), kept))
    if missing:
        counted = ", ".join(f"{name!r} ({count} rows)" for name, count in sorted(missing.items()))
        notes.append(f"read as no tag: {counted}; --classes with such a name makes it a class")
    every = {tag for _, _, tags in rows for tag in tags}
    if {tag.lower() for tag in every} <= YES | NO and not every <= asked.names:
        notes.append(_doubt(rows, table))
    if every and all(_WHOLE.fullmatch(tag) for tag in every):
        # pandas writes whole numbers so where some are missing.
        rows = [(line, name, [tag.removesuffix(".0") for tag in tags]) for line, name, tags in rows]
    return TagRows(rows, (), [*notes, *told])


def _doubt(rows: Sequence[tuple[int, str, list[str]]], table: Table) -> str:
    """What to say of a table whose tags are all a yes or no."""
    for line, _, tags in rows:
        if len(set(tags)) < len(tags):
            raise DataError(
                f"{table.path}: line {line}: a list of 0 and 1 names no class; write the names of the classes, or give "
                f"each class a column ('image,cat,dog')"
            )
    found = sorted({tag for _, _, tags in rows for tag in tags})
    return (
        f"all labels are {' or '.join(map(repr, found))} and were taken as names of classes; if they say whether a "
        f"image shows something, name the column after that ('image,dog' with 0 and 1 below)"
    )


def _cells_of(row: Row, columns: Columns, table: Table) -> list[list[str] | str]:
    return [listed_tags(row[place], f"{table.path}: line {row.line}") for place in columns.labels]


def _picture_of(row: Row, columns: Columns, table: Table) -> str:
    name = row[columns.image]
    if not isinstance(name, str):
        raise DataError(f"{table.path}: line {row.line}: names no image; expected a name under 'image'")
    return name


def _lists_tags(cells: Iterable[tuple[Row, list[list[str] | str]]], columns: Columns, table: Table) -> bool:
    """Whether a row lists tags in brackets, or in cells of columns that are named alike or not at all."""
    stems: list[str] = []
    for place in columns.labels:
        name = table.names[place] if place < len(table.names) else ""
        stems.append(stem_of(name) or (stems[-1] if stems else ""))
    for _, found in cells:
        filled = Counter(stem for stem, cell in zip(stems, found, strict=False) if cell)
        if max(filled.values(), default=0) > 1 or any(
            isinstance(cell, list) and len(cell) > 1 for cell in found
        ):
            return True
    return False
