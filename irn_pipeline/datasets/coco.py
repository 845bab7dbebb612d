"""COCO instances files: image-level tags from the annotations, and true masks for evaluation only.

A crowd gives a tag like any other annotation, because the class is there: the network would otherwise learn
that it is not. Its pixels are not counted when masks are compared.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from irn_pipeline.datasets.coco_categories import Category, classes_of, read_categories
from irn_pipeline.datasets.coco_truth import CocoTruths, TrueObject, TruePicture
from irn_pipeline.datasets.coco_values import (
    entries,
    is_crowd,
    name_of,
    number_or_text,
    picture_size,
    told,
    whole_number,
)
from irn_pipeline.datasets.picture_folder import TagTable, build_set
from irn_pipeline.datasets.picture_scan import picture_id
from irn_pipeline.datasets.voc import LoadedSet
from irn_pipeline.datasets.voc_lists import some
from irn_pipeline.errors import DataError
from irn_pipeline.files.regular import regular_bytes

# Number lists are nine tenths of a large file and are needed for evaluation only: they stay on the disk.
_POLYGONS = re.compile(rb'"segmentation"\s*:\s*(\[[\[\]\d\s.,eE+-]*\])')
_DIGIT = re.compile(rb"\d")


@dataclass(frozen=True)
class CocoSet:
    """A COCO file matched with its pictures.

    Attributes:
        loaded: the pictures and what was left out.
        category_ids: COCO's own id of every class, in the order of the class ids.
        truths: reads the true masks of a picture.
        image_dir: folder that `file_name` starts from.
        image_ids: image id -> COCO's own id, of every picture that the file lists.
    """

    loaded: LoadedSet
    category_ids: tuple[int, ...]
    truths: CocoTruths
    image_dir: Path
    image_ids: Mapping[str, int | str]

    def image_ids_of(self, paths: Sequence[Path]) -> list[int | str]:
        """The file's ids of pictures; one that it does not list gets a number above all numbers of the file."""
        free = max((whole_number(key) or 0 for key in self.image_ids.values()), default=0)
        found: list[int | str] = []
        for path in paths:
            known = self._image_id_of(path)
            if known is None:
                known = free = max(free, 0) + 1
            found.append(known)
        return found

    def _image_id_of(self, path: Path) -> int | str | None:
        # The folder may be spelled in another way, or be reached through a link.
        for spelled in (os.path.abspath, os.path.realpath):
            try:
                below = Path(spelled(path)).relative_to(spelled(self.image_dir)).as_posix()
                return self.image_ids.get(picture_id(below, str(path)))
            except (ValueError, DataError):
                continue
        return None


def load_coco(coco_json: Path, image_dir: Path, *, classes: Sequence[str] = ()) -> CocoSet:
    """Read an instances file and find its pictures.

    Ids may be written as numbers, as 1.0 or as "1". Categories of one name are one class; a root category that
    nothing is annotated with is left out, unless `classes` names it.

    Args:
        coco_json: lists `images` (id, file_name), `annotations` (image_id, category_id) and `categories`
            (id, name); category ids may have gaps and start at 0.
        image_dir: folder that `file_name` starts from.
        classes: names to use, in the order of their class ids; empty for all, by category id.

    Returns:
        The pictures that are there and show a class, in the order of the file; masks are read when asked for.

    Raises:
        ConfigError: `classes` holds a name that the file does not know, or one twice.
        DataError: the file or the folder is missing, the file is no such JSON, or an entry is impossible.
    """
    content = _read(coco_json)
    categories = read_categories(content, coco_json)
    pictures = _pictures(content, coco_json)
    warnings: list[str] = []
    objects = _objects(content, coco_json, pictures, categories, warnings)
    used = {found.category for of_picture in objects.values() for found in of_picture}
    chosen = classes_of(categories, used, classes, coco_json, warnings)
    tags = {
        picture.image_id: {chosen.place_of[found.category] for found in objects[picture.image_id]}
        for picture in pictures.values()
    }
    files = {picture.image_id: picture.file_name for picture in pictures.values()}
    sizes = {p.image_id: p.size for p in pictures.values() if isinstance(p.size, tuple)}
    table = TagTable(chosen.names, tags, files, sizes)
    loaded, places = build_set(table, coco_json, image_dir, classes, warnings)
    class_of = {place: class_id for class_id, place in enumerate(places)}
    by_image_id = {picture.image_id: picture for picture in pictures.values()}
    truths = CocoTruths(
        coco_json,
        {key: class_of[place] for key, place in chosen.place_of.items() if place in class_of},
        {
            record.image_id: TruePicture(
                record.path,
                by_image_id[record.image_id].size,
                tuple(objects[record.image_id]),
                record.orientation,
            )
            for record in loaded.images.records
        },
    )
    return CocoSet(
        loaded,
        tuple(chosen.category_ids[place] for place in places),
        truths,
        image_dir,
        {picture.image_id: picture.coco_id for picture in pictures.values()},
    )


@dataclass(frozen=True)
class _Picture:
    image_id: str
    file_name: str
    coco_id: int | str
    size: tuple[int, int] | str | None


