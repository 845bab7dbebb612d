"""Running a stage: skip what is there, write whole files, count, record."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from irn_pipeline.engine.aside import ASIDE_NAME, put_back
from irn_pipeline.engine.execution import seed_everything
from irn_pipeline.engine.faults import explained
from irn_pipeline.engine.progress import progress_bar
from irn_pipeline.engine.provenance import has_results, origin_of
from irn_pipeline.engine.ranks import ALONE
from irn_pipeline.engine.stage import Clock, FitStage, Item, Job, MapStage, Produced, ReduceStage, Stage
from irn_pipeline.engine.store import RESUME_NAME, RunFolder, StageRecord, versions
from irn_pipeline.errors import DataError, MemoryExhausted, is_out_of_memory
from irn_pipeline.files.atomic import remove, remove_parts, require_own_folder
from irn_pipeline.files.lock import LOCK_NAME, stage_lock
from irn_pipeline.files.shards import SHARDS_NAME, mend_shards

logger = logging.getLogger(__name__)
_MEMORY_ATTEMPTS = 3
"""So many pictures in a row without memory for them, and it is not the picture."""
_SMALLEST_SHARE = 0.005
"""Sections with less of a stage's time are not named."""


def run_stage(stage: Stage[Any], job: Job[Any, Any]) -> StageRecord:
    """Run one stage; results that are there already and were made from the same things are kept.

    Raises:
        ArtifactError: something it reads is missing, its folder holds results of other parameters, another process
            works in it, or it cannot be written.
        IrnError: whatever its work raises.
    """
    job = replace(job, clock=Clock(), run=RunFolder(job.run.root))
    with ExitStack() as held:
        if isinstance(stage, ReduceStage):
            return job.ranks.from_first(partial(_reduce, stage, replace(job, ranks=ALONE), held))
        record, previous = job.ranks.from_first(partial(_begin, stage, job, held))
        job = replace(job, run=RunFolder(job.run.root))  # what was removed is no longer in shards
        if isinstance(stage, FitStage) and previous is not None and previous.complete:
            place = job.run.stage_dir(record.stage)
            _forget_training(job, place)
            logger.info("%s: already done in %s", stage.name, place)
            return previous
        return _finish(stage, job, record, previous)


def _reduce(stage: ReduceStage[Any], job: Job[Any, Any], held: ExitStack) -> StageRecord:
    if not stage.only_looks:
        return _finish(stage, job, *_begin(stage, job, held))
    counts = {"images": stage.run(job)}
    return StageRecord(stage.name, "", asdict(job.params), {}, True, counts, 0.0, versions())


def _begin(stage: Stage[Any], job: Job[Any, Any], held: ExitStack) -> tuple[StageRecord, StageRecord | None]:
    """Lock the stage's folder for as long as `held` is, make it ready and write the record of an unfinished stage.

    Returns:
        The record, and that of the results which the stage goes on with.
    """
    folder = stage.folder(job.params)
    place = job.run.stage_dir(folder)
    require_own_folder(job.run.root, place)
    held.enter_context(stage_lock(place))
    held.enter_context(_until_replaced(stage, place))
    origin = origin_of(stage, job)
    previous, made_with = origin.previous, versions()
    if isinstance(stage, MapStage) and previous is not None:
        # A folder that is added to is as old as its oldest files.
        made_with["irn_pipeline"] = previous.versions.get("irn_pipeline", made_with["irn_pipeline"])
    record = StageRecord(
        stage=folder,
        fingerprint=origin.fingerprint,
        params=asdict(job.params),
        reads=origin.reads,
        complete=False,
        counts={"total": len(job.data.items)} if isinstance(stage, MapStage) else {},
        seconds=previous.seconds if previous else 0.0,
        versions=made_with,
        facts=origin.facts,
        data=str(job.data.origin) if job.data.items else "",
        class_names=list(job.data.identity),
    )
    if previous is None or not previous.complete:
        remove_parts(place)
        for shards in place.glob(f"*/{SHARDS_NAME}"):
            require_own_folder(job.run.root, shards)
            mend_shards(shards)
    if not (isinstance(stage, FitStage) and previous is not None and previous.complete):
        job.run.write_record(record)
    return record, previous


@contextmanager
def _until_replaced(stage: Stage[Any], place: Path) -> Iterator[None]:
    """Put back what --overwrite sets aside if the stage ends, or was killed, before it has made anything."""

    def settle() -> None:
        if isinstance(stage, ReduceStage) or not has_results(stage, place):
            put_back(place, keep=LOCK_NAME)
        remove(place / ASIDE_NAME)

    settle()
    try:
        yield
    except BaseException:
        settle()
        raise
    remove(place / ASIDE_NAME)


