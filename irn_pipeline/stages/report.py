"""One HTML file on a run: pictures chosen by rank, figures, signs of trouble, curves, settings, and a gallery."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from irn_pipeline.artifacts import (
    CAM,
    CAM_NETWORK,
    INSTANCE_LABEL,
    IR_LABEL,
    IRN_NETWORK,
    METRICS,
    SEGMENTER,
    SEMANTIC_LABEL,
)
from irn_pipeline.datasets.source import DataSet
from irn_pipeline.engine.stage import Job, ReduceStage
from irn_pipeline.engine.store import RunFolder, StageRecord, require_same_classes
from irn_pipeline.errors import ArtifactError, ConfigError, IrnError
from irn_pipeline.files.atomic import atomic_path
from irn_pipeline.files.json_text import parse_json
from irn_pipeline.files.regular import regular_bytes
from irn_pipeline.notices import HELD_OUT_NAME
from irn_pipeline.structures import ImageRecord

if TYPE_CHECKING:
    from irn_pipeline.export.report_records import Curves, Result, Series

logger = logging.getLogger(__name__)
_NETWORKS = {CAM_NETWORK.stage: "CAM network", IRN_NETWORK.stage: "IRNet"}
_ORDER = tuple(
    artifact.stage
    for artifact in (CAM_NETWORK, CAM, IR_LABEL, IRN_NETWORK, SEMANTIC_LABEL, SEGMENTER, METRICS)
)
_BY_TRUTH = "among {} images with ground-truth masks, by label IoU (mean over the classes in the image)"
_BY_SPREAD = (
    "among {} images: as there are no ground-truth masks, by the spread of the CAM (its standard deviation over the "
    "image). It is high where the map separates an object from the background, and low where the map is flat"
)


@dataclass(frozen=True)
class Params:
    """Parameters of the report."""

    max_pictures: int = 1000
    """Maximum number of images in the gallery. If there are more, it shows the worst quarter, the best quarter and an
    even sample of the rest."""
    thumbnail: int = 256
    """Long side of the thumbnails, in pixels. At 256, an image takes at most 60 kB, plus 6 kB per additional map."""
    fields: bool = True
    """Run IRNet on the gallery images to show boundary, displacement and instance map."""
    covering: float = 0.9
    """Flag an image if a class or a map covers more than this fraction of it."""
    many_fragments: int = 10
    """Flag an image if it has at least this many fragments."""


def run(job: Job[Params, DataSet]) -> int:
    """Write `report/report.html`; returns the number of pictures of the run."""
    from irn_pipeline.export.report import Report, by_rank, chosen_places, render_report, signs_of_trouble
    from irn_pipeline.export.report_pictures import PanelMaker
    from irn_pipeline.gallery import Gallery, GalleryOptions

    params = job.params
    if params.max_pictures < 0:
        raise ConfigError(f"max_pictures must be 0 or more, got {params.max_pictures}")
    PanelMaker(params.thumbnail)
    records = tuple(record for record in _stage_records(job.run) if record.stage != STAGE.name)
    if not records:
        raise ArtifactError(
            f"{job.run.root}: holds no results of any stage; run ./run_all.sh on it first, or name another --run-dir"
        )
    class_names, items = _pictures_of(job)
    options = GalleryOptions(params.thumbnail, params.fields, params.covering, params.many_fragments)
    gallery = Gallery(job.run, job.data, job.execution, class_names, options)
    qualities = gallery.qualities(items)
    ranked = by_rank([quality.iou for quality in qualities])
    places = chosen_places(
        [quality.rank for quality in qualities], params.max_pictures, keep=[place for _, place in ranked]
    )
    pictures = tuple(gallery.pictures([items[p] for p in places], [qualities[p] for p in places]))
    for place, picture in zip(places, pictures, strict=True):
        qualities[place] = picture.quality
    if ranked:
        chosen = tuple((name, places.index(place)) for name, place in ranked if place in places)
        ranked_by = _BY_TRUTH.format(sum(quality.iou is not None for quality in qualities))
    else:
        spreads = [picture.quality.spread for picture in pictures]
        chosen = by_rank(spreads)
        ranked_by = _BY_SPREAD.format(sum(spread is not None for spread in spreads))
    results = _results(job.run)
    report = Report(
        title=job.run.root.resolve().name,
        class_names=class_names,
        stages=records,
        data_name=_data_name(job, records),
        models=tuple(_models(records)),
        curves=tuple(_curves(job.run)),
        results=results,
        sweep=_sweep(job.run),
        pictures=pictures,
        chosen=chosen,
        ranked_by=ranked_by,
        signs=signs_of_trouble(results, qualities, records),
        num_pictures=len(items),
        class_counts=tuple(sum(k in item.class_ids for item in items) for k in range(len(class_names))),
        notes=tuple(_notes(job)),
    )
    path = job.run.stage_dir(STAGE.name) / "report.html"
    with atomic_path(path) as temporary:
        temporary.write_text(render_report(report), encoding="utf-8")
    logger.info("%s: %d images shown, %.1f MB", path, len(report.pictures), path.stat().st_size / 1e6)
    return len(items)


def _stage_records(run: RunFolder) -> list[StageRecord]:
    """Records of all stages and their variants, in the order of the pipeline, others after them by name."""
    known = {name: place for place, name in enumerate(_ORDER)}
    names = sorted(run.folders(), key=lambda name: known.get(name.split("/")[0], len(known)))
    return [record for record in map(run.record, names) if record is not None]


def _data_name(job: Job[Params, DataSet], records: tuple[StageRecord, ...]) -> str:
    """Name of the folder or file of the data set."""
    paths = [str(job.data.origin) if job.data.items else "", *(record.data for record in records)]
    return next((Path(path).name for path in paths if path), "")


def _models(records: tuple[StageRecord, ...]) -> Iterator[str]:
    for record in records:
        stage, _, variant = record.stage.partition("/")
        name = _NETWORKS.get(stage) or (variant if stage == SEGMENTER.stage else "")
        if name:
            backbone = record.params.get("backbone")
            yield f"{name}: {backbone}" if isinstance(backbone, str) else name


def _curves(run: RunFolder) -> Iterator[Curves]:
    """Of all segmentation models in common charts first, then of each training."""
    from irn_pipeline.export.report_records import common_curves, read_curves

    found = [
        read_curves(path.read_text(encoding="utf-8", errors="replace"), path.parent.name)
        for path in sorted(run.stage_dir(SEGMENTER.stage).glob("*/validation.jsonl"))
    ]
    for curves in common_curves(found):
        yield replace(curves, stage=f"{curves.stage} of all models, validation")
    for name in ("losses", "validation"):
        for path in sorted(run.root.glob(f"train_*/**/{name}.jsonl")):
            stage = path.parent.relative_to(run.root).as_posix()
            title = stage if name == "losses" else f"{stage}, {name}"
            curves = read_curves(path.read_text(encoding="utf-8", errors="replace"), title)
            if curves.series:
                yield curves


def _results(run: RunFolder) -> tuple[Result, ...]:
    from irn_pipeline.export.report_records import read_results

    found = read_results(run.read(METRICS), str(run.path(METRICS))) if run.has(METRICS) else ()
    return (*found, *_held_out(run))


def _held_out(run: RunFolder) -> Iterator[Result]:
    """What the classifier finds in the pictures that it has not learned from."""
    from irn_pipeline.export.report_records import Result, numbers_of

    path = run.stage_dir(CAM_NETWORK.stage) / HELD_OUT_NAME
    if not path.is_file():
        return
    try:
        value: Any = parse_json(regular_bytes(path))
        per_class = tuple(numbers_of(value["ap_per_class"]))
        figures = tuple((name, number) for name, number in numbers_of(value) if name in ("pictures", "mean"))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ArtifactError(f"{path}: damaged ({error}); delete it") from error
    yield Result("tags of images held out of train_cam", figures, (("ap", per_class),))


def _sweep(run: RunFolder) -> tuple[Series, ...]:
    from irn_pipeline.export.report_records import read_sweep

    path = run.stage_dir(METRICS.stage) / "sweep.json"
    if not path.is_file():
        return ()
    try:
        value: Any = parse_json(regular_bytes(path))
    except ValueError as error:
        raise ArtifactError(f"{path}: damaged ({error}); delete it or run stage evaluate again") from error
    return read_sweep(value, str(path))


def _pictures_of(job: Job[Params, DataSet]) -> tuple[tuple[str, ...], list[ImageRecord]]:
    """Class names and those pictures of which the run holds anything; without a data set, what the run knows."""
    kinds = (SEMANTIC_LABEL, CAM, INSTANCE_LABEL, IR_LABEL)
    if job.data.items:
        stages = (kind.stage for kind in kinds)
        require_same_classes(job.run, job.data.images.class_names, job.data.origin, *stages)
        items = [r for r in job.data.items if any(job.run.has(kind, r.image_id) for kind in kinds)]
        return job.data.images.class_names, items
    names = job.run.read(CAM_NETWORK).class_names if job.run.has(CAM_NETWORK) else ()
    ids = set[str]().union(*(job.run.image_ids(kind) for kind in kinds))
    return names, [ImageRecord(image_id, Path(), _cam_classes(job.run, image_id)) for image_id in sorted(ids)]


def _cam_classes(run: RunFolder, image_id: str) -> tuple[int, ...]:
    try:
        return tuple(sorted(run.read(CAM, image_id).class_ids.tolist()))
    except IrnError:
        return ()


def _notes(job: Job[Params, DataSet]) -> Iterator[str]:
    if not job.data.items:
        yield (
            "No data set was named: photographs, boundary, displacement and truth are not shown. "
            "Name it with the flags that the stages had, such as --voc-root DIR."
        )
    elif job.params.fields and not job.run.has(IRN_NETWORK):
        yield "Boundary and displacement are not shown: train_irn has not finished, or these labels need none."


STAGE: ReduceStage[Params] = ReduceStage(
    name="report",
    summary="Write an HTML report of the run that opens offline.",
    params=Params,
    needs_data=False,
    run=run,
)
