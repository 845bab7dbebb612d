"""Masks for a folder of new pictures, found by a trained model."""

from __future__ import annotations

import logging
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from irn_pipeline.artifacts import Checkpoint
from irn_pipeline.datasets.images import read_image
from irn_pipeline.datasets.picture_folder import PICTURE_SUFFIXES
from irn_pipeline.datasets.transforms import to_unit_tensor
from irn_pipeline.errors import ConfigError, DataError
from irn_pipeline.export.coco_json import CocoWriter
from irn_pipeline.export.overlay import overlay_instances
from irn_pipeline.export.voc_png import object_map
from irn_pipeline.nn.segmenters.base import Segmenter
from irn_pipeline.runtime.execution import Execution
from irn_pipeline.runtime.parallel import prefetch
from irn_pipeline.runtime.progress import progress
from irn_pipeline.runtime.stage import Job, ReduceStage
from irn_pipeline.runtime.store import atomic_path
from irn_pipeline.structures import Instances, LabelArray
from stages._output import output_folder, write_index_png
from stages._segmenter import AskedParams, load_segmenter, require_asked
from stages._source import DataSet

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Params(AskedParams):
    """Parameters of the prediction."""

    model: str = "mask_rcnn"
    """Which model of the run folder: as given to train_segmenter."""
    images: str | None = None
    """Folder of pictures, at any depth: JPEG, PNG, WebP or BMP."""
    out: str | None = None
    """Folder to write into; by default predict/MODEL in the run folder."""
    min_score: float = 0.5
    """Instances below this score are left out."""
    overlays: bool = True
    """Also draw the masks over the pictures."""


@dataclass(frozen=True)
class _Picture:
    """One file; `name` is its path below the folder of pictures, without the suffix."""

    path: Path
    file_name: str
    name: str


def run(job: Job[Params, DataSet]) -> int:
    """Write predictions.json, and for each picture its object ids, label and overlay."""
    params = job.params
    if params.images is None:
        raise ConfigError("no pictures: give --images DIR, a folder of pictures")
    source = Path(params.images)
    out = Path(params.out) if params.out else job.run.stage_dir(STAGE.name) / params.model
    pictures = _find_pictures(source, out)
    require_asked((params.model,), params)
    segmenter, checkpoint = load_segmenter(job.run, params.model, job.execution, params)
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
            if isinstance(image, DataError):
                logger.warning("%s: skipped: %s", picture.file_name, image)
                continue
            found, label = _predict(segmenter, image, params.min_score, job.execution)
            coco.add(picture.file_name, (image.shape[0], image.shape[1]), found, image_id)
            left_out += _write_pictures(out, picture.name, image, found, label, overlays=params.overlays)
        if not coco.num_images:
            raise DataError(
                f"{source}: none of its {len(pictures)} pictures can be read; see the messages above"
            )
    if coco.num_images < len(pictures):
        logger.warning(
            "%d of %d pictures cannot be read and were skipped",
            len(pictures) - coco.num_images,
            len(pictures),
        )
    if left_out:
        logger.warning(
            "left out of the PNGs in masks: %d instances of lowest score; one holds 254 objects", left_out
        )
    logger.info("%d instances in %d pictures: %s", coco.num_annotations, coco.num_images, out)
    return coco.num_images


def _find_pictures(source: Path, out: Path) -> list[_Picture]:
    """Pictures below `source` in order, but for those that an earlier prediction wrote there."""
    if not source.is_dir():
        raise DataError(f"{source}: no such folder; --images must name a folder of pictures")
    whole, own = source.resolve(), out.resolve()
    if own == whole:
        raise ConfigError(f"--out {out}: is the folder of pictures itself; name another one")
    pictures: list[_Picture] = []
    for path in sorted(source.rglob("*")):
        # Files like ._name.jpg are left behind by macOS and hold no picture.
        if path.suffix.lower() in PICTURE_SUFFIXES and not path.name.startswith("._") and path.is_file():
            below = path.relative_to(source)
            if not own.is_relative_to(whole) or not (whole / below).is_relative_to(own):
                pictures.append(_Picture(path, below.as_posix(), below.with_suffix("").as_posix()))
    if not pictures:
        raise DataError(
            f"{source}: holds no picture; --images needs files {', '.join(PICTURE_SUFFIXES)}, at any depth"
        )
    named = defaultdict(list)
    for picture in pictures:
        named[picture.name].append(picture.file_name)
    for name, files in named.items():
        if len(files) > 1:
            raise DataError(
                f"{source}: {' and '.join(files)} would both be written to masks/{name}.png; rename one of them"
            )
    return pictures


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
            "the model's file does not hold COCO category ids, they count from 1; give the --image-dir and --coco-json "
            "that it was trained on for theirs"
        )
    return checkpoint.category_ids or None


def _decode(picture: _Picture) -> LabelArray | DataError:
    try:
        return read_image(picture.path)
    except DataError as error:
        return error


def _predict(
    segmenter: Segmenter, image: LabelArray, min_score: float, execution: Execution
) -> tuple[Instances, LabelArray]:
    tensor = to_unit_tensor(image).to(execution.torch_device())
    with execution.autocast():
        found, label = segmenter.predict_with_label(tensor, min_score)
    return found.select(found.scores >= min_score), label


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
    summary="Find masks in new pictures with the trained model.",
    params=Params,
    needs_data=False,
    run=run,
)

if __name__ == "__main__":
    from stages.__main__ import stage_main

    raise SystemExit(stage_main("predict"))
