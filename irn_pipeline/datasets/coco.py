"""COCO instances files: image-level tags from the annotations, and true masks for evaluation only.

A crowd gives a tag like any other annotation, because the class is there: the network would otherwise learn
that it is not. Its pixels are not counted when masks are compared.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from irn_pipeline.datasets.coco_truth import CocoTruths, TrueObject, TruePicture, told
from irn_pipeline.datasets.picture_folder import TagTable, build_set, has_control_character, picture_id
from irn_pipeline.datasets.voc import LoadedSet
from irn_pipeline.datasets.voc_lists import some
from irn_pipeline.errors import DataError
from irn_pipeline.foreign.files import regular_bytes
from irn_pipeline.structures import MAX_PIXELS

# Number lists are nine tenths of a large file and are needed for evaluation only: they stay on the disk.
_POLYGONS = re.compile(rb'"segmentation"\s*:\s*(\[[\[\]\d\s.,eE+-]*\])')
_SHORTEST_POLYGON = len("[[0,0,0,0,0,0]]")


@dataclass(frozen=True)
class CocoSet:
    """A COCO file matched with its pictures.

    Attributes:
        loaded: the pictures and what was left out.
        category_ids: COCO's own id of every class, in the order of the class ids.
        truths: reads the true masks of a picture.
    """

    loaded: LoadedSet
    category_ids: tuple[int, ...]
    truths: CocoTruths


def load_coco(coco_json: Path, image_dir: Path, *, classes: Sequence[str] = ()) -> CocoSet:
    """Read an instances file and find its pictures.

    Args:
        coco_json: lists `images` (id, file_name), `annotations` (image_id, category_id) and `categories`
            (id, name); category ids may have gaps.
        image_dir: folder that `file_name` starts from.
        classes: names to use, in the order of their class ids; empty for all, by category id.

    Returns:
        The pictures that are there and show a class, in the order of the file; masks are read when asked for.

    Raises:
        ConfigError: `classes` holds a name that the file does not know, or one twice.
        DataError: the file or the folder is missing, the file is no such JSON, or an entry is impossible.
    """
    content = _read(coco_json)
    ids_of_categories, names = _categories(content, coco_json)
    pictures = _pictures(content, coco_json)
    tags: dict[str, set[int]] = {picture.image_id: set() for picture in pictures.values()}
    place_of = {category_id: place for place, category_id in enumerate(ids_of_categories)}
    objects: defaultdict[str, list[TrueObject]] = defaultdict(list)
    strangers: list[str] = []
    maskless = 0
    for entry in _entries(content, "annotations", coco_json):
        image_id, category_id = entry.get("image_id"), entry.get("category_id")
        picture = pictures.get(image_id) if isinstance(image_id, int | str) else None
        place = place_of.get(category_id) if isinstance(category_id, int) else None
        if picture is None or place is None:
            strangers.append(told(entry.get("id")))
            continue
        segmentation = _segmentation(entry)
        maskless += segmentation is None
        tags[picture.image_id].add(place)
        crowd = bool(entry.get("iscrowd", 0))
        found = TrueObject(entry.get("id"), place, crowd, segmentation, entry.get("bbox"))
        objects[picture.image_id].append(found)
    warnings = []
    if strangers:
        warnings.append(
            f"{coco_json}: annotations left out because their image_id or category_id is not in the file: "
            f"{some(strangers)}"
        )
    if maskless:
        warnings.append(f"{coco_json}: annotations without a mask, used for tags only: {maskless}")
    loaded, places = build_set(TagTable(names, tags), coco_json, image_dir, classes, warnings)
    sizes = {picture.image_id: picture.size for picture in pictures.values()}
    truths = CocoTruths(
        coco_json,
        {place: class_id for class_id, place in enumerate(places)},
        {
            record.image_id: TruePicture(record.path, sizes[record.image_id], tuple(objects[record.image_id]))
            for record in loaded.images.records
        },
    )
    return CocoSet(loaded, tuple(ids_of_categories[place] for place in places), truths)


@dataclass(frozen=True)
class _Picture:
    image_id: str
    size: tuple[int, int] | None


def _read(path: Path) -> dict[str, Any]:
    """Content of the file; a polygon list is replaced by where it starts and ends in the file, in bytes."""
    try:
        data = regular_bytes(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; check the folder and the spelling") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    try:
        content = json.loads(_POLYGONS.sub(lambda match: b'"segmentation":[%d,%d]' % match.span(1), data))
    except (ValueError, RecursionError):
        raise DataError(f"{path}: {_what_is_broken(data)}; copy or write it again") from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: not a COCO instances file; expected an object with images and annotations")
    return content


def _what_is_broken(data: bytes) -> str:
    if not data.strip():
        return "the file is empty"
    try:
        json.loads(data)
    except json.JSONDecodeError as error:
        return f"line {error.lineno}, column {error.colno}: no JSON ({error.msg})"
    except RecursionError:
        return "no COCO file: its lists are nested too deeply"
    except ValueError as error:
        return f"no JSON ({str(error)[:80]})"
    return "no JSON"


def _entries(content: dict[str, Any], key: str, path: Path) -> Iterator[dict[str, Any]]:
    entries = content.get(key)
    if not isinstance(entries, list):
        raise DataError(
            f"{path}: has no list {key!r}; expected a COCO instances file with images, annotations, categories"
        )
    for place, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise DataError(f"{path}: {key}[{place}] is no object; expected one with an id")
        yield entry


def _categories(content: dict[str, Any], path: Path) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Ids and names, by id."""
    found: dict[int, str] = {}
    for place, entry in enumerate(_entries(content, "categories", path)):
        category_id, name = entry.get("id"), entry.get("name")
        where = f"{path}: categories[{place}]"
        if isinstance(category_id, bool) or not isinstance(category_id, int) or category_id < 0:
            raise DataError(f"{where}: id {told(category_id)!r} is no whole number from 0")
        if category_id in found:
            raise DataError(f"{where}: id {category_id} is used twice; category ids must differ")
        if not isinstance(name, str) or not name.strip() or has_control_character(name):
            raise DataError(f"{where}: name {told(name)!r} is no class name; expected a text")
        found[category_id] = name.strip()
    if not found:
        raise DataError(f"{path}: has no categories; the class names come from there")
    ids = tuple(sorted(found))
    return ids, tuple(found[category_id] for category_id in ids)


