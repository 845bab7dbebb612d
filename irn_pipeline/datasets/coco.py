"""COCO instances files: image-level tags from the annotations, and true masks for evaluation only.

A crowd gives a tag like any other annotation, because the class is there: the network would otherwise learn
that it is not. Its pixels are not counted when masks are compared.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from irn_pipeline.datasets.coco_entries import (
    Category,
    CocoIds,
    CocoImage,
    classes_of,
    entries,
    is_crowd,
    number_or_text,
    read_categories,
    read_images,
    told,
    whole_number,
    without_copies,
)
from irn_pipeline.datasets.coco_truth import CocoTruths, TrueObject, TruePicture
from irn_pipeline.datasets.data_set import DataSet
from irn_pipeline.datasets.lists import read_bytes, some
from irn_pipeline.datasets.picture_folder import TagTable, build_set, restrict
from irn_pipeline.errors import DataError

# Number lists are nine tenths of a large file and are needed for evaluation only: they stay on the disk.
_POLYGONS = re.compile(rb'"segmentation"\s*:\s*(\[[\[\]\d\s.,eE+-]*\])')
_DIGIT = re.compile(rb"\d")


def load_coco(coco_json: Path, image_dir: Path, *, classes: Sequence[str] = ()) -> DataSet:
    """Read an instances file and find its pictures.

    Ids may be written as numbers, as 1.0 or as "1". Categories of one name are one class; a root category that
    nothing is annotated with is left out, unless `classes` names it.

    Args:
        coco_json: lists `images` (id, file_name), `annotations` (image_id, category_id) and `categories`
            (id, name); category ids may have gaps and start at 0.
        image_dir: folder that `file_name` starts from.
        classes: names to use, in the order of their class ids; empty for all, by category id.

    Returns:
        The pictures that are there, in the order of the file; masks are read when asked for.

    Raises:
        ConfigError: `classes` holds a name that the file does not know, or one twice.
        DataError: the file or the folder is missing, the file is no such JSON, or an entry is impossible.
    """
    content = _read(coco_json)
    categories = read_categories(content, coco_json)
    images = read_images(content, coco_json)
    warnings: list[str] = []
    objects, unsure = _objects(content, coco_json, images, categories, warnings)
    used = {found.category for of_picture in objects.values() for found in of_picture}
    chosen = classes_of(categories, used, classes, coco_json, warnings)
    by_id = {image.image_id: image for image in images.values()}
    table = TagTable(
        chosen.names,
        {image_id: {chosen.place_of[found.category] for found in objects[image_id]} for image_id in by_id},
        {image_id: image.file_name for image_id, image in by_id.items()},
        {image_id: image.size for image_id, image in by_id.items() if isinstance(image.size, tuple)},
        unsure,
    )
    found, places = build_set(table, coco_json, image_dir, classes, warnings)
    class_of = {place: class_id for class_id, place in enumerate(places)}
    truths = CocoTruths(
        coco_json,
        {key: class_of[place] for key, place in chosen.place_of.items() if place in class_of},
        {
            record.image_id: TruePicture(
                record.path,
                by_id[record.image_id].size,
                tuple(objects[record.image_id]),
                record.orientation,
            )
            for record in (*found.items, *found.negatives)
        },
        any(each.segmentation is not None for of_picture in objects.values() for each in of_picture),
    )
    whole = replace(
        found,
        category_ids=tuple(chosen.category_ids[place] for place in places),
        load_truth=truths.ground_truth,
        coco=CocoIds(image_dir, {image_id: image.coco_id for image_id, image in by_id.items()}),
    )
    return replace(whole, load_list=partial(restrict, whole))


def _objects(
    content: dict[str, Any],
    path: Path,
    images: Mapping[int | str, CocoImage],
    categories: Mapping[int, Category],
    warnings: list[str],
) -> tuple[defaultdict[str, list[TrueObject]], set[str]]:
    """The annotations of every image id, and the ids of images with annotations of categories that are not there."""
    objects: defaultdict[str, list[TrueObject]] = defaultdict(list)
    absent: list[str] = []
    unsure: set[str] = set()
    copies: list[str] = []
    rewritten = maskless = crowds = count = 0
    for place, entry in without_copies(entries(content, "annotations", path), copies):
        count += 1
        key = entry.get("id")
        name = f"annotations[{place}]" if key is None else f"annotation {told(key)}"
        image_key, category_id = _keys(entry, f"{path}: {name}", images, categories)
        image = images.get(image_key)
        if image is None or category_id not in categories:
            absent.append(name.removeprefix("annotation "))
            unsure |= set() if image is None else {image.image_id}
            continue
        rewritten += any(
            entry[key] != own for key, own in (("image_id", image.coco_id), ("category_id", category_id))
        )
        crowd, segmentation = is_crowd(entry, f"{path}: {name}"), _segmentation(entry)
        maskless += segmentation is None
        crowds += crowd and segmentation is not None
        objects[image.image_id].append(TrueObject(name, category_id, crowd, segmentation, entry.get("bbox")))
    if not count:
        raise DataError(f"{path}: has no annotations, and the tags of the images come from them")
    if len(absent) == count:
        raise DataError(
            f"{path}: none of its {count} annotations belongs to an image and a category of the file; the first is "
            f"{absent[0]}, expected {_ids(images)} as image_id and {_ids(categories)} as category_id"
        )
    if absent:
        warnings.append(
            f"{path}: annotations left out because their image_id or category_id is not in the file: {some(absent)}"
        )
    if copies:
        warnings.append(f"{path}: annotations left out because they are in the file twice: {some(copies)}")
    if rewritten:
        warnings.append(
            f"{path}: annotations whose ids are written differently than in the lists ('1' for 1), read as the "
            f"same: {rewritten}"
        )
    if maskless:
        warnings.append(f"{path}: annotations without a mask, used for tags only: {maskless}")
    if crowds and crowds + maskless == count - len(absent):
        warnings.append(f"{path}: every mask is a crowd (iscrowd), whose pixels are not counted: {crowds}")
    return objects, unsure


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
            f"{where}: image_id {told(entry.get('image_id'))!r} is not the id of an image; expected {_ids(pictures)}"
        )
    if category_id is None:
        raise DataError(
            f"{where}: category_id {told(entry.get('category_id'))!r} is not the id of a category; expected "
            f"{_ids(categories)}"
        )
    return image_key, category_id


def _ids(known: Mapping[Any, object]) -> str:
    """The first ids of a list of the file, for messages."""
    first = ", ".join(told(key) for key in itertools.islice(known, 3))
    return f"{first} ..." if len(known) > 3 else first


def _read(path: Path) -> dict[str, Any]:
    """Content of the file; a polygon list is replaced by where it starts and ends in the file, in bytes."""
    data = read_bytes(path)
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
        return f"line {error.lineno}, column {error.colno}: not JSON ({error.msg})"
    except RecursionError:
        return "no COCO file: its lists are nested too deeply"
    except ValueError as error:
        return f"not JSON ({str(error)[:80]})"
    return "not JSON"


def _segmentation(entry: dict[str, Any]) -> Any:
    """Span of polygons, other values as they are, or None where there is no mask."""
    found = entry.get("segmentation")
    if isinstance(found, list) and len(found) == 2 and type(found[0]) is type(found[1]) is int:
        return found[0], found[1]
    return found or None
