"""Folders of pictures with a table of tags: matching the two, lists of ids, the choice of classes."""

from __future__ import annotations

import csv
import difflib
import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from irn_pipeline.datasets.data_set import DataSet
from irn_pipeline.datasets.headers import READ_KINDS
from irn_pipeline.datasets.lists import check_class_names, listed_ids, read_lines, some
from irn_pipeline.datasets.orientation import orient
from irn_pipeline.datasets.picture_scan import composed, scan_pictures, without_suffix
from irn_pipeline.errors import ConfigError, DataError
from irn_pipeline.structures import ImageRecord, ImageSet

_NOT_READ = (
    *(".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".rw2", ".raf", ".pef", ".srw", ".jp2", ".j2k", ".jxl"),
    *(".psd", ".svg", ".exr", ".hdr", ".dcm", ".ico", ".tga", ".pdf"),
)
"""Suffixes of pictures of other kinds, for tables that name pictures without their suffix."""


@dataclass(frozen=True)
class TagTable:
    """Image-level tags as a file gives them.

    Attributes:
        names: every class of the file, in the order of its class ids if the user picks no others.
        tags: image id -> places in `names`; the pictures in the order of the file.
        files: image id -> the picture's path as the file writes it; for those that are written with a suffix it
            decides between pictures that differ in their suffix alone.
        sizes: image id -> (H, W) as the file gives it, where it does.
        unsure: ids of pictures some of whose tags are unknown: without a known one they are left out.
    """

    names: tuple[str, ...]
    tags: dict[str, set[int]]
    files: Mapping[str, str] = field(default_factory=dict)
    sizes: Mapping[str, tuple[int, int]] | None = None
    unsure: Collection[str] = ()


def build_set(
    table: TagTable, source: Path, image_dir: Path, classes: Sequence[str], warnings: list[str]
) -> tuple[DataSet, tuple[int, ...]]:
    """Match a table of tags with the pictures of a folder.

    Args:
        table: the tags.
        source: file of the tags, for messages.
        image_dir: folder of the pictures.
        classes: names to use, in this order; empty for all of the table.
        warnings: sentences that come first; more are added.

    Returns:
        The pictures that are there: those that show a class that is used, and the others as `negatives`; and for
        every class id its place in `table.names`.

    Raises:
        ConfigError: `classes` holds a name that the table does not know, or one twice.
        DataError: there are no classes or more than 254, no picture is left, or two files share an image id.
    """
    places = _choose(table.names, classes, source)
    class_names = tuple(table.names[place] for place in places)
    check_class_names(class_names, f"{source}" if classes else f"{source} (--classes picks some)")
    class_of = {place: class_id for class_id, place in enumerate(places)}
    passed_over: list[str] = []
    files = scan_pictures(image_dir, warnings, passed_over)
    others = {
        composed(path[: path.rindex(".")]): path for path in passed_over if path.lower().endswith(_NOT_READ)
    }
    records: list[ImageRecord] = []
    absent: list[str] = []
    unread: dict[str, str] = {}
    unsure: list[str] = []
    for image_id, tags in table.tags.items():
        paths, written = files.get(image_id, ()), table.files.get(image_id, image_id)
        if len(paths) > 1:
            paths = tuple(path for path in paths if composed(path) == composed(written)) or paths
        if len(paths) > 1:
            raise DataError(
                f"{image_dir}: {' and '.join(paths[:2])} differ only in their suffix, and both would be "
                f"image {image_id!r}; rename one or move it away, or name it with its suffix in {source}"
            )
        class_ids = tuple(sorted(class_of[tag] for tag in tags if tag in class_of))
        if not paths and (image_id in others or os.path.lexists(image_dir / written)):
            unread[image_id] = others.get(image_id, written)
        elif not paths:
            absent.append(image_id)
        elif not class_ids and image_id in table.unsure:
            unsure.append(image_id)
        else:
            records.append(ImageRecord(image_id, image_dir / paths[0], class_ids))
    if absent:
        warnings.append(f"{source}: images left out because they are not in {image_dir}: {some(absent)}")
    if unread:
        warnings.append(
            f"{source}: images left out although they are in {image_dir}: {some(unread.values())}; "
            f"{READ_KINDS} files with such a suffix are read, hidden files and folders are not"
        )
    if unsure:
        warnings.append(f"{source}: images left out because their tags are unknown: {some(unsure)}")
    if not any(record.class_ids for record in records):
        example = next(iter(files))
        hint = "; does --image-dir fit this file?" if absent else ""
        raise DataError(
            f"{source}: none of its {len(table.tags)} images can be used: {len(absent)} are not in {image_dir} "
            f"(which holds {example!r}, for example), {len(unread)} are there, but are hidden or no {READ_KINDS} "
            f"files by their suffix, {len(records) + len(unsure)} show none of the classes{hint}"
        )
    sizes = table.sizes
    told_size = None if sizes is None else lambda record: sizes.get(record.image_id)
    upright = orient(records, source, warnings, told_size)
    counts = Counter(class_id for record in records for class_id in record.class_ids)
    for number, what in ((0, "no image"), (1, "a single image, too few to learn from")):
        rare = [repr(name) for class_id, name in enumerate(class_names) if counts[class_id] == number]
        if rare:
            warnings.append(f"{source}: classes with {what}: {len(rare)} ({', '.join(rare[:10])})")
    whole = DataSet(
        images=ImageSet(class_names, tuple(record for record in upright if record.class_ids)),
        origin=source,
        category_ids=tuple(range(1, len(class_names) + 1)),
        negatives=tuple(record for record in upright if not record.class_ids),
        warnings=tuple(warnings),
        skipped=(*absent, *unread, *unsure),
    )
    return replace(whole, load_list=partial(restrict, whole)), places


def restrict(whole: DataSet, image_list: str | Path) -> DataSet:
    """The pictures of a set that a list names, in the list's order.

    Args:
        whole: all pictures of the data set.
        image_list: UTF-8 text, one image id or file name a line; blank lines and lines that start with "#"
            are passed over.

    Returns:
        The chosen pictures with all classes; its warnings are those about the list only.

    Raises:
        DataError: the list is missing or empty, or names pictures that the data set does not know.
    """
    path, warnings = Path(image_list), list[str]()
    records = {record.image_id: record for record in (*whole.items, *whole.negatives)}
    known = records.keys() | set(whole.skipped)
    entries: list[str] = []
    for line in read_lines(path):
        if line in known:
            entries.append(line)
        elif not line.startswith("#"):
            entries.append(without_suffix(line.removeprefix("./")))
    image_ids = listed_ids(entries, known, path, whole.origin, warnings)
    chosen = [records[image_id] for image_id in image_ids if image_id in records]
    skipped = tuple(image_id for image_id in image_ids if image_id not in records)
    if not any(record.class_ids for record in chosen):
        raise DataError(
            f"{path}: none of its {len(image_ids)} images has both a file and a class that is used"
        )
    if skipped:
        warnings.insert(
            0, f"{path}: images left out because their file or classes are missing: {some(skipped)}"
        )
    return replace(
        whole,
        images=ImageSet(whole.images.class_names, tuple(record for record in chosen if record.class_ids)),
        negatives=tuple(record for record in chosen if not record.class_ids),
        warnings=tuple(warnings),
        skipped=skipped,
        load_list=partial(restrict, whole),
    )


def chosen_names(words: Sequence[str], known: Collection[str]) -> list[str]:
    """The class names that the words of --classes stand for: `a b`, `a,b`, and names that hold commas.

    A run of parts between commas that is a known name stands for it, the longest first, so that `cat, small` and
    `cat, small,dog` need no quotation marks in them. In double quotation marks a name is taken as it is.

    Args:
        words: as the user wrote them.
        known: names of the data set.

    Returns:
        Names in the order of the words; also those that are not known.
    """
    found: list[str] = []
    for word in words:
        if word.strip() in known:
            found.append(word.strip())
            continue
        quoted = word.count('"') > 1 and "\n" not in word
        parts = next(csv.reader([word], skipinitialspace=True)) if quoted else word.split(",")
        while parts:
            runs = ((end, ",".join(parts[:end]).strip()) for end in range(1 if quoted else len(parts), 0, -1))
            end, name = next((run for run in runs if run[1] in known), (1, parts[0].strip()))
            found += [name] if name else []
            parts = parts[end:]
    return found


def _choose(names: Sequence[str], words: Sequence[str], source: Path) -> tuple[int, ...]:
    place_of = {name: place for place, name in enumerate(names)}
    classes = chosen_names(words, place_of)
    if not classes:
        return tuple(range(len(names)))
    for name in classes:
        if name not in place_of:
            near = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
            raise ConfigError(
                f"--classes: {source} has no class {name!r} (nearest: {', '.join(map(repr, near))})"
            )
        if classes.count(name) > 1:
            raise ConfigError(f"--classes: {name!r} is named twice; class names must differ")
    return tuple(place_of[name] for name in classes)
