"""Hand the synthesized labels to other programs: COCO JSON, or PNGs as in Pascal VOC."""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from irn_pipeline.artifacts import CAM_NETWORK, INSTANCE_LABEL, SEMANTIC_LABEL
from irn_pipeline.datasets.images import read_image_size
from irn_pipeline.datasets.source import DataSet
from irn_pipeline.engine.progress import progress
from irn_pipeline.engine.stage import Job, ReduceStage
from irn_pipeline.errors import ArtifactError, ConfigError, DataError
from irn_pipeline.files.atomic import atomic_path
from irn_pipeline.older_runs import read_converted, rotation_hint
from irn_pipeline.structures import ImageRecord, Instances, LabelArray

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Params:
    """Parameters of the export."""

    format: Literal["coco", "voc"] = "coco"
    """coco: instances.json and semantic labels as PNGs. voc: SegmentationClass, SegmentationObject and image
    lists."""
    polygons: bool = False
    """Write the masks in instances.json as polygons instead of run-length encoding (for Ultralytics or Label
    Studio)."""
    out: str | None = None
    """Output folder. Default: export_labels/FORMAT in the run folder."""


@dataclass(frozen=True)
class _Labelled:
    """One picture with its labels, checked against one another; fragments of score 0 are gone."""

    image_id: str
    path: Path
    size: tuple[int, int]
    instances: Instances
    label: LabelArray

    @property
    def file_name(self) -> str:
        """Path below the folder of pictures, as it is on the disk: an id is its path in Unicode's composed form."""
        return "/".join(self.path.parts[-len(self.image_id.split("/")) :])


def run(job: Job[Params, DataSet]) -> int:
    """Write the labels of every picture of the data set that has any; the others are counted."""
    if job.params.polygons and job.params.format != "coco":
        raise ConfigError(f"--polygons is for --format coco; --format {job.params.format} writes PNGs")
    _require_classes_of_labels(job)
    from irn_pipeline.export.output_folder import output_folder

    chosen = job.params.out
    folder = output_folder(Path(chosen) if chosen else job.run.stage_dir(STAGE.name) / job.params.format)
    count = (_write_coco if job.params.format == "coco" else _write_voc)(job, folder)
    logger.info("labels of %d images are in %s", count, folder)
    return count


def _write_coco(job: Job[Params, DataSet], folder: Path) -> int:
    from irn_pipeline.export.coco_json import CocoWriter
    from irn_pipeline.export.output_folder import write_index_png

    paths = [record.path for record in job.data.items]
    image_ids = dict(zip(paths, job.data.coco_image_ids(paths), strict=True))
    with (
        atomic_path(folder / "instances.json") as temporary,
        CocoWriter(
            temporary,
            job.data.images.class_names,
            category_ids=job.data.category_ids,
            description="Instance labels synthesized from image-level tags",
            polygons=job.params.polygons,
        ) as coco,
    ):
        for item in _labelled(job):
            coco.add(item.file_name, item.size, item.instances, image_ids[item.path])
            write_index_png(folder / "labels" / f"{item.image_id}.png", item.label)
    return coco.num_images


def _write_voc(job: Job[Params, DataSet], folder: Path) -> int:
    from irn_pipeline.export.output_folder import write_object_and_label
    from irn_pipeline.export.voc_png import labelmap

    image_ids: list[str] = []
    left_out = 0
    names = job.data.images.class_names
    with (
        atomic_path(folder / "objects.csv") as temporary,
        temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as stream,
    ):
        # An object's class and score are in neither PNG: the semantic label may differ inside it.
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(("image", "object", "class", "score"))
        for item in _labelled(job):
            name = f"{item.image_id}.png"
            objects = write_object_and_label(
                folder / "SegmentationObject" / name,
                folder / "SegmentationClass" / name,
                item.instances,
                item.label,
            )
            left_out += objects.left_out
            for number, position in enumerate(objects.positions, start=1):
                name = names[item.instances.class_ids[position]]
                table.writerow((item.image_id, number, name, f"{item.instances.scores[position]:.6g}"))
            image_ids.append(item.image_id)
    if left_out:
        logger.warning(
            "left out: %d instances of lowest score; a VOC PNG holds at most 254 objects", left_out
        )
    # A first line "background" is read as the name of the background.
    first = ("_background_",) if names[0].lower() == "background" else ()
    _write_lines(folder / "class_names.txt", (*first, *names))
    try:
        _write_lines(folder / "labelmap.txt", labelmap(names))
    except DataError as error:
        logger.warning(
            "labelmap.txt is not written: %s; CVAT and Datumaro will take other class names", error
        )
    _write_lines(folder / "ImageSets" / "Segmentation" / "train.txt", image_ids)
    return len(image_ids)


