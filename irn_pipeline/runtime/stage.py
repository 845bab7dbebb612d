"""The engine that runs a stage: skip what is there, write atomically, count, record."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from tqdm import tqdm

from irn_pipeline.errors import ArtifactError, DataError, IrnError
from irn_pipeline.runtime.clock import Clock, told_shares
from irn_pipeline.runtime.declaration import (
    Data,
    FitStage,
    Item,
    Job,
    MapStage,
    Produced,
    ReduceStage,
    Remake,
    Stage,
)
from irn_pipeline.runtime.execution import seed_everything
from irn_pipeline.runtime.faults import MemoryExhausted, explained, is_out_of_memory
from irn_pipeline.runtime.lock import LOCK_NAME, stage_lock
from irn_pipeline.runtime.provenance import (
    OTHER_FOLDER,
    fingerprints_read,
    refusal,
    result_params,
    stage_fingerprint,
)
from irn_pipeline.runtime.remake import begin_remake
from irn_pipeline.runtime.store import StageRecord, clear_folder, remove_parts, versions

__all__ = [
    "Data",
    "FitStage",
    "Item",
    "Job",
    "MapStage",
    "Produced",
    "ReduceStage",
    "Remake",
    "Stage",
    "run_stage",
    "stage_fingerprint",
]

logger = logging.getLogger(__name__)
_MEMORY_ATTEMPTS = 3
"""So many pictures in a row without memory for them, and it is not the picture."""


def run_stage(stage: Stage[Any], job: Job[Any, Any]) -> StageRecord:
    """Run one stage; what is there already and was made from the same things is kept.

    Raises:
        ArtifactError: something it reads is missing, its folder holds results of other parameters, another process
            works in it, or it cannot be written.
        IrnError: whatever its work raises.
    """
    job = replace(job, clock=Clock())
    if isinstance(stage, ReduceStage) and stage.only_looks:
        fingerprint = stage_fingerprint(stage, job, {})
        counts = {"images": stage.run(job)}
        return StageRecord(stage.name, fingerprint, asdict(job.params), {}, True, counts, 0.0, versions())
    with stage_lock(job.run.stage_dir(stage.folder(job.params))):
        return _run_alone(stage, job)


def _reads(stage: Stage[Any], job: Job[Any, Any]) -> dict[str, str]:
    reads = fingerprints_read(job.run, stage.name, stage.read(job.params))
    if isinstance(stage, ReduceStage):
        # It is never refused, and reads whatever is there: kept so that its age can be told.
        others = [name for name in job.run.folders() if name.split("/")[0] != stage.name]
        records = {name: job.run.record(name) for name in others}
        reads |= {name: record.fingerprint for name, record in records.items() if record is not None}
    return reads


def _run_alone(stage: Stage[Any], job: Job[Any, Any]) -> StageRecord:
    folder = stage.folder(job.params)
    place = job.run.stage_dir(folder)
    previous = job.run.record(folder)
    if isinstance(stage, MapStage) and stage.remake is not None and stage.remake.chosen(job.params):
        reads = begin_remake(stage, stage.remake, job, previous)
        fingerprint = stage_fingerprint(stage, job, reads)
    else:
        reads = _reads(stage, job)
        fingerprint = stage_fingerprint(stage, job, reads)
        if previous is not None and job.execution.overwrite:
            clear_folder(place, keep=LOCK_NAME)
            previous = None
        if (
            previous is not None
            and previous.fingerprint != fingerprint
            and not isinstance(stage, ReduceStage)
        ):
            now = result_params(job.params)
            raise ArtifactError(refusal(place, now, reads, previous, OTHER_FOLDER))
    seed_everything(job.execution.seed)
    record = StageRecord(
        stage=folder,
        fingerprint=fingerprint,
        params=asdict(job.params),
        reads=reads,
        complete=False,
        counts={"total": len(job.data.items)} if isinstance(stage, MapStage) else {},
        seconds=previous.seconds if previous else 0.0,
        versions=versions(),
    )
    if isinstance(stage, FitStage) and previous is not None and previous.complete:
        logger.info("%s: already done in %s", stage.name, place)
        return previous
    if previous is None or not previous.complete:
        remove_parts(place)
    job.run.write_record(record)
    start = time.perf_counter()
    try:
        counts = _work(stage, job)
    except Exception as error:
        fault = None if isinstance(error, IrnError) else explained(error, stage.name, place)
        if fault is None:
            raise
        raise fault from error
    seconds = time.perf_counter() - start
    sections = Counter(previous.sections if previous else {})
    sections.update(job.clock.seconds)
    done = replace(
        record,
        complete=True,
        counts=counts,
        seconds=record.seconds + seconds,
        sections={name: round(spent, 6) for name, spent in sections.items()},
    )
    job.run.write_record(done)
    _log_summary(stage, job, counts, seconds)
    return done


def _work(stage: Stage[Any], job: Job[Any, Any]) -> dict[str, int]:
    if isinstance(stage, MapStage):
        return _map(stage, job)
    if isinstance(stage, FitStage):
        return {"images": stage.fit(job)}
    if isinstance(stage, ReduceStage):
        return {"images": stage.run(job)}
    raise TypeError(f"{type(stage).__name__} is no kind of stage")


def _map(stage: MapStage[Any], job: Job[Any, Any]) -> dict[str, int]:
    writes = stage.written(job.params)
    pending = [
        item
        for item in job.data.items
        if not all(job.run.has(artifact, item.image_id) for artifact in writes)
    ]
    kept = len(job.data.items) - len(pending)
    problems: list[Produced] = []
    formats: Counter[str] = Counter()
    elsewhere: Counter[str] = Counter()
    waited = Clock()
    bar = tqdm(total=len(pending), desc=stage.name, unit="image", disable=job.execution.quiet)
    with bar:
        for produced in waited.waiting("results", _produce(stage, job, pending)):
            elsewhere.update(produced.seconds)
            if produced.problem is not None:
                problems.append(produced)
                if not produced.common:
                    logger.warning("%s: skipped: %s", produced.image_id, produced.problem)
            else:
                formats.update(filter(None, [produced.file_format]))
                for artifact, value in zip(writes, produced.values, strict=True):
                    with job.clock.section("write"):
                        job.run.write(artifact, value, produced.image_id)
            bar.update()
    _add_workers_time(job, elsewhere, waited.seconds.get("results", 0.0))
    _log_counted(stage, problems, formats)
    skipped = len(problems)
    if pending and skipped == len(pending):
        raise DataError(
            f"{stage.name}: every one of the {skipped} pictures was skipped; see the messages above"
        )
    return {"images": len(pending) - skipped, "kept": kept, "skipped": skipped}


def _produce(stage: MapStage[Any], job: Job[Any, Any], pending: Sequence[Item]) -> Iterator[Produced]:
    """Results of all items. One that there is not enough memory for is skipped, and the stage goes on without it."""
    left = {item.image_id: item for item in pending}
    attempts = 0
    while left:
        try:
            for produced in stage.run(job, list(left.values())):
                left.pop(produced.image_id, None)
                attempts = 0
                yield produced
            return
        except Exception as error:
            attempts += 1
            if not (isinstance(error, MemoryExhausted) or is_out_of_memory(error)):
                raise
            if attempts >= _MEMORY_ATTEMPTS or not left:
                raise
            # Where the error does not name it: networks take the pictures in order.
            named = error.image_id if isinstance(error, MemoryExhausted) else None
            image_id = next(iter(left)) if named is None else named
        left.pop(image_id, None)
        yield Produced(
            image_id, problem="not enough memory for it; give it more, or make the picture smaller"
        )


def _add_workers_time(job: Job[Any, Any], spent: Mapping[str, float], waited: float) -> None:
    """Count what the worker processes spent, as seconds of the wall clock."""
    at_once: float = job.execution.worker_count
    if job.execution.backend == "dask" and waited > 0:
        # Workers come and go: as many as were busy, in the mean, while this process waited for them.
        at_once = max(sum(spent.values()) / waited, 1.0)
    for name, seconds in spent.items():
        job.clock.add(name, seconds / at_once)


def _log_counted(stage: Stage[Any], problems: Sequence[Produced], formats: Counter[str]) -> None:
    common = [produced for produced in problems if produced.common]
    if common:
        first = common[0]
        logger.warning(
            "%s: %d images skipped, the first is %s: %s",
            stage.name,
            len(common),
            first.image_id,
            first.problem,
        )
    if formats:
        told = ", ".join(f"{count} files: {name}" for name, count in formats.most_common())
        logger.info("%s: %s", stage.name, told)


def _log_summary(stage: Stage[Any], job: Job[Any, Any], counts: dict[str, int], seconds: float) -> None:
    images = counts.get("images", 0)
    rate = f", {images / seconds:.2f} images/s" if seconds > 0 and images else ""
    extra = "".join(
        f", {counts[k]} {text}"
        for k, text in (("kept", "already there"), ("skipped", "skipped"))
        if counts.get(k)
    )
    shares = told_shares(job.clock.seconds, seconds)
    logger.info(
        "%s: %d images in %.1f s%s%s%s -> %s",
        stage.name,
        images,
        seconds,
        rate,
        f" ({shares})" if shares else "",
        extra,
        job.run.stage_dir(stage.folder(job.params)),
    )
