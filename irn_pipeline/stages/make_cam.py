"""Stage 2: one class activation map per image-level class and picture (paper, section 3)."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from irn_pipeline.artifacts import CAM, CAM_NETWORK
from irn_pipeline.cam_source import CamSource, cam_files, require_files
from irn_pipeline.datasets.source import DataSet
from irn_pipeline.engine.parallel import batches, prefetch, together
from irn_pipeline.engine.stage import Files, Job, MapStage, Produced
from irn_pipeline.engine.store import Artifact
from irn_pipeline.notices import covered, odd_maps
from irn_pipeline.older_runs import require_current
from irn_pipeline.seeds import SEEDS
from irn_pipeline.seeds.params import Params, fits
from irn_pipeline.structures import ImageRecord
from irn_pipeline.trained_networks import segmenter_artifact
from irn_pipeline.variants import unused_by

logger = logging.getLogger(__name__)


def run(job: Job[Params, DataSet], pending: Sequence[ImageRecord]) -> Iterator[Produced]:
    """Activation maps of every pending image."""
    from irn_pipeline.activation_maps import MapMaker

    require_current(job.run, STAGE.name, pending, job.data.leading_names)
    sources = tuple(CamSource.of_folder(job, folder) for folder in job.params.from_cams)
    maker = MapMaker(
        job,
        SEEDS[job.params.seeds],
        sources,
        runs_network=_runs_network(job.params),
        pending=len(pending),
    )
    there = list(pending)
    for source in sources:
        there, absent = source.split(there)
        yield from absent
    shares: list[float] = []
    read = prefetch(maker.read, there, job.execution.worker_count)
    alike = batches(job.clock.waiting("read", read), lambda item: item.kind, job.execution.batch)
    for items in alike:
        if items[0].problem is not None:
            yield from (Produced(item.record.image_id, problem=item.problem) for item in items)
            continue
        with job.clock.section("network"):
            values = together(maker.made, items)
        shares.extend(covered(value.cam) for value in values)
        for item, value in zip(items, values, strict=True):
            yield Produced(item.record.image_id, (value,), file_format=item.file_format)
    if (line := odd_maps(shares)) is not None:
        logger.warning("%s: %s", STAGE.name, line)


def _unread(params: Params) -> tuple[Artifact[Any], ...]:
    for folder in params.from_cams:
        require_files("--from-cams", folder)
    return () if params.from_model is None and _runs_network(params) else (CAM_NETWORK,)


def _runs_network(params: Params) -> bool:
    return not params.from_cams or bool(params.feature_affinity)


def _files(job: Job[Params, DataSet]) -> Mapping[str, tuple[Files, ...]]:
    found: dict[str, tuple[Files, ...]] = {}
    if job.params.from_cams:
        found["from_cams"] = cam_files(job, *job.params.from_cams)
    if job.params.from_model is not None:
        folder = Path(job.params.from_model)
        network = segmenter_artifact(folder.name)
        found["from_model"] = (Files(folder, {"": folder / f"{network.name}{network.suffix}"}),)
    return found


def _unused(params: Params) -> Mapping[str, str]:
    found = unused_by([params.seeds], {name: seed.params for name, seed in SEEDS.items()})
    if params.from_cams:
        why = "--from-cams gives the maps, and no network makes any"
        found |= {"scales": why, "tile": why}
    if SEEDS[params.seeds].size is not None:
        found |= {
            "scales": f"seeds {params.seeds} see images at one size, which they have a flag for",
            "tile": f"seeds {params.seeds} see images at one size, which is never large",
            "feature_affinity": f"seeds {params.seeds} already use these features",
        }
    return found


STAGE: MapStage[Params] = MapStage(
    name="make_cam",
    summary="Extract class activation maps.",
    params=Params,
    reads=(CAM_NETWORK,),
    writes=(CAM,),
    run=run,
    unread=_unread,
    files=_files,
    runs_network=_runs_network,
    unused=_unused,
    fits=fits,
)
