"""What every stage works on: pictures with their classes and, for evaluation, their true masks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from irn_pipeline.datasets.coco_entries import CocoIds
from irn_pipeline.datasets.pixels import RGB, PixelKind, read_pixels, settle_scale
from irn_pipeline.engine.execution import Execution
from irn_pipeline.engine.parallel import prefetch
from irn_pipeline.engine.provenance import fingerprint_of
from irn_pipeline.engine.ranks import Ranks
from irn_pipeline.engine.stage import Job
from irn_pipeline.engine.store import RunFolder
from irn_pipeline.errors import DataError
from irn_pipeline.ops.cutouts import CutTruth
from irn_pipeline.structures import GroundTruth, ImageRecord, ImageSet, PixelScale

logger = logging.getLogger(__name__)


def no_list(image_list: str) -> DataSet:
    """The lists of a data set that has none."""
    raise DataError(f"{image_list}: this data set does not take an image list")


def no_truth(image_id: str) -> GroundTruth | None:
    """The true masks of a data set that has none."""
    return None


@dataclass(frozen=True)
class DataSet:
    """Pictures with their classes and, for evaluation, their true masks.

    Attributes:
        images: the pictures with tags in the order of their list or file, and the class names.
        origin: the folder or file that the tags come from, for messages.
        category_ids: category id of every class, for COCO exports; 1..C unless the data set has its own.
        load_list: image list -> the same data set with the pictures that it names.
        load_truth: image id -> its true masks.
        load_cut_truth: the same cut out, where there is a faster way than through whole masks.
        negatives: the pictures that show none of the classes. Trainings may use them, all other stages do not.
        warnings: one sentence for each kind of thing the user may want to know.
        skipped: ids of the pictures that are named and were left out.
        listing: the image list or folder that names the pictures; empty where that is clear.
        listed: whether the pictures were named by an image list of the user.
        coco: the ids in the COCO file that the data set was read from, if it was.
        leading_names: names of the background before the classes, which versions before 0.2 took for classes.
        kind: how its pictures are read.
        scale: what their values are measured by, once a run folder is known; None for 8-bit RGB.
    """

    images: ImageSet
    origin: Path
    category_ids: tuple[int, ...]
    load_list: Callable[[str], DataSet] = no_list
    load_truth: Callable[[str], GroundTruth | None] = no_truth
    load_cut_truth: Callable[[str], CutTruth | None] | None = None
    negatives: tuple[ImageRecord, ...] = ()
    warnings: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    listing: str = ""
    listed: bool = False
    coco: CocoIds | None = None
    leading_names: int = 0
    kind: PixelKind = RGB
    scale: PixelScale | None = None

    @property
    def items(self) -> Sequence[ImageRecord]:
        """The pictures with tags, in order."""
        return self.images.records

    @property
    def identity(self) -> Sequence[str]:
        """The class names."""
        return self.images.class_names

    def ground_truth(self, image_id: str) -> GroundTruth | None:
        """True masks of a picture; None where there are none."""
        return self.load_truth(image_id)

    def cut_truth(self, image_id: str) -> CutTruth | None:
        """The same as a training reads them."""
        if self.load_cut_truth is not None:
            return self.load_cut_truth(image_id)
        truth = self.load_truth(image_id)
        return None if truth is None else CutTruth.of(truth)

    def coco_image_ids(self, paths: Sequence[Path]) -> Sequence[int | str]:
        """Image ids of pictures for COCO exports: those of the COCO file where it lists them, else numbers."""
        return range(1, len(paths) + 1) if self.coco is None else self.coco.of(paths)

    def with_list(self, image_list: str) -> DataSet:
        """The same data set with another list of pictures."""
        chosen = replace(
            self.load_list(image_list), listed=True, leading_names=self.leading_names, kind=self.kind
        )
        return chosen.with_scale(self.scale)

    def with_scale(self, scale: PixelScale | None) -> DataSet:
        """The same pictures, read by a scale."""
        records, negatives = (
            tuple(replace(record, scale=scale) for record in some) for some in (self.items, self.negatives)
        )
        return replace(self, images=replace(self.images, records=records), negatives=negatives, scale=scale)

    def in_run(self, run: RunFolder, execution: Execution, ranks: Ranks, *, write: bool) -> DataSet:
        """The same pictures, read as all commands on a run folder read them (`pixels.settle_scale`)."""
        if not self.items:
            return self
        records = (*self.items, *self.negatives)
        return self.with_scale(
            ranks.from_first(lambda: settle_scale(self.kind, records, run, execution, write=write))
        )

    @property
    def channels(self) -> int:
        """Channels that networks see."""
        return 3 if self.scale is None else self.scale.channels

    @property
    def pixels(self) -> str:
        """The scale in short, for the records of stages; empty for 8-bit RGB."""
        return "" if self.scale is None else f"{self.channels} channels {fingerprint_of(asdict(self.scale))}"

    def readable(self, job: Job[Any, DataSet], *, negatives: bool = False) -> ImageSet:
        """The pictures that decode; each of the others is logged with the reason, once a command, and counted.

        Training stages ask this first, because they cannot skip a picture in the middle of a batch.

        Args:
            job: of the stage.
            negatives: whether pictures without tags, whose `class_ids` are empty, come behind the others.

        Raises:
            DataError: not one picture can be read.
        """
        wanted = (*self.items, *self.negatives) if negatives else self.images.records
        good: list[ImageRecord] = []
        found = prefetch(_problem, wanted, job.execution.worker_count)
        for record, problem in zip(wanted, found, strict=True):
            if problem is None:
                good.append(record)
            elif job.is_news(record.image_id, problem):
                logger.warning("%s: left out: %s", record.image_id, problem)
        bad = len(wanted) - len(good)
        if not any(record.class_ids for record in good):
            raise DataError(f"{self.origin}: none of its {bad} images can be read; see the messages above")
        if bad:
            logger.warning("%d of %d images cannot be read and are left out (named above)", bad, len(wanted))
        return ImageSet(self.images.class_names, tuple(good))


def _problem(record: ImageRecord) -> str | None:
    try:
        read_pixels(record)
    except DataError as error:
        return str(error)
    return None
