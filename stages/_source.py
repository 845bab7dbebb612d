"""The data set that every stage works on, described by the same flags."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from irn_pipeline.datasets.voc import VOC_CLASSES, load_ground_truth, load_voc, read_class_names
from irn_pipeline.errors import ConfigError
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

    def with_list(self, image_list: str) -> DataSet:
        """The same data set with another list of pictures."""
        loaded = load_voc(self.voc_root, image_list=image_list, class_names=self.images.class_names)
        return DataSet(loaded.images, self.voc_root)


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
