"""Beginning a stage: whether it may go on with what its folder holds, and the record that says what it is made from."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from irn_pipeline.engine.declaration import FitStage, Job, MapStage, ReduceStage, Stage
from irn_pipeline.engine.inputs import Inputs, read_inputs, take_stock, write_inputs
from irn_pipeline.engine.lock import LOCK_NAME
from irn_pipeline.engine.provenance import (
    Origin,
    differences,
    facts_of,
    fingerprints_read,
    refusal,
    require_sources_elsewhere,
    stage_fingerprint,
)
from irn_pipeline.engine.remake import begin_remake
from irn_pipeline.engine.store import (
    PART_PREFIX,
    RESUME_NAME,
    StageRecord,
    clear_folder,
    remove_parts,
    versions,
)
from irn_pipeline.errors import ArtifactError


@dataclass(frozen=True)
class Begun:
    """A stage whose folder is ready for it: its record so far, and the one of the results that it goes on with."""

    record: StageRecord
    previous: StageRecord | None


def begin(stage: Stage[Any], job: Job[Any, Any]) -> Begun:
    """Make a stage's folder ready, of which the caller holds the lock, and write the record of an unfinished stage.

    A record without results, of a run that failed before it made anything, is replaced.

    Raises:
        ArtifactError: something that the stage reads is missing, or its folder holds results of other things.
    """
    folder = stage.folder(job.params)
    place = job.run.stage_dir(folder)
    previous = job.run.record(folder)
    if isinstance(stage, MapStage) and stage.remake is not None and stage.remake.chosen(job.params):
        origin = begin_remake(stage, stage.remake, job, previous)
    else:
        origin = _origin(stage, job, place, previous)
    previous = origin.previous
    made_with = versions()
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
    )
    if isinstance(stage, FitStage) and previous is not None and previous.complete:
        return Begun(record, previous)
    if previous is None or not previous.complete:
        remove_parts(place)
    job.run.write_record(record)
    return Begun(record, previous)


def _origin(stage: Stage[Any], job: Job[Any, Any], place: Path, previous: StageRecord | None) -> Origin:
    reads = _reads(stage, job)
    named = stage.files(job) if stage.files is not None else {}
    known = read_inputs(place)
    if previous is not None and job.execution.overwrite:
        require_sources_elsewhere(place, job.params)
        clear_folder(place, keep=LOCK_NAME)
        previous = None
    if not isinstance(stage, ReduceStage) and not _has_results(stage, place):
        previous = None
    made = None if previous is None else partial(_made, stage, job)
    execution = job.execution
    inputs, changed = take_stock(named, known, made, workers=execution.worker_count, quiet=execution.quiet)
    facts = facts_of(stage, job)
    fingerprint = stage_fingerprint(stage, job, reads, facts=facts, inputs=inputs)
    if previous is not None and not isinstance(stage, ReduceStage):
        if execution.precision == "auto" and _nothing_to_do(stage, job, previous):
            # The machine's choice matters only where something is computed.
            facts |= {name: then for name, then in previous.facts.items() if name == "precision"}
        found = differences(stage, job, reads, facts, previous, _by_content(inputs, known)) + changed
        if found:
            raise ArtifactError(refusal(place, found, previous, facts))
        fingerprint = previous.fingerprint
    if inputs:
        # Before the record: files are compared for results that are there, so an interruption in between does no harm.
        write_inputs(place, inputs)
    return Origin(fingerprint, reads, facts, previous)


def _reads(stage: Stage[Any], job: Job[Any, Any]) -> dict[str, str]:
    reads = fingerprints_read(job.run, stage.name, stage.read(job.params))
    if isinstance(stage, ReduceStage):
        # It is never refused, and reads whatever is there: kept so that its age can be told.
        others = [name for name in job.run.folders() if name.split("/")[0] != stage.name]
        records = {name: job.run.record(name) for name in others}
        reads |= {name: record.fingerprint for name, record in records.items() if record is not None}
    return reads


def _by_content(inputs: Inputs, known: Inputs) -> list[str]:
    """Parameters whose files were compared one by one."""
    return [name for name, sets in inputs.items() if len(sets) == len(known.get(name, ()))]


def _has_results(stage: Stage[Any], place: Path) -> bool:
    """Whether a stage's folder holds what would be lost; the losses of an unfinished first epoch would not."""
    if isinstance(stage, FitStage):
        names = (RESUME_NAME, *(f"{artifact.name}{artifact.suffix}" for artifact in stage.writes))
        return any((place / name).is_file() for name in names)
    files = (path for one in stage.writes for path in (place / one.name).rglob(f"*{one.suffix}"))
    return any(not path.name.startswith(PART_PREFIX) for path in files)


def _made(stage: Stage[Any], job: Job[Any, Any], key: str) -> bool:
    """Whether there are results of a picture, or with "" of any: asked only where there are some."""
    return key == "" or all(job.run.has(artifact, key) for artifact in stage.written(job.params))


def _nothing_to_do(stage: Stage[Any], job: Job[Any, Any], previous: StageRecord) -> bool:
    if isinstance(stage, MapStage):
        return all(_made(stage, job, item.image_id) for item in job.data.items)
    return previous.complete