def _labelled(job: Job[Params, DataSet]) -> Iterator[_Labelled]:
    """Pictures of the data set with their labels; what cannot be exported is logged and counted."""
    missing = bad = good = 0
    for record in progress(job.data.items, STAGE.name, quiet=job.execution.quiet):
        if not all(job.run.has(artifact, record.image_id) for artifact in (INSTANCE_LABEL, SEMANTIC_LABEL)):
            missing += 1
            continue
        try:
            item = _read(job, record)
        except (ArtifactError, DataError) as error:
            bad += 1
            logger.warning("%s: left out: %s", record.image_id, error)
            continue
        good += 1
        yield item
    if missing or bad:
        logger.warning("left out: %d images without labels, %d that cannot be exported", missing, bad)
    if not good:
        raise DataError(
            f"{job.run.stage_dir(INSTANCE_LABEL.stage)}: no label of the data set's {len(job.data.items)} "
            f"images can be exported; run stage {INSTANCE_LABEL.stage} on this --run-dir and data set first"
        )


def _read(job: Job[Params, DataSet], record: ImageRecord) -> _Labelled:
    image_id = record.image_id
    size = read_image_size(record.path, record.orientation)
    instances = read_converted(job.run, INSTANCE_LABEL, record, job.data.leading_names)
    label = read_converted(job.run, SEMANTIC_LABEL, record, job.data.leading_names)
    kept = instances.without_fragments()
    for artifact, found in (
        (INSTANCE_LABEL, kept.size if len(kept) else size),
        (SEMANTIC_LABEL, label.shape),
    ):
        if found != size:
            raise ArtifactError(
                f"{job.run.place(artifact, image_id)}: has {found[0]}x{found[1]} pixels, but {record.path} "
                f"{size[0]}x{size[1]}{rotation_hint(record)}; export with the data set that the labels were made from"
            )
    beyond = kept.class_ids[(kept.class_ids < 0) | (kept.class_ids >= job.data.images.num_classes)]
    if len(beyond):
        raise ArtifactError(
            f"{job.run.place(INSTANCE_LABEL, image_id)}: names class {beyond[0]}, but the data set has "
            f"{job.data.images.num_classes}; export with the data set that the labels were made from"
        )
    return _Labelled(image_id, record.path, size, kept, label)


def _require_classes_of_labels(job: Job[Params, DataSet]) -> None:
    """Label files hold numbers only: under other class names they would be exported wrongly, and silently."""
    if not job.run.has(CAM_NETWORK):
        return
    made_with, given = job.run.read(CAM_NETWORK).class_names, job.data.images.class_names
    if made_with and made_with != given:
        raise DataError(
            f"{job.run.root}: its labels were made with the classes {', '.join(made_with)}, but the data set "
            f"has {', '.join(given)}; export with the data set that the labels were made from"
        )


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    with atomic_path(path) as temporary:
        text = "".join(f"{line}\n" for line in lines)
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")


STAGE: ReduceStage[Params] = ReduceStage(
    name="export_labels",
    summary="Export the labels as COCO JSON or VOC PNGs.",
    params=Params,
    reads=(INSTANCE_LABEL, SEMANTIC_LABEL),
    run=run,
)
