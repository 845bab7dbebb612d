"""Categories of a COCO file, and the classes that they become."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from irn_pipeline.datasets.coco_values import entries, told, whole_number
from irn_pipeline.datasets.picture_scan import has_control_character
from irn_pipeline.errors import DataError

_NO_CLASS = frozenset(
    {"background", "_background_", "__background__", "__ignore__", "_ignore_", "none", "root"}
)


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
    """Categories of a file by their ids, in the order of the ids.

    Raises:
        DataError: there is none, an id is impossible or used twice, or a name is no text.
    """
    found: dict[int, Category] = {}
    for place, entry in enumerate(entries(content, "categories", path)):
        category_id, name, above = (
            whole_number(entry.get("id")),
            entry.get("name"),
            entry.get("supercategory"),
        )
        where = f"{path}: categories[{place}]"
        if category_id is None or category_id < 0:
            raise DataError(f"{where}: id {told(entry.get('id'))!r} is no whole number from 0")
        if category_id in found:
            raise DataError(f"{where}: id {category_id} is used twice; category ids must differ")
        if not isinstance(name, str) or not name.strip() or has_control_character(name):
            raise DataError(f"{where}: name {told(name)!r} is no class name; expected a text")
        found[category_id] = Category(name.strip(), above.strip() if isinstance(above, str) else "")
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
    """Join categories of one name, and leave out a root category.

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
        warnings.append(f"{path}: root category without annotations left out, it is no class: {named}")
    ids_of: defaultdict[str, list[int]] = defaultdict(list)
    for key, category in categories.items():
        if key not in roots:
            ids_of[category.name].append(key)
    for name, ids in ids_of.items():
        if len(ids) > 1:
            warnings.append(
                f"{path}: categories {', '.join(map(str, ids))} are all called {name!r}: joined into one class, "
                f"exported with id {ids[0]}"
            )
    ordered = sorted((ids, name) for name, ids in ids_of.items())
    return Classes(
        tuple(name for _, name in ordered),
        tuple(ids[0] for ids, _ in ordered),
        {key: place for place, (ids, _) in enumerate(ordered) for key in ids},
    )


def _is_root(key: int, categories: Mapping[int, Category]) -> bool:
    own = categories[key]
    others = [category for other, category in categories.items() if other != key]
    first = key == min(categories)
    return (
        own.name.lower() in _NO_CLASS
        or any(category.above == own.name for category in others)
        or (first and own.above.lower() == "none" and all(other.above.lower() != "none" for other in others))
    )
