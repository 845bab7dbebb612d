"""What the columns of a table of tags hold: the picture, tags, a class's 0 and 1, or nothing that is a tag."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from irn_pipeline.datasets.headers import PICTURE_SUFFIXES
from irn_pipeline.datasets.picture_scan import has_control_character
from irn_pipeline.datasets.tag_cells import are_numbers, holds_marks, is_filled, is_running
from irn_pipeline.datasets.tag_table import FORMS, Row, Table
from irn_pipeline.errors import DataError

_IMAGE_NAMES = (
    *("image", "image_id", "image_name", "image_path", "img", "filename", "file_name", "file", "path"),
    *("fname", "filepath", "image_file", "image_filename", "img_name", "img_path", "img_id"),
)
_IMAGE_KEYS = tuple(name.replace("_", "") for name in _IMAGE_NAMES)
_SPARE_IMAGE_KEYS = ("id", "name")
_LABEL_KEY = re.compile(r"(?:label|class|tag|category)(?:name|id)?s?\d*|(?:class|categori)es\d*")
_SPARE_LABEL_KEY = re.compile(r"(?:choice|target|annotation|keyword|attributeid)s?\d*")
_UNNAMED = re.compile(r"unnamed: ?\d+(?:\.\d+)*|\.\.\.\d+", re.IGNORECASE)
_PARTS_KEY = re.compile(
    r"(?:is|in)(?:valid|val|train|test)(?:ation|ing)?|(?:data)?split|k?fold|subset|partition|usage"
)
_CERTAINTY_KEY = re.compile(r"conf(?:idence)?|score|prob(?:ability)?")
_OTHER_KEY = re.compile(
    r"u?u?id|ind?e?x|row(?:id|names?|number)?|(?:image|img)?(?:width|height|size|index|url)|channels|filesize|"
    r"[xy](?:min|max)|bbox|area|iscrowd|source|annotat(?:or|orid|ionid)|(?:cre|upd)atedat|leadtime|timestamp|"
    r"md5|sha1|sha256|hash|license|latitude|longitude"
)
_PART_NAMES = frozenset({"train", "training", "val", "valid", "validation", "test", "dev"})


@dataclass(frozen=True)
class Columns:
    """The places of a table's columns by what they hold.

    Attributes:
        image: paths of the pictures.
        labels: tags in the cells.
        marks: 0 and 1, for the class that the heading names; only where there are no `labels`.
        certainty: how sure a row's tags are; 0 is none.
        notes: sentences about what was passed over or is doubtful.
    """

    image: int
    labels: tuple[int, ...] = ()
    marks: tuple[int, ...] = ()
    certainty: int | None = None
    notes: tuple[str, ...] = ()


def key_of(name: str) -> str:
    """A heading without case, blanks and marks: `LabelName`, `label name` and `label_name` are one."""
    return re.sub(r"[\W_]", "", name.lower())


def stem_of(name: str) -> str:
    """What `label`, `labels`, `Label_1` and `label 2` have in common; nothing for columns without a name."""
    return "" if _is_unnamed(name) else re.sub(r"\d+$", "", key_of(name)).removesuffix("s")


def with_heading(rows: Sequence[Row], path: Path) -> Table | None:
    """The table below the first row; None where that row is no heading.

    Raises:
        DataError: the first row is a heading, but no column is named as that of the pictures.
    """
    first = [str(cell) for cell in rows[0].cells]
    # A class may be called "path": a line that names a picture file is no heading.
    if any(map(_is_picture, first)):
        return None
    table = Table(path, first, [row for row in rows[1:] if row.cells != rows[0].cells], rows[0].line)
    if not table.rows and _image_column(table) is not None:
        raise DataError(f"{path}: holds a heading, but no row; {FORMS}")
    image = _image_column(table)
    if image is not None:
        # R's write.table gives the column of row names no heading.
        shifted = all(len(row.cells) == len(first) + 1 and _is_picture(row[image + 1]) for row in table.rows)
        return replace(table, names=["", *first]) if shifted else table
    # A picture's name has a suffix, a folder or a number; anything else in the first line was meant as a heading.
    labels = [cell for cell in first[1:] if cell]
    if re.search(r"[./\\\d]", first[0]) and not (labels and all(map(_is_label, labels))):
        return None
    near = difflib.get_close_matches(first[0].lower(), _IMAGE_NAMES, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"name the column of the images {_IMAGE_NAMES[0]!r}"
    raise DataError(
        f"{path}: line {rows[0].line}: heading {', '.join(map(repr, first[:6]))} has no column for the images; "
        f"{hint} ({FORMS})"
    )


def columns_of(table: Table, classes: frozenset[str]) -> Columns:
    """Tell what each column of a table with a heading holds, by the headings and by the cells.

    Args:
        table: has at least one row.
        classes: columns of 0 and 1 that the user asked for by name, if any.

    Raises:
        DataError: no column can hold tags, or it is not clear which.
    """
    image = _image_column(table)
    if image is None:
        raise DataError(f"{table.path}: line {table.line}: names no image; expected a name under "
                        f"one of {', '.join(_IMAGE_NAMES[:9])}")  # fmt: skip
    where = f"{table.path}: line {table.line}"
    others = [place for place in range(len(table.names)) if place != image]
    if not others:
        raise DataError(f"{where}: the heading has no column for labels; {FORMS}")
    named = [place for place in others if not _is_unnamed(table.names[place])]
    marked = {place for place in others if holds_marks(table.column(place))}
    free = [
        place for place in named if not _is_metadata(table, place, marked) or table.names[place] in classes
    ]
    labels = [place for place in free if _is_label(table.names[place])]
    if not labels:
        spare = [p for p in free if p not in marked and _SPARE_LABEL_KEY.fullmatch(key_of(table.names[p]))]
        labels = spare[:1]
    chosen = [place for place in named if table.names[place] in classes]
    if classes and classes <= {table.names[place] for place in chosen} and marked.issuperset(chosen):
        return _mark_columns(table, image, chosen, others)
    if labels and len(free) > 1 and marked.issuperset(free):
        headings = [table.names[place] for place in free]
        if labels == free:
            labels = labels if len(set(headings)) < len(free) else []
        elif not classes or classes.intersection(headings):
            raise DataError(
                f"{where}: columns {', '.join(map(repr, headings[:6]))} hold 0 and 1, but some are named as columns "
                f"of tags; remove columns that are not classes, or name the classes with --classes"
            )
    if labels:
        return _label_columns(table, image, labels, others)
    if not free:
        told = ", ".join(repr(table.names[place]) for place in named[:6])
        raise DataError(f"{where}: no column holds labels ({told or 'no other column has a name'}); {FORMS}")
    return _mark_columns(table, image, free, others)


def columns_without_heading(rows: Sequence[Row], path: Path) -> Columns:
    """Tell what the columns of rows without a heading hold: the picture, then tags.

    Raises:
        DataError: no row has a tag, or the columns hold 0 and 1, for which a heading must name the classes.
    """
    where = f"{path}: line {rows[0].line}"
    width = max(len(row.cells) for row in rows)
    table = Table(path, [""] * width, list(rows))
    if width == 1:
        raise DataError(f"{where}: no row has a label; {FORMS}, separated by commas, tabs or semicolons")
    image = next((place for place in range(width) if all(map(_is_picture, table.column(place)))), 0)
    found = list(range(image + 1, width)) or list(range(image))
    if len(found) > 1 and all(row[place] in ("0", "1") for row in rows for place in found):
        raise DataError(f"{where}: columns of 0 and 1 need a heading with the class names; {FORMS}")
    words = any(not are_numbers(table.column(place)) for place in found)
    labels = [place for place in found if not (words and _is_index(table.column(place), words=words))]
    labels = [place for place in labels if not _are_parts(table.column(place))] or labels
    passed = [f"column {place + 1}" for place in range(width) if place not in (image, *labels)]
    notes = [f"columns ignored: {', '.join(passed)} (row numbers or parts of the set)"] if passed else []
    return Columns(image, tuple(labels), notes=tuple(notes))


def _label_columns(table: Table, image: int, labels: list[int], others: Sequence[int]) -> Columns:
    words = [place for place in labels if not are_numbers(table.column(place))]
    # `label,label_id`: of two columns of other names the one without words holds ids. `label_1,label_2` stay.
    stems = {stem_of(table.names[place]) for place in words}
    if words:
        labels = [p for p in labels if p in words or stem_of(table.names[p]) in stems]
    for place in others:
        cells = table.column(place)
        if not _is_unnamed(table.names[place]) or place < labels[0]:
            continue
        if not _is_index(cells, words=bool(words)):
            labels.append(place)
    beyond = range(len(table.names), max(len(row.cells) for row in table.rows))
    passed = [place for place in others if place not in labels and any(map(is_filled, table.column(place)))]
    certainty = next(
        (place for place in passed if _CERTAINTY_KEY.fullmatch(key_of(table.names[place]))), None
    )
    return Columns(image, (*labels, *beyond), certainty=certainty, notes=_passed_over(table, passed))


def _mark_columns(table: Table, image: int, marks: Sequence[int], others: Sequence[int]) -> Columns:
    where = f"{table.path}: line {table.line}"
    for place in (place for place in others if _is_unnamed(table.names[place])):
        cells = table.column(place)
        running = is_running(cells) and (place == 0 or len(cells) > 2)
        if any(map(is_filled, cells)) and holds_marks(cells) and not running:
            raise DataError(
                f"{where}: column {table.names[place]!r} has no name; every class needs its own name"
            )
    counts = Counter(table.names[place] for place in marks)
    for name, count in counts.items():
        if count > 1:
            raise DataError(f"{where}: column {name[:40]!r} occurs twice; every class needs its own name")
        require_class_name(name, where)
    passed = [place for place in others if place not in marks and any(map(is_filled, table.column(place)))]
    # A running number names no class, whatever its heading.
    numbers = [
        place for place in marks if is_running(table.column(place)) and not holds_marks(table.column(place))
    ]
    marks = [place for place in marks if place not in numbers]
    if not marks:
        raise DataError(f"{where}: no column holds labels; {FORMS}")
    return Columns(image, marks=tuple(marks), notes=_passed_over(table, sorted([*passed, *numbers])))


def _passed_over(table: Table, passed: Iterable[int]) -> tuple[str, ...]:
    names = [table.names[place] for place in passed]
    if not names:
        return ()
    told = ", ".join(repr(name) if name else "one without a name" for name in names[:8])
    told += f" and {len(names) - 8} more" if len(names) > 8 else ""
    if any(_PARTS_KEY.fullmatch(key_of(name)) for name in names):
        told += "; the images of all rows are used: --image-list FILE picks some"
    return (f"columns ignored because they name no class: {told}",)


def _image_column(table: Table) -> int | None:
    keys = [key_of(name) for name in table.names]
    found = [keys.index(key) for key in _IMAGE_KEYS if key in keys]
    with_files = (place for place in found if any(map(_is_picture, table.column(place))))
    best = next(with_files, next(iter(found), None))
    if best is not None:
        return best
    for place, key in enumerate(keys):
        cells = table.column(place)
        if (not key or key in _SPARE_IMAGE_KEYS) and cells and all(map(_is_picture, cells)):
            return place
    is_table = "id" in keys and (keys.index("id") == 0 or any(map(_is_label, table.names)))
    return keys.index("id") if is_table else None


def _is_picture(cell: object) -> bool:
    return isinstance(cell, str) and cell.lower().endswith(PICTURE_SUFFIXES)


def _is_label(name: str) -> bool:
    return _LABEL_KEY.fullmatch(key_of(name)) is not None


def _is_unnamed(name: str) -> bool:
    return not name or _UNNAMED.fullmatch(name) is not None


def _is_metadata(table: Table, place: int, marked: Collection[int]) -> bool:
    key = key_of(table.names[place])
    told = any(pattern.fullmatch(key) for pattern in (_PARTS_KEY, _CERTAINTY_KEY, _OTHER_KEY))
    return told or (key in _IMAGE_KEYS and place not in marked)


def _is_index(cells: Sequence[object], *, words: bool) -> bool:
    """Whether a column without a name holds row numbers; `words` is whether the tags are words."""
    return (is_running(cells) and len(cells) > 2) or (
        words and are_numbers(cells) and all(map(is_filled, cells))
    )


def _are_parts(cells: Iterable[object]) -> bool:
    found = {str(cell).lower() for cell in cells}
    return len(found) > 1 and found <= _PART_NAMES


def require_class_name(name: str, where: str) -> None:
    """Raise DataError, naming `where`, when a class name holds a control character."""
    if has_control_character(name):
        raise DataError(
            f"{where}: class name {name[:40]!r} holds a control character; check the row's quotation marks"
        )