def _objects(
    content: dict[str, Any],
    path: Path,
    pictures: Mapping[int | str, _Picture],
    categories: Mapping[int, Category],
    warnings: list[str],
) -> defaultdict[str, list[TrueObject]]:
    """The annotations of every image id; those of pictures and categories that are not in the file are left out."""
    objects: defaultdict[str, list[TrueObject]] = defaultdict(list)
    absent: list[str] = []
    rewritten = maskless = crowds = count = 0
    for place, entry in enumerate(entries(content, "annotations", path)):
        count += 1
        name = name_of(entry, place)
        image_key, category_id = _keys(entry, f"{path}: {name}", pictures, categories)
        picture = pictures.get(image_key)
        if picture is None or category_id not in categories:
            absent.append(name.removeprefix("annotation "))
            continue
        rewritten += any(
            entry[key] != own for key, own in (("image_id", picture.coco_id), ("category_id", category_id))
        )
        crowd, segmentation = is_crowd(entry, path, name), _segmentation(entry)
        maskless += segmentation is None
        crowds += crowd and segmentation is not None
        objects[picture.image_id].append(
            TrueObject(name, category_id, crowd, segmentation, entry.get("bbox"))
        )
    if not count:
        raise DataError(f"{path}: has no annotations, and the tags of the pictures come from them")
    if len(absent) == count:
        raise DataError(
            f"{path}: none of its {count} annotations belongs to an image and a category of the file; the first is "
            f"{absent[0]}, expected {_ids(pictures)} as image_id and {_ids(categories)} as category_id"
        )
    if absent:
        warnings.append(
            f"{path}: annotations left out because their image_id or category_id is not in the file: {some(absent)}"
        )
    if rewritten:
        warnings.append(
            f"{path}: annotations whose ids are written in another way than in the lists ('1' for 1), read as the "
            f"same: {rewritten}"
        )
    if maskless:
        warnings.append(f"{path}: annotations without a mask, used for tags only: {maskless}")
    if crowds and crowds + maskless == count - len(absent):
        warnings.append(f"{path}: every mask is a crowd (iscrowd), whose pixels are not counted: {crowds}")
    return objects


def _keys(
    entry: dict[str, Any], where: str, pictures: Mapping[int | str, Any], categories: Mapping[int, Any]
) -> tuple[int | str, int]:
    """An annotation's image_id and category_id, of the kind that the file's ids are, whether or not they are there."""
    if "segments_info" in entry and "category_id" not in entry:
        raise DataError(
            f"{where} has segments_info: this is a panoptic file; expected an instances file "
            "(panopticapi's panoptic2detection_coco_format.py makes one)"
        )
    image_key, category_id = number_or_text(entry.get("image_id")), whole_number(entry.get("category_id"))
    if image_key is None or (
        isinstance(image_key, str) and not any(isinstance(key, str) for key in pictures)
    ):
        raise DataError(
            f"{where}: image_id {told(entry.get('image_id'))!r} is no id of an image; expected {_ids(pictures)}"
        )
    if category_id is None:
        raise DataError(
            f"{where}: category_id {told(entry.get('category_id'))!r} is no id of a category; expected "
            f"{_ids(categories)}"
        )
    return image_key, category_id


def _ids(known: Mapping[Any, object]) -> str:
    """The first ids of a list of the file, for messages."""
    first = ", ".join(told(key) for key in itertools.islice(known, 3))
    return f"{first} ..." if len(known) > 3 else first


def _read(path: Path) -> dict[str, Any]:
    """Content of the file; a polygon list is replaced by where it starts and ends in the file, in bytes."""
    try:
        data = regular_bytes(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; check the folder and the spelling") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    try:
        content = json.loads(_POLYGONS.sub(_placed, data))
    except (ValueError, RecursionError):
        raise DataError(f"{path}: {_what_is_broken(data)}; copy or write it again") from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: not a COCO instances file; expected an object with images and annotations")
    return content


def _placed(polygons: re.Match[bytes]) -> bytes:
    empty = _DIGIT.search(polygons.string, *polygons.span(1)) is None
    return b'"segmentation":null' if empty else b'"segmentation":[%d,%d]' % polygons.span(1)


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


def _pictures(content: dict[str, Any], path: Path) -> dict[int | str, _Picture]:
    found: dict[int | str, _Picture] = {}
    named: set[str] = set()
    for place, entry in enumerate(entries(content, "images", path)):
        where = f"{path}: images[{place}]"
        key, name = number_or_text(entry.get("id")), entry.get("file_name")
        if key is None or key in found:
            raise DataError(
                f"{where}: id {told(entry.get('id'))!r} is missing or used twice; image ids must differ"
            )
        if not isinstance(name, str):
            raise DataError(f"{where}: has no file_name; expected the picture's path below --image-dir")
        image_id = picture_id(name, where)
        if image_id in named:
            raise DataError(
                f"{where}: another image has the file_name {name!r} too, but for its suffix; remove one"
            )
        named.add(image_id)
        own = entry["id"] if isinstance(entry["id"], str) else key
        found[key] = _Picture(image_id, name, own, picture_size(entry, where))
    if not found:
        raise DataError(f"{path}: lists no images")
    return found


def _segmentation(entry: dict[str, Any]) -> Any:
    """Span of polygons, other values as they are, or None where there is no mask."""
    found = entry.get("segmentation")
    if isinstance(found, list) and len(found) == 2 and type(found[0]) is type(found[1]) is int:
        return found[0], found[1]
    return found or None
