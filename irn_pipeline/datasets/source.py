"""The data set that every stage works on, described by the same flags."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from irn_pipeline.datasets.coco import CocoSet, load_coco
from irn_pipeline.datasets.folder_csv import load_folder_csv
from irn_pipeline.datasets.images import read_image
from irn_pipeline.datasets.picture_folder import restrict
from irn_pipeline.datasets.voc import (
    VOC_CLASSES,
    LoadedSet,
    count_leading_names,
    load_voc,
    read_class_names,
)
from irn_pipeline.datasets.voc_truth import VocTruths
from irn_pipeline.engine.parallel import prefetch
from irn_pipeline.engine.stage import Job
from irn_pipeline.errors import ConfigError, DataError
from irn_pipeline.structures import GroundTruth, ImageRecord, ImageSet

logger = logging.getLogger(__name__)
_MOST_CLASSES = 20
"""Classes that are all named with their numbers of pictures; of more, the commonest and the rarest."""
_CLASS_FILES = ("class_names.txt", "labelmap.txt")


@dataclass(frozen=True)
class Source:
    """Where pictures and their classes come from: one of --voc-root, --label-csv and --coco-json."""

    voc_root: str | None = None
    """Folder with JPEGImages and Annotations (a VOC devkit's VOC2012)."""
    image_dir: str | None = None
    """Folder of the pictures, with subfolders, for --label-csv or --coco-json."""
    label_csv: str | None = None
    """Table of tags: image,label[,label...] or columns of 0 and 1, as CSV, TSV or JSON lines (.jsonl)."""
    coco_json: str | None = None
    """COCO instances file; its categories are the tags, its masks are for evaluation only."""
    classes: tuple[str | int, ...] = ()
    """Classes of --label-csv or --coco-json to use, in this order: a b, or a,b, or "big cat, small"; default: all."""
    image_list: str | None = None
    """List of image ids: a text file, or the name of a list in ImageSets; by default VOC's training list, else all."""
    class_names: str | None = None
    """Text file with one class name a line, or CVAT's labelmap.txt; by default class_names.txt or labelmap.txt in
    the VOC root, else the 20 VOC classes."""


@dataclass(frozen=True)
class DataSet:
    """Pictures with their classes and, for evaluation, their true masks.

    Attributes:
        images: the pictures and the class names.
        origin: the folder or file that the tags come from, for messages.
        category_ids: category id of every class, for COCO exports; 1..C unless the data set has its own.
        load_list: image list -> its pictures.
        load_truth: image id -> its true masks.
        listed: whether the pictures were named by an image list.
        coco: the COCO file that the data set was read from, if it was.
        leading_names: names of the background before the classes, which versions before 0.2 took for classes.
    """

    images: ImageSet
    origin: Path
    category_ids: tuple[int, ...]
    load_list: Callable[[str | None], LoadedSet]
    load_truth: Callable[[str], GroundTruth | None]
    listed: bool = False
    coco: CocoSet | None = None
    leading_names: int = 0

    @property
    def items(self) -> Sequence[ImageRecord]:
        """The pictures, in order."""
        return self.images.records

    @property
    def identity(self) -> Sequence[str]:
        """The class names."""
        return self.images.class_names

    def ground_truth(self, image_id: str) -> GroundTruth | None:
        """True masks of a picture; None where there are none."""
        return self.load_truth(image_id)

    def coco_image_ids(self, paths: Sequence[Path]) -> Sequence[int | str]:
        """Image ids of pictures for COCO exports: those of the COCO file where it lists them, else numbers."""
        return range(1, len(paths) + 1) if self.coco is None else self.coco.image_ids_of(paths)

    def readable(self, job: Job[Any, DataSet]) -> ImageSet:
        """The pictures that decode; each of the others is logged with the reason, once a command, and counted.

        Training stages ask this first, because they cannot skip a picture in the middle of a batch.

        Raises:
            DataError: not one picture can be read.
        """
        good: list[ImageRecord] = []
        found = prefetch(_problem, self.images.records, job.execution.worker_count)
        for record, problem in zip(self.images.records, found, strict=True):
            if problem is None:
                good.append(record)
            elif job.is_news(record.image_id, problem):
                logger.warning("%s: left out: %s", record.image_id, problem)
        bad = len(self.images) - len(good)
        if not good:
            raise DataError(f"{self.origin}: none of its {bad} pictures can be read; see the messages above")
        if bad:
            logger.warning(
                "%d of %d pictures cannot be read and are left out (named above)", bad, len(self.images)
            )
        return ImageSet(self.images.class_names, tuple(good))

    def with_list(self, image_list: str) -> DataSet:
        """The same data set with another list of pictures."""
        return replace(self, images=self.load_list(image_list).images, listed=True)


def _problem(record: ImageRecord) -> str | None:
    try:
        read_image(record.path, record.orientation)
    except DataError as error:
        return str(error)
    return None


def load_source(source: Source) -> DataSet:
    """Read the lists and tags of a data set; skipped pictures are logged and counted.

    Raises:
        ConfigError: no data set was named, or several, or with flags that do not go together.
        DataError: it is missing or says something impossible.
    """
    _require_one(source)
    if source.label_csv is not None:
        data = _load_csv(source, Path(source.label_csv))
    elif source.coco_json is not None:
        data = _load_coco(source, Path(source.coco_json))
    else:
        data = _load_voc(source, Path(source.voc_root or ""))
    data = replace(data, listed=source.image_list is not None)
    _log_classes(data)
    return data


def _require_one(source: Source) -> None:
    tables = {"--label-csv": source.label_csv, "--coco-json": source.coco_json}
    described = {"--voc-root": source.voc_root, **tables}
    given = [flag for flag, value in described.items() if value is not None]
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} each describe a data set; give one of them")
    if not given and source.image_dir is not None:
        raise ConfigError("--image-dir names pictures without tags; add --label-csv FILE or --coco-json FILE")
    if not given:
        raise ConfigError(
            "no data set: give --voc-root DIR (a folder with JPEGImages and Annotations), "
            "or --image-dir DIR with --label-csv FILE or --coco-json FILE; ./run_all.sh without "
            "--run-dir works on the demo set"
        )
    if source.voc_root is not None:
        wrong = {"--image-dir": source.image_dir, "--classes": source.classes or None}
        remedy = "a VOC folder holds its pictures in JPEGImages, and --class-names FILE names its classes"
    else:
        if source.image_dir is None:
            raise ConfigError(f"{given[0]} needs --image-dir DIR, the folder of its pictures")
        wrong = {"--class-names": source.class_names}
        remedy = "the classes come from the file, and --classes a,b,c picks and orders them"
    for flag, value in wrong.items():
        if value is not None:
            raise ConfigError(f"{flag} does not go with {given[0]}: {remedy}")


