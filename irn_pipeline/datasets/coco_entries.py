"""The images and categories of a COCO file, and its values as programs write them: 1 may be 1.0 or "1"."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from irn_pipeline.datasets.picture_scan import has_control_character, picture_id
from irn_pipeline.datasets.tag_cells import one_spelling
from irn_pipeline.errors import DataError
from irn_pipeline.structures import MAX_PIXELS

_WHOLE = re.compile(r"\s*([+-]?\d{1,40})(\.0*)?\s*", re.ASCII)
_NO_CLASS = frozenset(
    {"background", "_background_", "__background__", "__ignore__", "_ignore_", "none", "root"}
)


def told(value: object) -> str:
    """A value of the file for a message: short, and not looked into, however deep it is."""
    return str(value)[:40] if isinstance(value, int | float | str | None) else type(value).__name__


def whole_number(value: object) -> int | None:
    """The whole number that 1, 1.0, "1" or "1.0" stands for; None for anything else."""
    if isinstance(value, str):
        match = _WHOLE.fullmatch(value)
        return int(match[1]) if match else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if value == value and abs(value) != float("inf") and value == int(value) else None


def number_or_text(value: object) -> int | str | None:
    """An id in the form in which ids are compared: a whole number, else a text; None where it is neither."""
    number = whole_number(value)
    return value if number is None and isinstance(value, str) else number


def entries(content: dict[str, Any], key: str, path: Path) -> Iterator[dict[str, Any]]:
    """The objects of one of the file's lists; DataError where the list, or one of its objects, is none."""
    found = content.get(key)
    if not isinstance(found, list):
        raise DataError(
            f"{path}: has no list {key!r}; expected a COCO instances file with images, annotations, categories"
        )
    for place, entry in enumerate(found):
        if not isinstance(entry, dict):
            raise DataError(f"{path}: {key}[{place}] is not an object; expected one with an id")
        yield entry


