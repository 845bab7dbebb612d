"""Masks for a folder of new pictures, found by a trained model."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from irn_pipeline.artifacts import Checkpoint
from irn_pipeline.datasets.lists import some
from irn_pipeline.datasets.orientation import orient
from irn_pipeline.datasets.picture_scan import scan_pictures
from irn_pipeline.datasets.pixels import read_pixels, read_rgb, read_scale
from irn_pipeline.datasets.source import DataSet
from irn_pipeline.engine.parallel import prefetch
from irn_pipeline.engine.progress import progress
from irn_pipeline.engine.stage import Job, ReduceStage
from irn_pipeline.errors import ConfigError, DataError
from irn_pipeline.export.coco_json import CocoWriter
from irn_pipeline.export.output_folder import output_folder, write_index_png
from irn_pipeline.export.overlay import overlay_instances
from irn_pipeline.export.voc_png import object_map
from irn_pipeline.files.atomic import atomic_path
from irn_pipeline.models import AskedParams, require_asked
from irn_pipeline.structures import ImageRecord, Instances, LabelArray
from irn_pipeline.trained_networks import load_segmenter, look_at

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Params(AskedParams):
    """Parameters of the prediction."""

    model: str = "mask_rcnn"
    """Trained model to use, by folder name below train_segmenter."""
    images: str | None = None
    """Folder of images, including subfolders; same rules as --image-dir."""
    out: str | None = None
    """Output folder. Default: predict/MODEL in the run folder."""
    min_score: float = 0.5
    """Drop instances with a lower score."""
    overlays: bool = True
    """Also draw the masks over the images."""


def run(job: Job[Params, DataSet]) -> int:
    """Write predictions.json, and for each picture its object ids, label and overlay."""
    params = job.params
    if params.images is None:
        raise ConfigError("no images: give --images DIR, a folder of images")
    source = Path(params.images)
    out = Path(params.out) if params.out else job.run.stage_dir(STAGE.name) / params.model
    warnings: list[str] = []
    scale = read_scale(job.run.root)
    pictures = tuple(replace(one, scale=scale) for one in _find_pictures(source, out, warnings))
    if scale is not None and not any(one.bits == scale.bits for one in pictures):
        raise ConfigError(
            f"{source}: the model was trained on images of {scale.bits} bits, these have {pictures[0].bits}; give "
            "images of the same kind"
        )
    require_asked((params.model,), params)
    segmenter, checkpoint = load_segmenter(job.run, params.model, job.execution, params)
    for warning in warnings:
        logger.warning("warning: %s", warning)
    image_ids = job.data.coco_image_ids([picture.path for picture in pictures])
    output_folder(out)
    decoded = prefetch(_decode, pictures, job.execution.worker_count)
    bar = progress(pictures, STAGE.name, quiet=job.execution.quiet)
    left_out = 0
    with (
        atomic_path(out / "predictions.json") as temporary,
        CocoWriter(
            temporary,
            checkpoint.class_names,
            category_ids=_category_ids(checkpoint, job.data),
            description=f"Predicted by {params.model}",
        ) as coco,
    ):
        for picture, image_id, image in zip(bar, image_ids, decoded, strict=True):
            file_name = picture.path.relative_to(source).as_posix()
            if isinstance(image, DataError):
                logger.warning("%s: skipped: %s", file_name, image)
                continue
            found, label = look_at(segmenter, image, job.execution, params.min_score)
            found = found.select(found.scores >= params.min_score)
            coco.add(file_name, (image.shape[0], image.shape[1]), found, image_id)
            shown = image if scale is None else read_rgb(picture)
            left_out += _write_pictures(out, picture.image_id, shown, found, label, overlays=params.overlays)
        if not coco.num_images:
            raise DataError(
                f"{source}: none of its {len(pictures)} images can be read; see the messages above"
            )
    if coco.num_images < len(pictures):
        logger.warning(
            "%d of %d images cannot be read and were skipped",
            len(pictures) - coco.num_images,
            len(pictures),
        )
    if left_out:
        logger.warning(
            "left out of the PNGs in masks: %d instances of lowest score; each holds at most 254 objects",
            left_out,
        )
    logger.info("%d instances in %d images: %s", coco.num_annotations, coco.num_images, out)
    return coco.num_images


def _find_pictures(source: Path, out: Path, warnings: list[str]) -> tuple[ImageRecord, ...]:
    """Pictures below `source` in order, but for those that an earlier prediction wrote there."""
    whole, own = source.resolve(), out.resolve()
    if own == whole:
        raise ConfigError(f"--out {out}: is the folder of images itself; name another one")
    results = f"{own.relative_to(whole).as_posix()}/" if own.is_relative_to(whole) else "/"
    ignored: list[str] = []
    found = scan_pictures(source, warnings, ignored, flag="--images")
    records: list[ImageRecord] = []
    for name, files in sorted(found.items()):
        paths = [path for path in files if not path.startswith(results)]
        if len(paths) > 1:
            raise DataError(
                f"{source}: {' and '.join(paths)} would both be written to masks/{name}.png; rename one of them"
            )
        records += (ImageRecord(name, source / path, ()) for path in paths)
    if not records:
        raise DataError(f"{source}: holds no images except those in {out}; give a folder with others")
    others = [path for path in ignored if not path.startswith(results)]
    if others:
        warnings.append(
            f"{source}: files and folders that were ignored (hidden, or not images by their suffix): {some(others)}"
        )
    return orient(records, source, warnings)


def _category_ids(checkpoint: Checkpoint, data: DataSet) -> tuple[int, ...] | None:
    """COCO's ids of the model's classes: of the COCO file, if one is named, else of the data it was trained on."""
    if data.coco is not None:
        known = dict(zip(data.images.class_names, data.category_ids, strict=True))
        lacking = [name for name in checkpoint.class_names if name not in known]
        if not lacking:
            return tuple(known[name] for name in checkpoint.class_names)
        logger.warning(
            "%s: has no category %s, which the model knows; the category ids are those of its training",
            data.origin,
            ", ".join(map(repr, lacking)),
        )
    elif not checkpoint.category_ids:
        logger.warning(
            "the model's file holds no COCO category ids, so they count from 1; for the original ids give the "
            "--image-dir and --coco-json that it was trained on"
        )
    return checkpoint.category_ids or None


def _decode(picture: ImageRecord) -> npt.NDArray[Any] | DataError:
    try:
        return read_pixels(picture)
    except DataError as error:
        return error


def _write_pictures(
    out: Path, name: str, image: LabelArray, found: Instances, label: LabelArray, *, overlays: bool
) -> int:
    """Returns the number of instances that the PNG of object ids has no room for."""
    objects = object_map(found, (image.shape[0], image.shape[1]))
    write_index_png(out / "masks" / f"{name}.png", objects.ids)
    write_index_png(out / "labels" / f"{name}.png", label)
    if overlays:
        with atomic_path(out / "overlays" / f"{name}.jpg") as temporary:
            drawn = np.ascontiguousarray(overlay_instances(image, found))
            Image.fromarray(drawn).save(temporary, format="JPEG", quality=90)
    return objects.left_out


STAGE: ReduceStage[Params] = ReduceStage(
    name="predict",
    summary="Segment new images with a trained model.",
    params=Params,
    needs_data=False,
    run=run,
)
