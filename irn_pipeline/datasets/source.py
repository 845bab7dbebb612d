"""The data set that every stage works on, described by the same flags."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from irn_pipeline.datasets.cityscapes import load_cityscapes
from irn_pipeline.datasets.coco import load_coco
from irn_pipeline.datasets.data_set import DataSet
from irn_pipeline.datasets.folder_csv import load_folder_csv
from irn_pipeline.datasets.lists import some
from irn_pipeline.datasets.pixels import kind_of
from irn_pipeline.datasets.voc import VOC_CLASSES, count_leading_names, load_voc, read_class_names
from irn_pipeline.errors import ConfigError
from irn_pipeline.structures import ImageSet

logger = logging.getLogger(__name__)
_MOST_CLASSES = 20
"""Classes that are all named with their numbers of pictures; of more, the commonest and the rarest."""
_CLASS_FILES = ("class_names.txt", "labelmap.txt", "labels.txt", "classes.txt")


@dataclass(frozen=True)
class Source:
    """Where pictures and their classes come from: one of --voc-root, --label-csv, --coco-json, --cityscapes-root."""

    voc_root: str | None = None
    """VOC folder that holds JPEGImages and Annotations, such as VOCdevkit/VOC2012."""
    image_dir: str | None = None
    """Folder of images, including subfolders; needs --label-csv or --coco-json."""
    label_csv: str | None = None
    """Table of tags as CSV, TSV or JSON lines (.jsonl): image,label[,label...], or one column of 0 and 1 per
    class."""
    coco_json: str | None = None
    """COCO instances file: its categories are used as tags, its masks for evaluation only."""
    cityscapes_root: str | None = None
    """Cityscapes folder with leftImg8bit and gtFine; its masks give the tags, and --labels truth trains on them."""
    classes: tuple[str | int, ...] = ()
    """Classes to use, in this order (not for --voc-root): a b, or a,b, or "big cat, small". Default: all."""
    image_list: str | None = None
    """Images to use: a text file of image ids, the name of a list in ImageSets, or train or val of Cityscapes.
    Default: the training list, or all images."""
    untagged: Literal["negatives", "skip"] = "negatives"
    """What to do with untagged images: use them as negatives (train_cam learns that they show none of the classes),
    or skip them."""
    channels: int | None = None
    """Channels to read of images that are not plain RGB, such as 5 of a multispectral TIFF; 4 reads the transparency of
    a TIFF as a channel. Default: those of the files, or 3 where they differ. The command of train_segmenter takes them
    from the run folder."""
    class_names: str | None = None
    """Text file with one class name per line, or CVAT's labelmap.txt. Default: class_names.txt or labelmap.txt in the
    VOC folder, or the 20 VOC classes."""


def load_source(source: Source) -> DataSet:
    """Read the lists and tags of a data set; skipped pictures are logged and counted.

    Raises:
        ConfigError: no data set was named, or several, or with flags that do not go together.
        DataError: it is missing or says something impossible.
    """
    _require_one(source)
    if source.cityscapes_root is not None:
        data = _load_cityscapes(source, Path(source.cityscapes_root))
    else:
        data = _load_table(source) if source.voc_root is None else _load_voc(source, Path(source.voc_root))
    if source.untagged == "skip" and data.negatives:
        ids = some(record.image_id for record in data.negatives)
        note = f"{data.origin}: images left out because they show none of the classes: {ids}"
        data = replace(data, negatives=(), warnings=(*data.warnings, note))
    found: list[str] = []
    kind = kind_of((*data.items, *data.negatives), source.channels, found)
    data = replace(data, kind=kind, warnings=(*data.warnings, *(f"{data.origin}: {one}" for one in found)))
    for warning in data.warnings:
        logger.warning("warning: %s", warning)
    if data.warnings:
        logger.warning(
            "%d warnings about the data set; %d images are used", len(data.warnings), len(data.items)
        )
    _log_classes(data)
    return data


def in_order(source: Source, class_names: Sequence[str]) -> Source:
    """The same data set with its classes in another order, unless the user or a VOC folder says which."""
    given = source.voc_root is not None or source.classes
    return source if given else replace(source, classes=tuple(class_names))


def _require_one(source: Source) -> None:
    tables = {"--label-csv": source.label_csv, "--coco-json": source.coco_json}
    roots = {"--voc-root": source.voc_root, "--cityscapes-root": source.cityscapes_root}
    given = [flag for flag, value in {**roots, **tables}.items() if value is not None]
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} each describe a data set; give one of them")
    if not given and source.image_dir is not None:
        raise ConfigError("--image-dir names images without tags; add --label-csv FILE or --coco-json FILE")
    if not given:
        raise ConfigError(
            "no data set: give --voc-root DIR (a folder with JPEGImages and Annotations), --cityscapes-root DIR, "
            "or --image-dir DIR with --label-csv FILE or --coco-json FILE; ./run_all.sh without "
            "--run-dir works on the demo set"
        )
    wrong: dict[str, object] = {"--class-names": source.class_names}
    remedy = "the classes come from the file, and --classes a,b,c picks and orders them"
    if source.voc_root is not None:
        wrong = {"--image-dir": source.image_dir, "--classes": source.classes or None}
        remedy = "a VOC folder holds its images in JPEGImages, and --class-names FILE names its classes"
    elif source.cityscapes_root is not None:
        wrong = {"--image-dir": source.image_dir, **wrong}
        remedy = "the images are those of leftImg8bit, and --classes car,person picks and orders the classes"
    elif source.image_dir is None:
        raise ConfigError(f"{given[0]} needs --image-dir DIR, the folder of its images")
    for flag, value in wrong.items():
        if value is not None:
            raise ConfigError(f"{flag} cannot be used with {given[0]}: {remedy}")


def _load_cityscapes(source: Source, root: Path) -> DataSet:
    data = load_cityscapes(root, source.image_list, classes=[str(name) for name in source.classes])
    return _listed(data, source.image_list)


def _load_voc(source: Source, root: Path) -> DataSet:
    files = [Path(source.class_names)] if source.class_names else [root / name for name in _CLASS_FILES]
    file = next((path for path in files if source.class_names or path.is_file()), None)
    names = VOC_CLASSES if file is None else read_class_names(file)
    data = load_voc(root, source.image_list, class_names=names)
    data = _listed(data, source.image_list)
    logger.info("class names: %s", file or "those of Pascal VOC")
    return replace(data, leading_names=0 if file is None else count_leading_names(file, names[0]))


def _listed(data: DataSet, image_list: str | None) -> DataSet:
    """The data set of a list; which one it is is logged."""
    others = "" if image_list else " (choose others with --image-list)"
    logger.info("images: %d of %s%s", len(data.items), data.listing, others)
    return replace(data, listed=image_list is not None)


def _load_table(source: Source) -> DataSet:
    load = load_folder_csv if source.coco_json is None else load_coco
    table, image_dir = Path(source.coco_json or source.label_csv or ""), Path(source.image_dir or "")
    whole = load(table, image_dir, classes=[str(name) for name in source.classes])
    if source.image_list is None:
        return whole
    chosen = whole.with_list(source.image_list)
    return replace(chosen, warnings=(*whole.warnings, *chosen.warnings))


def no_data_set() -> DataSet:
    """The data set of stages that need none: no picture, no class."""
    return DataSet(ImageSet((), ()), Path(), ())


def _log_classes(data: DataSet) -> None:
    """Say what classes there are in how many pictures, and which of them nothing can be learned about."""
    names, pictures = data.images.class_names, len(data.items)
    counts = Counter(class_id for record in data.items for class_id in record.class_ids)
    told = [f"{repr(name) if ',' in name else name} ({counts[place]})" for place, name in enumerate(names)]
    if len(told) > _MOST_CLASSES:
        order = sorted(range(len(names)), key=lambda class_id: -counts[class_id])
        ends = [*order[: _MOST_CLASSES // 2], *order[-_MOST_CLASSES // 4 :]]
        told = [told[class_id] for class_id in ends]
        told.insert(_MOST_CLASSES // 2, "...")
    without = f", {len(data.negatives)} without any (negatives)" if data.negatives else ""
    classes = f"{len(names)} class{'' if len(names) == 1 else 'es'}"
    logger.info(
        "%s: %d images with tags of %s%s: %s", data.origin, pictures, classes, without, ", ".join(told)
    )
    everywhere = [repr(name) for class_id, name in enumerate(names) if counts[class_id] == pictures]
    if data.negatives or not everywhere or (len(names) > 1 and (pictures == 1 or data.listed)):
        return
    logger.warning(
        "warning: %s: every image that is used shows %s: train_cam cannot learn from this where that is. Add "
        "images without it: rows with an empty label, or with 0 in all columns of classes; in a COCO file images "
        "without annotations; in a VOC folder XML files without objects. --untagged negatives, the default, uses them",
        data.origin,
        " and ".join(everywhere[:3]),
    )
