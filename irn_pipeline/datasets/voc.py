"""Pascal VOC folders: pictures with the classes their XML files name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from functools import partial
from itertools import dropwhile
from pathlib import Path

from irn_pipeline.datasets.data_set import DataSet
from irn_pipeline.datasets.images import read_image_size
from irn_pipeline.datasets.lists import check_class_names, read_lines, some
from irn_pipeline.datasets.orientation import orient
from irn_pipeline.datasets.voc_folder import choose_images, files_by_id, find_pictures, read_annotation
from irn_pipeline.datasets.voc_truth import VocTruths
from irn_pipeline.errors import DataError
from irn_pipeline.ops.orientation import UPRIGHT
from irn_pipeline.structures import ImageRecord, ImageSet

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


def read_class_names(path: Path) -> tuple[str, ...]:
    """Read a class names file: one name a line, in the order of the class ids, or CVAT's labelmap.txt.

    The names of the background and of ignored pixels that labelme2voc and CVAT write into it (`__ignore__`,
    `_background_`, `background`) are no classes: they are passed over before the first class, and those of ignored
    pixels behind the last one too.

    Raises:
        DataError: the file is missing or no text, holds no name, a name twice, or more than 254 names, or names
            the background elsewhere.
    """
    # A comment stands in front; behind, it may be the name of a class.
    names = list(dropwhile(lambda line: line.startswith("# "), read_lines(path)))
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
            f"{path}: {misplaced[0]} is between the classes, which makes their numbers in the masks ambiguous; "
            f"move it to the first line, or remove it"
        )
    check_class_names(names, str(path))
    return tuple(names)


def count_leading_names(path: Path, first: str) -> int:
    """Number of names in a class names file before the first class: of the background and of ignored pixels."""
    names = read_lines(path)
    return names.index(first) if first in names else 0  # a labelmap.txt has more than names in its lines


def _without_ignored(names: list[str]) -> list[str]:
    start = 1 if names[:1] and names[0].lower() in _IGNORED else 0
    return names[start:-1] if names[start:] and names[-1].lower() in _IGNORED else names[start:]


def load_voc(
    voc_root: Path, image_list: str | Path | None = None, *, class_names: Sequence[str] = VOC_CLASSES
) -> DataSet:
    """Find the pictures of a VOC folder and the classes their XML files name.

    Args:
        voc_root: the folder that holds JPEGImages and Annotations.
        image_list: a text file, or NAME for ImageSets/Segmentation/NAME.txt or ImageSets/Main/NAME.txt. None
            takes the first training list that exists (see `voc_folder`), else every picture of JPEGImages, sorted.
        class_names: C names; the place of a name is its class id. Objects marked difficult count too.

    Returns:
        The pictures of the list, those without any object as `negatives`, and notes on what was left out.

    Raises:
        DataError: the folder, the list, a picture or an XML file is missing or damaged, or an XML file names
            a class that is not among `class_names`.
    """
    check_class_names(class_names, "class_names")
    warnings: list[str] = []
    pictures = find_pictures(voc_root, warnings)
    image_ids, listing = choose_images(voc_root, image_list, pictures, warnings)
    files = files_by_id(voc_root / "Annotations", (".xml",))
    missing = [image_id for image_id in image_ids if image_id not in files]
    if missing:
        raise DataError(
            f"{voc_root / 'Annotations'}: no XML file for {some(missing)} of {listing}; "
            f"add them, or take the images out of the list"
        )
    truths = VocTruths.find(voc_root, len(class_names))
    unread = truths.unread_masks(voc_root)
    known = {name: class_id for class_id, name in enumerate(class_names)}
    records: list[ImageRecord] = []
    sizes: dict[str, tuple[int, int]] = {}
    skipped: list[str] = []
    not_objects: list[str] = []
    for image_id in image_ids:
        annotation = read_annotation(files[image_id][0])
        background = {name for name in annotation.names - known.keys() if name.lower() in _NO_CLASS}
        if background:
            not_objects.append(image_id)
        class_ids = _class_ids(annotation.names - background, known, files[image_id][0])
        if background and not class_ids:
            skipped.append(image_id)
            continue
        records.append(ImageRecord(image_id, pictures[image_id], class_ids))
        if annotation.size:
            sizes[image_id] = annotation.size
    if unread:
        warnings.append(unread)
    if not_objects:
        warnings.append(f"objects that are called background or ignored give no tag: {some(not_objects)}")
    if skipped:
        warnings.append(f"left out because they show nothing else: {some(skipped)}")
    if not any(record.class_ids for record in records):
        raise DataError(
            f"{listing}: none of its {len(image_ids)} images has an XML file that names an object"
        )
    seen = {class_id for record in records for class_id in record.class_ids}
    unseen = [name for class_id, name in enumerate(class_names) if class_id not in seen]
    if unseen:
        warnings.append(f"{listing}: classes with no image: {len(unseen)} ({', '.join(map(repr, unseen))})")
    upright = orient(
        records,
        voc_root,
        warnings,
        lambda record: sizes.get(record.image_id) or _mask_size(truths, record.image_id),
    )
    return DataSet(
        images=ImageSet(tuple(class_names), tuple(record for record in upright if record.class_ids)),
        origin=voc_root,
        category_ids=tuple(range(1, len(class_names) + 1)),
        load_list=partial(load_voc, voc_root, class_names=class_names),
        load_truth=truths.ground_truth,
        negatives=tuple(record for record in upright if not record.class_ids),
        warnings=tuple(warnings),
        skipped=tuple(skipped),
        listing=listing,
    )


def _mask_size(truths: VocTruths, image_id: str) -> tuple[int, int] | None:
    try:
        return read_image_size(truths.class_masks[image_id][0], UPRIGHT)
    except (KeyError, DataError):
        return None


def _class_ids(names: set[str], known: dict[str, int], path: Path) -> tuple[int, ...]:
    """Sorted class ids of the names in one XML file."""
    for name in sorted(names - known.keys()):
        near = difflib.get_close_matches(name[:80], known, n=1, cutoff=0.0)
        raise DataError(
            f"{path}: unknown class {name[:80]!r} (nearest known: {near[0]!r}); "
            f"correct it, or name the data set's classes with --class-names FILE"
        )
    return tuple(sorted(known[name] for name in names))
