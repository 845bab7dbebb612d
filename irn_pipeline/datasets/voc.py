"""Pascal VOC folders: pictures with the classes their XML files name, and true masks for evaluation only."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from xml.parsers import expat

import numpy as np

from irn_pipeline.datasets.images import read_label
from irn_pipeline.datasets.orientation import orient
from irn_pipeline.datasets.voc_lists import choose_images, find_pictures, read_text, require_plain_id, some
from irn_pipeline.datasets.voc_sizes import voc_size
from irn_pipeline.errors import DataError
from irn_pipeline.foreign.files import regular_bytes
from irn_pipeline.structures import IGNORE, GroundTruth, ImageRecord, ImageSet, Instances

VOC_CLASSES: tuple[str, ...] = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle"),
    *("bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person"),
    *("pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
"""Names of the 20 classes of Pascal VOC, in the order of their class ids."""


@dataclass(frozen=True)
class LoadedSet:
    """A data set and what was left out of it.

    Attributes:
        images: the pictures, in the order of the list.
        warnings: one sentence for each kind of thing the user may want to know.
        skipped: ids of the pictures that the data set names and that were left out.
    """

    images: ImageSet
    warnings: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()


def read_class_names(path: Path) -> tuple[str, ...]:
    """Read a class names file: one name a line, in the order of the class ids.

    Args:
        path: UTF-8 text; a byte order mark, Windows line ends and blank lines are fine.

    Raises:
        DataError: the file is missing or no text, holds no name, a name twice, or more than 254 names.
    """
    names = tuple(line.strip() for line in read_text(path).splitlines() if line.strip())
    check_class_names(names, str(path))
    return names


def load_voc(
    voc_root: Path, *, image_list: str | Path | None = None, class_names: Sequence[str] = VOC_CLASSES
) -> LoadedSet:
    """Find the pictures of a VOC folder and the classes their XML files name.

    Args:
        voc_root: the folder that holds JPEGImages and Annotations.
        image_list: a text file, or NAME for ImageSets/Segmentation/NAME.txt or ImageSets/Main/NAME.txt. None
            takes the first that exists of Segmentation/train_aug.txt, Segmentation/train.txt and
            Main/trainval.txt, else every picture of JPEGImages, sorted.
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
    missing = [i for i in image_ids if not (voc_root / "Annotations" / f"{i}.xml").is_file()]
    if missing:
        raise DataError(
            f"{voc_root / 'Annotations'}: no XML file for {some(missing)} of {source}; "
            f"add them, or take the pictures out of the list"
        )
    known = {name: class_id for class_id, name in enumerate(class_names)}
    records: list[ImageRecord] = []
    skipped: list[str] = []
    for image_id in image_ids:
        class_ids = _read_tags(voc_root / "Annotations" / f"{image_id}.xml", known)
        if class_ids:
            records.append(ImageRecord(image_id, pictures[image_id], class_ids))
        else:
            skipped.append(image_id)
    if skipped:
        warnings.append(f"left out because their XML file names no object: {some(skipped)}")
    if not records:
        raise DataError(
            f"{source}: none of its {len(image_ids)} pictures has an XML file that names an object"
        )
    turned = orient(records, voc_root, warnings, partial(voc_size, voc_root))
    return LoadedSet(ImageSet(tuple(class_names), turned), tuple(warnings), tuple(skipped))


def ground_truth_ids(voc_root: Path) -> tuple[str, ...]:
    """Sorted ids of the pictures that have both a class and an object mask; empty when there are none."""
    return tuple(
        sorted(_png_stems(voc_root / "SegmentationClass") & _png_stems(voc_root / "SegmentationObject"))
    )


