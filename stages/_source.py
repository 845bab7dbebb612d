"""The data set that every stage works on, described by the same flags."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from irn_pipeline.datasets.images import read_image
from irn_pipeline.datasets.voc import VOC_CLASSES, load_ground_truth, load_voc, read_class_names
from irn_pipeline.errors import ConfigError, DataError
from irn_pipeline.runtime.execution import Execution
from irn_pipeline.runtime.parallel import prefetch
from irn_pipeline.structures import GroundTruth, ImageRecord, ImageSet

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """Where pictures and their classes come from."""

    voc_root: str | None = None
    """Folder with JPEGImages and Annotations (a VOC devkit's VOC2012)."""
    image_list: str | None = None
    """List of image ids: a text file, or the name of a list in ImageSets; by default the training list."""
    class_names: str | None = None
    """Text file with one class name a line; by default class_names.txt in the VOC root, else the 20 VOC classes."""


@dataclass(frozen=True)
class DataSet:
    """Pictures with their classes and, for evaluation, their true masks."""

    images: ImageSet
    voc_root: Path

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
        return load_ground_truth(self.voc_root, image_id, num_classes=self.images.num_classes)

    def readable(self, execution: Execution) -> ImageSet:
        """The pictures that decode; each of the others is logged with the reason, and counted.

        Training stages ask this first, because they cannot skip a picture in the middle of a batch.

        Raises:
            DataError: not one picture can be read.
        """
        good: list[ImageRecord] = []
        found = prefetch(_problem, self.images.records, execution.worker_count)
        for record, problem in zip(self.images.records, found, strict=True):
            if problem is None:
                good.append(record)
            else:
                logger.warning("%s: left out: %s", record.image_id, problem)
        bad = len(self.images) - len(good)
        if not good:
            raise DataError(
                f"{self.voc_root}: none of its {bad} pictures can be read; see the messages above"
            )
        if bad:
            logger.warning("%d of %d pictures cannot be read and are left out", bad, len(self.images))
        return ImageSet(self.images.class_names, tuple(good))

    def with_list(self, image_list: str) -> DataSet:
        """The same data set with another list of pictures."""
        loaded = load_voc(self.voc_root, image_list=image_list, class_names=self.images.class_names)
        return DataSet(loaded.images, self.voc_root)


def _problem(record: ImageRecord) -> str | None:
    try:
        read_image(record.path)
    except DataError as error:
        return str(error)
    return None


def load_source(source: Source) -> DataSet:
    """Read the lists and tags of a data set; skipped pictures are logged and counted.

    Raises:
        ConfigError: no data set was named.
        DataError: it is missing or says something impossible.
    """
    if source.voc_root is None:
        raise ConfigError("no data set: give --voc-root DIR (a folder with JPEGImages and Annotations)")
    root = Path(source.voc_root)
    names: Sequence[str] = VOC_CLASSES
    if source.class_names is not None:
        names = read_class_names(Path(source.class_names))
    elif (root / "class_names.txt").is_file():
        names = read_class_names(root / "class_names.txt")
    loaded = load_voc(root, image_list=source.image_list, class_names=names)
    for warning in loaded.warnings:
        logger.warning("warning: %s", warning)
    if loaded.warnings:
        logger.warning(
            "%d warnings about the data set; %d pictures are used", len(loaded.warnings), len(loaded.images)
        )
    return DataSet(loaded.images, root)
