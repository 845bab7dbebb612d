"""Pascal VOC folders: pictures with the classes their XML files name."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from irn_pipeline.datasets.orientation import orient
from irn_pipeline.datasets.voc_lists import choose_images, files_by_id, find_pictures, read_text, some
from irn_pipeline.datasets.voc_sizes import voc_size
from irn_pipeline.datasets.voc_xml import object_names
from irn_pipeline.errors import DataError
from irn_pipeline.structures import IGNORE, ImageRecord, ImageSet

VOC_CLASSES: tuple[str, ...] = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle"),
    *("bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person"),
    *("pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
"""Names of the 20 classes of Pascal VOC, in the order of their class ids."""
_BACKGROUND = ("_background_", "__background__", "background")
_IGNORED = ("__ignore__", "_ignore_")
_NO_CLASS = (*_BACKGROUND, *_IGNORED)
"""What labelme and CVAT call the labels 0 and 255 in their files of class names."""
_LABELMAP = re.compile(r"([^:]+):(\d+,\d+,\d+|):[^:]*:[^:]*")
_IGNORE_COLOUR = "224,224,192"


@dataclass(frozen=True)
class LoadedSet:
    """A data set and what was left out of it.

    Attributes:
        images: the pictures, in the order of the list.
        warnings: one sentence for each kind of thing the user may want to know.
        skipped: ids of the pictures that the data set names and that were left out.
        source: the image list or folder that names the pictures; empty where that is clear.
    """

    images: ImageSet
    warnings: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    source: str = ""


def read_class_names(path: Path) -> tuple[str, ...]:
    """Read a class names file: one name a line, in the order of the class ids.

    The names of the background and of ignored pixels that labelme2voc and CVAT write into it (`__ignore__`,
    `_background_`, `background`) are no classes: they are passed over before the first class, and those of ignored
    pixels behind the last one too.

    Args:
        path: text that `read_text` reads, blank lines are fine; or CVAT's labelmap.txt, `name:colour:parts:actions`.

    Returns:
        The names of the classes, in Unicode's composed form.

    Raises:
        DataError: the file is missing or no text, holds no name, a name twice, or more than 254 names, or names
            the background elsewhere.
    """
    lines = [unicodedata.normalize("NFC", line.strip()) for line in read_text(path).splitlines()]
    names = [line for line in lines if line]
    entries = [_LABELMAP.fullmatch(line) for line in names if not line.startswith("#")]
    if entries and all(entries):
        names = [entry[1].strip() for entry in entries if entry and entry[2] != _IGNORE_COLOUR]
    names = _without_ignored(names)
    if names and names[0].lower() in _BACKGROUND:
        names = _without_ignored(names[1:])
    # A class may be called background, but the other names are never given to one.
    misplaced = [name for name in names if name.lower() in _NO_CLASS and name.lower() != "background"]
    if misplaced:
        raise DataError(
            f"{path}: {misplaced[0]} stands between the classes, so that their numbers in the masks are unclear; "
            f"put it into the first line, or remove it"
        )
    check_class_names(names, str(path))
    return tuple(names)


def count_leading_names(path: Path, first: str) -> int:
    """Number of names in a class names file before the first class: of the background and of ignored pixels."""
    lines = [unicodedata.normalize("NFC", line.strip()) for line in read_text(path).splitlines()]
    names = [line for line in lines if line]
    return names.index(first) if first in names else 0  # a labelmap.txt has more than names in its lines


def _without_ignored(names: list[str]) -> list[str]:
    start = 1 if names[:1] and names[0].lower() in _IGNORED else 0
    return names[start:-1] if names[start:] and names[-1].lower() in _IGNORED else names[start:]


def load_voc(
    voc_root: Path, *, image_list: str | Path | None = None, class_names: Sequence[str] = VOC_CLASSES
) -> LoadedSet:
    """Find the pictures of a VOC folder and the classes their XML files name.

    Args:
        voc_root: the folder that holds JPEGImages and Annotations.
        image_list: a text file, or NAME for ImageSets/Segmentation/NAME.txt or ImageSets/Main/NAME.txt. None
            takes the first training list that exists (see `voc_lists`), else every picture of JPEGImages, sorted.
        class_names: C names; the place of a name is its class id. Objects marked difficult count too.

    Returns:
        The pictures that show at least one class, and notes on what was left out.

    Raises:
        DataError: the folder, the list, a picture or an XML file is missing or damaged, or an XML file names
            a class that is not among `class_names`.
    """
    check_class_names(class_names, "class_names")
    warnings: list[str] = []
    pictures = find_pictures(voc_root, warnings)
    image_ids, source = choose_images(voc_root, image_list, pictures, warnings)
    files = files_by_id(voc_root / "Annotations", (".xml",))
    missing = [image_id for image_id in image_ids if image_id not in files]
    if missing:
        raise DataError(
            f"{voc_root / 'Annotations'}: no XML file for {some(missing)} of {source}; "
            f"add them, or take the pictures out of the list"
        )
    known = {name: class_id for class_id, name in enumerate(class_names)}
    records: list[ImageRecord] = []
    skipped: list[str] = []
    not_objects: list[str] = []
    for image_id in image_ids:
        names = object_names(files[image_id][0])
        background = {name for name in names - known.keys() if name.lower() in _NO_CLASS}
        if background:
            not_objects.append(image_id)
        class_ids = _class_ids(names - background, known, files[image_id][0])
        if class_ids:
            records.append(ImageRecord(image_id, pictures[image_id], class_ids))
        else:
            skipped.append(image_id)
    if skipped:
        warnings.append(f"left out because their XML file names no object: {some(skipped)}")
    if not_objects:
        warnings.append(f"objects that are called background or ignored give no tag: {some(not_objects)}")
    if not records:
        raise DataError(
            f"{source}: none of its {len(image_ids)} pictures has an XML file that names an object"
        )
    seen = {class_id for record in records for class_id in record.class_ids}
    unseen = [name for class_id, name in enumerate(class_names) if class_id not in seen]
    if unseen:
        warnings.append(f"{source}: classes with no picture: {len(unseen)} ({', '.join(map(repr, unseen))})")
    turned = orient(records, voc_root, warnings, partial(voc_size, voc_root))
    return LoadedSet(ImageSet(tuple(class_names), turned), tuple(warnings), tuple(skipped), source)


def _class_ids(names: set[str], known: dict[str, int], path: Path) -> tuple[int, ...]:
    """Sorted class ids of the names in one XML file."""
    for name in sorted(names - known.keys()):
        near = difflib.get_close_matches(name[:80], known, n=1, cutoff=0.0)
        raise DataError(
            f"{path}: unknown class {name[:80]!r} (nearest known: {near[0]!r}); "
            f"correct it, or name the data set's classes with --class-names FILE"
        )
    return tuple(sorted(known[name] for name in names))


def check_class_names(names: Sequence[str], source: str) -> None:
    """Raise DataError, naming `source`, unless there are 1 to 254 names and all differ."""
    if not names:
        raise DataError(f"{source}: names no class; write one class name a line")
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise DataError(f"{source}: the class {twice[0][:80]!r} is named twice; class names must differ")
    if len(names) >= IGNORE:
        raise DataError(f"{source}: names {len(names)} classes; 254 at most fit into an 8-bit label")