def _load_voc(source: Source, root: Path) -> DataSet:
    files = [Path(source.class_names)] if source.class_names else [root / name for name in _CLASS_FILES]
    file = next((path for path in files if source.class_names or path.is_file()), None)
    names = VOC_CLASSES if file is None else read_class_names(file)
    loaded = load_voc(root, image_list=source.image_list, class_names=names)
    others = "" if source.image_list else " (choose others with --image-list)"
    logger.info("pictures: %d of %s%s", len(loaded.images), loaded.source, others)
    logger.info("class names: %s", file or "those of Pascal VOC")
    _log_warnings(loaded.warnings, len(loaded.images))
    return DataSet(
        loaded.images,
        root,
        tuple(range(1, len(names) + 1)),
        partial(_voc_list, root, names),
        VocTruths.find(root, len(names)).ground_truth,
        leading_names=0 if file is None else count_leading_names(file, names[0]),
    )


def _voc_list(root: Path, names: Sequence[str], image_list: str | None) -> LoadedSet:
    return load_voc(root, image_list=image_list, class_names=names)


def _load_csv(source: Source, path: Path) -> DataSet:
    whole = load_folder_csv(
        path, Path(source.image_dir or ""), classes=[str(name) for name in source.classes]
    )
    ids = tuple(range(1, whole.images.num_classes + 1))
    return _with_list(
        DataSet(whole.images, path, ids, partial(restrict, whole, path), _no_truth), source, whole
    )


def _load_coco(source: Source, path: Path) -> DataSet:
    coco = load_coco(path, Path(source.image_dir or ""), classes=[str(name) for name in source.classes])
    whole, truth = coco.loaded, coco.truths.ground_truth
    load_list = partial(restrict, whole, path)
    data = DataSet(whole.images, path, coco.category_ids, load_list, truth, coco=coco)
    return _with_list(data, source, whole)


def _with_list(data: DataSet, source: Source, whole: LoadedSet) -> DataSet:
    chosen = data.load_list(source.image_list)
    _log_warnings((*whole.warnings, *chosen.warnings), len(chosen.images))
    return replace(data, images=chosen.images)


def no_data_set() -> DataSet:
    """The data set of stages that need none: no picture, no class."""
    nothing = ImageSet((), ())
    return DataSet(nothing, Path(), (), lambda _: LoadedSet(nothing, ()), _no_truth)


def _no_truth(image_id: str) -> GroundTruth | None:
    return None


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
    logger.info("%s: pictures: %d, classes: %d: %s", data.origin, pictures, len(names), ", ".join(told))
    everywhere = [repr(name) for class_id, name in enumerate(names) if counts[class_id] == pictures]
    if everywhere and (len(names) == 1 or (pictures > 1 and not data.listed)):
        logger.warning(
            "warning: %s: every picture that is used shows %s (those without a class are left out): train_cam cannot "
            "learn from this where that is. Add pictures without it and give them a tag of their own: rows with the "
            "label 'other', or in a table of 0 and 1 a column 'other' with 1 where the classes have 0",
            data.origin,
            " and ".join(everywhere[:3]),
        )


def _log_warnings(warnings: Sequence[str], count: int) -> None:
    for warning in warnings:
        logger.warning("warning: %s", warning)
    if warnings:
        logger.warning("%d warnings about the data set; %d pictures are used", len(warnings), count)