def _finish(
    stage: Stage[Any],
    job: Job[Any, Any],
    record: StageRecord,
    previous: StageRecord | None,
) -> StageRecord:
    place = job.run.stage_dir(record.stage)
    seed_everything(job.execution.seed)
    start = time.perf_counter()
    try:
        if isinstance(stage, MapStage):
            counts = _map(stage, job)
        else:
            work = stage.fit if isinstance(stage, FitStage) else stage.run  # type: ignore[attr-defined]
            counts = {"images": work(job)}
    except Exception as error:
        fault = explained(error, stage.name, place)
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
        _log_summary(stage.name, job, counts, seconds, place)
    if isinstance(stage, FitStage):
        _forget_training(job, place)
    return done


def _forget_training(job: Job[Any, Any], place: Path) -> None:
    # Only once the record says that the stage is done: a kill before that goes on from the last epoch.
    if job.ranks.is_first:
        (place / RESUME_NAME).unlink(missing_ok=True)


def _map(stage: MapStage[Any], job: Job[Any, Any]) -> dict[str, int]:
    writes = stage.written(job.params)
    share = job.ranks.share(job.data.items)
    pending = [item for item in share if not all(job.run.has(artifact, item.image_id) for artifact in writes)]
    problems: list[Produced] = []
    formats: Counter[str] = Counter()
    elsewhere: Counter[str] = Counter()
    here, new = Clock(), False
    with (
        job.run.writing(job.execution.store, job.ranks.rank) as write,
        progress_bar(stage.name, total=len(pending), quiet=job.execution.quiet) as bar,
    ):
        for count, produced in enumerate(here.waiting("results", _produce(stage, job, pending))):
            if count == 0:
                bar.unpause()  # what the stage does before its first result says nothing about the next ones
            elsewhere.update(produced.seconds)
            if produced.problem is not None:
                problems.append(produced)
                if not produced.common and job.is_news(produced.image_id, produced.problem):
                    logger.warning("%s: skipped: %s", produced.image_id, produced.problem)
            else:
                formats.update(filter(None, [produced.file_format]))
                for artifact, value in zip(writes, produced.values, strict=True):
                    with here.section("write"):
                        write(artifact, value, produced.image_id)
                if job.ranks.is_first and not new:
                    # Old and new maps of many images together may not fit on a disk.
                    remove(job.run.stage_dir(stage.folder(job.params)) / ASIDE_NAME)
                    new = True
            bar.update()
    # Workers that are busy at the same time count for as long as this process waited for them.
    at_once = max(sum(elsewhere.values()) / max(here.seconds.get("results", 0.0), 1e-9), 1.0)
    for name, seconds in elsewhere.items():
        job.clock.add(name, seconds / at_once)
    if "write" in here.seconds:
        job.clock.add("write", here.seconds["write"])
    common = [produced for produced in problems if produced.common]
    if common:
        logger.warning(
            "%s: %d images skipped, the first is %s: %s",
            stage.name, len(common), common[0].image_id, common[0].problem,
        )  # fmt: skip
    if formats:
        found = ", ".join(f"{count} files: {name}" for name, count in formats.most_common())
        logger.info("%s: %s", stage.name, found)
    skipped = len(problems)
    counts = {"images": len(pending) - skipped, "kept": len(share) - len(pending), "skipped": skipped}
    return job.ranks.from_first(partial(_checked, stage.name, job.ranks.total(counts)))


def _checked(name: str, counts: dict[str, int]) -> dict[str, int]:
    if counts["skipped"] and not counts["images"] + counts["kept"]:
        raise DataError(
            f"{name}: every one of the {counts['skipped']} images was skipped; see the messages above"
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
            if not is_out_of_memory(error) or attempts >= _MEMORY_ATTEMPTS or not left:
                raise
            named = error.image_id if isinstance(error, MemoryExhausted) else None
        # Where the error does not name it: networks take the pictures in order.
        image_id = next(iter(left)) if named is None else named
        left.pop(image_id, None)
        yield Produced(
            image_id, problem="not enough memory for this image; make it smaller, or free some memory"
        )


def _log_summary(
    name: str, job: Job[Any, Any], counts: Mapping[str, int], seconds: float, place: Path
) -> None:
    images = counts.get("images", 0)
    rate = f", {images / seconds:.2f} images/s" if seconds > 0 and images else ""
    shares = shares_of_time(job.clock.seconds, seconds)
    extra = "".join(
        f", {counts[key]} {text}"
        for key, text in (("kept", "already there"), ("skipped", "skipped"))
        if counts.get(key)
    )
    spent = f"{rate} ({shares})" if shares else rate
    logger.info("%s: %d images in %.1f s%s%s -> %s", name, images, seconds, spent, extra, place)


def shares_of_time(sections: Mapping[str, float], total: float) -> str:
    """Shares of a stage's time as text, such as "network 62 %, walk 30 %, other 8 %".

    Args:
        sections: seconds by section.
        total: seconds of the whole stage; what no section covers is called "other".
    """
    if not sections or total <= 0:
        return ""
    seconds = {**sections, "other": max(total - sum(sections.values()), 0.0)}
    shares = {name: spent / total for name, spent in seconds.items()}
    return ", ".join(
        f"{name} {100 * share:.0f} %" for name, share in shares.items() if share >= _SMALLEST_SHARE
    )