def without_copies(
    annotations: Iterable[dict[str, Any]], copies: list[str]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Annotations with their places in the list, each once; the id of each copy is added to `copies`.

    Files that were joined carelessly hold annotations twice; in an evaluation half of them would be missed objects. A
    copy has the same id, picture, category and box.
    """
    seen: set[tuple[Any, ...]] = set()
    for place, annotation in enumerate(annotations):
        keys, box = [annotation.get(key) for key in ("id", "image_id", "category_id")], annotation.get("bbox")
        values = [*keys, *box] if isinstance(box, list) else [None]
        if all(isinstance(value, int | float | str) for value in values):
            if tuple(values) in seen:
                copies.append(told(annotation["id"]))
                continue
            seen.add(tuple(values))
        yield place, annotation


def is_crowd(annotation: dict[str, Any], where: str) -> bool:
    """Whether an annotation stands for a group; DataError where its `iscrowd` is no number."""
    value = annotation.get("iscrowd")
    number = whole_number(int(value) if isinstance(value, bool) else value or 0)
    if number is None:
        raise DataError(f"{where}: iscrowd {told(value)!r} is not a number; expected 0 or 1")
    return number != 0


@dataclass(frozen=True)
class CocoImage:
    """One of the file's images.

    Attributes:
        image_id: as everywhere in this package: its path without the suffix.
        file_name: its path below the folder of the pictures.
        coco_id: COCO's own id.
        size: (H, W) as the file says; None where it does not; where it is impossible, a sentence that says so. It is
            no error yet: only true masks need the size.
    """

    image_id: str
    file_name: str
    coco_id: int | str
    size: tuple[int, int] | str | None


def read_images(content: dict[str, Any], path: Path) -> dict[int | str, CocoImage]:
    """Images of a file by their ids; DataError where an id or a name is impossible or used twice."""
    found: dict[int | str, CocoImage] = {}
    named: set[str] = set()
    for place, entry in enumerate(entries(content, "images", path)):
        where = f"{path}: images[{place}]"
        key, name = number_or_text(entry.get("id")), entry.get("file_name")
        if key is None or key in found:
            raise DataError(
                f"{where}: id {told(entry.get('id'))!r} is missing or used twice; image ids must differ"
            )
        if not isinstance(name, str):
            raise DataError(f"{where}: has no file_name; expected the image's path below --image-dir")
        image_id = picture_id(name, where)
        if image_id in named:
            raise DataError(
                f"{where}: another image has the file_name {name!r} too, apart from its suffix; remove one"
            )
        named.add(image_id)
        own = entry["id"] if isinstance(entry["id"], str) else key
        found[key] = CocoImage(image_id, name, own, _size(entry, where))
    if not found:
        raise DataError(f"{path}: lists no images")
    return found


def _size(image: dict[str, Any], where: str) -> tuple[int, int] | str | None:
    height, width = image.get("height"), image.get("width")
    if height is None and width is None:
        return None
    size = whole_number(height), whole_number(width)
    if size[0] is None or size[1] is None or min(size[0], size[1]) < 1 or size[0] * size[1] > MAX_PIXELS:
        return (
            f"{where}: height {told(height)} and width {told(width)} are impossible; "
            f"expected whole pixels, at most {MAX_PIXELS} in all"
        )
    return size[0], size[1]


@dataclass(frozen=True)
class CocoIds:
    """COCO's own ids of the images in a file, by image id; `image_dir` is the folder that `file_name` starts from."""

    image_dir: Path
    ids: Mapping[str, int | str]

    def of(self, paths: Sequence[Path]) -> list[int | str]:
        """The file's ids of pictures; one that it does not list gets a number above all numbers of the file."""
        free = max((whole_number(key) or 0 for key in self.ids.values()), default=0)
        found: list[int | str] = []
        for path in paths:
            known = self._of_one(path)
            if known is None:
                known = free = max(free, 0) + 1
            found.append(known)
        return found

    def _of_one(self, path: Path) -> int | str | None:
        # The folder may be spelled in another way, or be reached through a link.
        for spelled in (os.path.abspath, os.path.realpath):
            try:
                below = Path(spelled(path)).relative_to(spelled(self.image_dir)).as_posix()
                return self.ids.get(picture_id(below, str(path)))
            except (ValueError, DataError):
                continue
        return None


@dataclass(frozen=True)
class Category:
    """A category's name, and its supercategory's ("" where there is none)."""

    name: str
    above: str


@dataclass(frozen=True)
class Classes:
    """The classes that the categories of a file become.

    Attributes:
        names: of the classes; all differ.
        category_ids: COCO's own id of each class.
        place_of: category id -> place in `names`.
    """

    names: tuple[str, ...]
    category_ids: tuple[int, ...]
    place_of: Mapping[int, int]


def read_categories(content: dict[str, Any], path: Path) -> dict[int, Category]:
    """Categories of a file in the order of their ids; DataError where an id or a name is impossible."""
    found: dict[int, Category] = {}
    for place, entry in enumerate(entries(content, "categories", path)):
        where = f"{path}: categories[{place}]"
        key, name, above = whole_number(entry.get("id")), entry.get("name"), entry.get("supercategory")
        if key is None or key < 0:
            raise DataError(f"{where}: id {told(entry.get('id'))!r} is not a whole number of 0 or more")
        if key in found:
            raise DataError(f"{where}: id {key} is used twice; category ids must differ")
        if not isinstance(name, str) or not name.strip() or has_control_character(name):
            raise DataError(f"{where}: name {told(name)!r} is not a class name; expected a string")
        found[key] = Category(name.strip(), above.strip() if isinstance(above, str) else "")
    if not found:
        raise DataError(f"{path}: has no categories; the class names come from there")
    return dict(sorted(found.items()))


def classes_of(
    categories: Mapping[int, Category],
    used: Collection[int],
    keep: Collection[str],
    path: Path,
    warnings: list[str],
) -> Classes:
    """Join categories of one name, or of one but for case and blanks, and leave out a root category.

    A root is a category without annotations that is above others, or whose name or place says that it is no class:
    tools write one in front of the classes. A class that merely has no annotation in this file stays, so that the
    files of one data set have the same classes.

    Args:
        categories: result of `read_categories`.
        used: ids of the categories that have annotations.
        keep: names that the user asked for; they are not left out.
        path: the file, for messages.
        warnings: a sentence is added for each kind of change.
    """
    roots = {key for key in categories if key not in used and _is_root(key, categories)}
    classes = {category.name for key, category in categories.items() if key not in roots}
    roots = {key for key in roots if categories[key].name in classes or categories[key].name not in keep}
    if roots:
        named = ", ".join(f"{categories[key].name!r} (id {key})" for key in sorted(roots))
        warnings.append(f"{path}: root category without annotations left out, as it is not a class: {named}")
    counts = Counter(category.name for key, category in categories.items() if key not in roots)
    spelling = one_spelling(counts, keep)
    ids_of: defaultdict[str, list[int]] = defaultdict(list)
    for key, category in categories.items():
        if key not in roots:
            ids_of[spelling[category.name]].append(key)
    for name, ids in ids_of.items():
        if len(ids) > 1:
            others = sorted({categories[key].name for key in ids} - {name})
            also = f" or {', '.join(map(repr, others))}" if others else ""
            warnings.append(
                f"{path}: categories {', '.join(map(str, ids))} are all called {name!r}{also}: joined into one class, "
                f"exported with id {ids[0]}" + ("; --classes with both keeps them apart" if also else "")
            )
    place_of = {key: place for place, ids in enumerate(ids_of.values()) for key in ids}
    return Classes(tuple(ids_of), tuple(ids[0] for ids in ids_of.values()), place_of)


def _is_root(key: int, categories: Mapping[int, Category]) -> bool:
    own = categories[key]
    others = [category for other, category in categories.items() if other != key]
    first = key == min(categories)
    return (
        own.name.lower() in _NO_CLASS
        or any(category.above == own.name for category in others)
        or (first and own.above.lower() == "none" and all(other.above.lower() != "none" for other in others))
    )
