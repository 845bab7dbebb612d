"""Beginning a stage half-way, from an artifact of its own that was kept, with other parameters."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from irn_pipeline.engine.declaration import Job, MapStage, Remake
from irn_pipeline.engine.inputs import read_inputs
from irn_pipeline.engine.provenance import (
    Origin,
    differences,
    facts_of,
    fingerprints_kept,
    stage_fingerprint,
)
from irn_pipeline.engine.store import StageRecord, remove
from irn_pipeline.errors import ArtifactError


def begin_remake(
    stage: MapStage[Any], remake: Remake[Any], job: Job[Any, Any], previous: StageRecord | None
) -> Origin:
    """Clear the way for other values of the free parameters.

    What the stage made with other values is removed, the kept artifact stays.

    Args:
        stage: the stage.
        remake: its declaration of what may change.
        job: with the new parameters.
        previous: record of what the stage's folder holds.

    Returns:
        What the results are made from: that of the kept artifact, and the new parameters.

    Raises:
        ArtifactError: the artifact was not kept, or made from other things than the job's.
    """
    folder, source = job.run.stage_dir(stage.folder(job.params)), remake.source
    if previous is None:
        raise ArtifactError(
            f"{folder}: {remake.flag} needs the {source.name} of an earlier run, and there is none; "
            f"run {stage.name} with {remake.keep_flag} first"
        )
    reads = fingerprints_kept(job.run, previous)
    # What an earlier version's record does not name had the default's effect.
    defaults = {entry.name: entry.default for entry in fields(job.params)}
    recorded = {name: previous.params.get(name, defaults[name]) for name in remake.free}
    # A record is JSON, which knows lists only.
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in recorded.items()}
    then = replace(job, params=replace(job.params, **values))
    facts = {**previous.facts, **facts_of(stage, job)}
    found = differences(stage, then, reads, facts, previous)
    if found:
        raise ArtifactError(
            f"{folder}: holds results made from other things ({'; '.join(found)}); with {remake.flag} only "
            f"{', '.join(remake.free)} may change; give the others as they were, or --overwrite {remake.keep_flag} "
            f"without {remake.flag} to build this stage again"
        )
    if not differences(stage, job, reads, facts, previous) and not job.execution.overwrite:
        return Origin(previous.fingerprint, reads, facts, previous)
    made = [artifact for artifact in stage.writes if artifact is not source]
    lost = [
        item.image_id
        for item in job.data.items
        if any(job.run.has(artifact, item.image_id) for artifact in made)
        and not job.run.has(source, item.image_id)
    ]
    if lost:
        raise ArtifactError(
            f"{folder}: no {source.name} were kept of {len(lost)} pictures, the first is {lost[0]}; run {stage.name} "
            f"with {remake.keep_flag} and the parameters of these results first"
        )
    if remake.require is not None:
        remake.require(job)
    # Before the new record is written: an interruption in between leaves gaps, but nothing made otherwise.
    for artifact in made:
        remove(job.run.stage_dir(artifact.stage) / artifact.name)
    fingerprint = stage_fingerprint(stage, job, reads, facts=facts, inputs=read_inputs(folder))
    return Origin(fingerprint, reads, facts, previous)