def load_ground_truth(
    voc_root: Path, image_id: str, *, num_classes: int = len(VOC_CLASSES)
) -> GroundTruth | None:
    """Read the true masks of one picture from SegmentationClass and SegmentationObject.

    An object's class is the most frequent label of its pixels, background and 255 not counted. An object all
    of whose pixels lack a class is ignored, like pixels of label 255 in either file.

    Args:
        voc_root: the folder that holds both.
        image_id: file stem.
        num_classes: C; larger labels are refused.

    Returns:
        Label and instances (R objects in the order of their ids), or None when either file is missing.

    Raises:
        DataError: a file is unreadable, the two have different sizes, or a label is above C.
    """
    require_plain_id(image_id, voc_root)
    class_path = voc_root / "SegmentationClass" / f"{image_id}.png"
    object_path = voc_root / "SegmentationObject" / f"{image_id}.png"
    if not (class_path.is_file() and object_path.is_file()):
        return None
    label, objects = read_label(class_path), read_label(object_path)
    if label.shape != objects.shape:
        raise DataError(
            f"{object_path}: {objects.shape[0]}x{objects.shape[1]} pixels, but the class mask has "
            f"{label.shape[0]}x{label.shape[1]}; the two must belong to the same picture"
        )
    # counts[o, c]: pixels of object o that have label c, from one pass over the picture.
    joint = objects.astype(np.intp).ravel() * 256 + label.ravel()
    counts = np.bincount(joint, minlength=256 * 256).reshape(256, 256)
    beyond = np.flatnonzero(counts[:, num_classes + 1 : IGNORE].sum(0)) + num_classes + 1
    if len(beyond):
        raise DataError(
            f"{class_path}: label {beyond[0]} is beyond the {num_classes} classes; "
            f"name every class of the data set with --class-names FILE"
        )
    votes = counts[:, 1 : num_classes + 1]
    present = np.flatnonzero(counts.sum(1))
    present = present[(present > 0) & (present < IGNORE)]
    object_ids = present[votes[present].sum(1) > 0]
    instances = Instances(
        np.ones(len(object_ids), np.float32),
        objects[None] == object_ids[:, None, None],
        votes[object_ids].argmax(1).astype(np.int64),
    )
    unusable = np.setdiff1d(present, object_ids)
    ignore = (label == IGNORE) | (objects == IGNORE) | np.isin(objects, unusable)
    return GroundTruth(label, instances, ignore)


def _read_tags(path: Path, known: dict[str, int]) -> tuple[int, ...]:
    """Sorted class ids of the objects (not of their parts, which have names too) in one XML file."""
    names: list[list[str]] = []
    open_tags: list[str] = []

    def inside_name() -> bool:
        return len(open_tags) == 3 and open_tags[1:] == ["object", "name"]

    def start(tag: str, _: object) -> None:
        open_tags.append(tag)
        if inside_name():
            names.append([])

    def text(data: str) -> None:
        if inside_name():
            names[-1].append(data)

    def refuse(*_: object) -> None:
        raise DataError(
            f"{path}: has a DOCTYPE, which can hide an entity bomb; remove that line from the file"
        )

    parser = expat.ParserCreate()
    parser.StartElementHandler = start
    parser.EndElementHandler = lambda _: open_tags.pop()
    parser.CharacterDataHandler = text
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(regular_bytes(path), True)
    except (expat.ExpatError, OSError, LookupError, ValueError) as error:
        raise DataError(f"{path}: not a readable XML file ({error}); copy or write it again") from None
    stripped = {"".join(parts).strip() for parts in names}
    for name in sorted(stripped - known.keys()):
        near = difflib.get_close_matches(name[:80], known, n=1, cutoff=0.0)
        raise DataError(
            f"{path}: unknown class {name[:80]!r} (nearest known: {near[0]!r}); "
            f"correct it, or name the data set's classes with --class-names FILE"
        )
    return tuple(sorted(known[name] for name in stripped))


def _png_stems(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("*.png")} if folder.is_dir() else set()


def check_class_names(names: Sequence[str], source: str) -> None:
    """Raise DataError, naming `source`, unless there are 1 to 254 names and all differ."""
    if not names:
        raise DataError(f"{source}: names no class; write one class name a line")
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise DataError(f"{source}: the class {twice[0][:80]!r} is named twice; class names must differ")
    if len(names) >= IGNORE:
        raise DataError(f"{source}: names {len(names)} classes; 254 at most fit into an 8-bit label")