def _pictures(content: dict[str, Any], path: Path) -> dict[int | str, _Picture]:
    found: dict[int | str, _Picture] = {}
    named: set[str] = set()
    for place, entry in enumerate(_entries(content, "images", path)):
        where = f"{path}: images[{place}]"
        key, name = entry.get("id"), entry.get("file_name")
        if not isinstance(key, int | str) or key in found:
            raise DataError(f"{where}: id {told(key)!r} is missing or used twice; image ids must differ")
        if not isinstance(name, str):
            raise DataError(f"{where}: has no file_name; expected the picture's path below --image-dir")
        image_id = picture_id(name, where)
        if image_id in named:
            raise DataError(
                f"{where}: another image has the file_name {name!r} too, but for its suffix; remove one"
            )
        named.add(image_id)
        found[key] = _Picture(image_id, _size(entry, where))
    return found


def _size(entry: dict[str, Any], where: str) -> tuple[int, int] | None:
    height: Any = entry.get("height")
    width: Any = entry.get("width")
    if height is None and width is None:
        return None
    wrong = not isinstance(height, int) or not isinstance(width, int)
    if wrong or min(height, width) < 1 or height * width > MAX_PIXELS:
        raise DataError(
            f"{where}: height {told(height)} and width {told(width)} are impossible; "
            f"expected whole pixels, at most {MAX_PIXELS} in all"
        )
    return height, width


def _segmentation(entry: dict[str, Any]) -> Any:
    """Span of polygons, run lengths, or None where there is no mask."""
    found = entry.get("segmentation")
    if isinstance(found, list) and len(found) == 2 and type(found[0]) is type(found[1]) is int:
        return None if found[1] - found[0] < _SHORTEST_POLYGON else (found[0], found[1])
    return found or None
