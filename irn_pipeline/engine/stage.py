"""The engine that runs a stage: skip what is there, write atomically, count, record."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from irn_pipeline.engine.begin import Begun, begin
from irn_pipeline.engine.clock import Clock
from irn_pipeline.engine.declaration import (
    Data,
    Files,
    FitStage,
    Item,
    Job,
    MapStage,
    Produced,
    ReduceStage,
    Remake,
    Stage,
)
from irn_pipeline.engine.execution import seed_everything
from irn_pipeline.engine.faults import MemoryExhausted, explained, is_out_of_memory
from irn_pipeline.engine.lock import stage_lock
from irn_pipeline.engine.progress import progress_bar
from irn_pipeline.engine.provenance import stage_fingerprint
from irn_pipeline.engine.ranks import ALONE
from irn_pipeline.engine.store import RESUME_NAME, StageRecord, require_own_folder, versions
from irn_pipeline.engine.summary import add_workers_time, log_counted, log_summary
from irn_pipeline.errors import DataError, IrnError

__all__ = [
    "Data",
    "Files",
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
    with ExitStack() as held:
        if isinstance(stage, ReduceStage):
            return job.ranks.from_first(partial(_reduce, stage, job, held))
        begun = job.ranks.from_first(partial(_begin, stage, job, held))
        if isinstance(stage, FitStage) and begun.previous is not None and begun.previous.complete:
            place = job.run.stage_dir(begun.record.stage)
            _forget_training(job, place)
            logger.info("%s: already done in %s", stage.name, place)
            return begun.previous
        return _go_on(stage, job, begun)


def _reduce(stage: ReduceStage[Any], job: Job[Any, Any], held: ExitStack) -> StageRecord:
    if not stage.only_looks:
        return _go_on(stage, replace(job, ranks=ALONE), _begin(stage, job, held))
    fingerprint = stage_fingerprint(stage, job, {})
    counts = {"images": stage.run(job)}
    return StageRecord(stage.name, fingerprint, asdict(job.params), {}, True, counts, 0.0, versions())


def _begin(stage: Stage[Any], job: Job[Any, Any], held: ExitStack) -> Begun:
    """Lock the folder for as long as `held` is, and make it ready."""
    place = job.run.stage_dir(stage.folder(job.params))
    require_own_folder(job.run.root, place)
    held.enter_context(stage_lock(place))
    return begin(stage, job)


def _go_on(stage: Stage[Any], job: Job[Any, Any], begun: Begun) -> StageRecord:
    record, previous = begun.record, begun.previous
    place = job.run.stage_dir(record.stage)
    seed_everything(job.execution.seed)
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
    if job.ranks.is_first:
        job.run.write_record(done)
        log_summary(stage, job, counts, seconds)
    if isinstance(stage, FitStage):
        _forget_training(job, place)
    return done


def _forget_training(job: Job[Any, Any], place: Path) -> None:
    # Only once the record says that the stage is done: a kill before that goes on from the last epoch.
    if job.ranks.is_first:
        (place / RESUME_NAME).unlink(missing_ok=True)


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
    share = job.ranks.share(job.data.items)
    pending = [item for item in share if not all(job.run.has(artifact, item.image_id) for artifact in writes)]
    problems: list[Produced] = []
    formats: Counter[str] = Counter()
    elsewhere: Counter[str] = Counter()
    waited = Clock()
    with progress_bar(stage.name, total=len(pending), quiet=job.execution.quiet) as bar:
        for produced in waited.waiting("results", _produce(stage, job, pending)):
            elsewhere.update(produced.seconds)
            if produced.problem is not None:
                problems.append(produced)
                if not produced.common and job.is_news(produced.image_id, produced.problem):
                    logger.warning("%s: skipped: %s", produced.image_id, produced.problem)
            else:
                formats.update(filter(None, [produced.file_format]))
                for artifact, value in zip(writes, produced.values, strict=True):
                    with waited.section("write"):
                        job.run.write(artifact, value, produced.image_id)
            bar.update()
    add_workers_time(job, elsewhere, waited.seconds.get("results", 0.0))
    if "write" in waited.seconds:  # told last, as it comes last
        job.clock.add("write", waited.seconds["write"])
    log_counted(stage, problems, formats)
    skipped = len(problems)
    counts = {"images": len(pending) - skipped, "kept": len(share) - len(pending), "skipped": skipped}
    return job.ranks.from_first(partial(_checked, stage, job.ranks.total(counts)))


def _checked(stage: Stage[Any], counts: dict[str, int]) -> dict[str, int]:
    if counts["skipped"] and not counts["images"] + counts["kept"]:
        raise DataError(
            f"{stage.name}: every one of the {counts['skipped']} pictures was skipped; see the messages above"
        )
    return counts


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
