"""What results were made from: the parameters that count, what was read, and what has changed since."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import Field, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from irn_pipeline.engine.declaration import FitStage, Job, Stage
from irn_pipeline.engine.inputs import Inputs, digests
from irn_pipeline.engine.store import Artifact, RunFolder, StageRecord, fingerprint_of
from irn_pipeline.errors import ArtifactError

OTHER_FOLDER = "give another --run-dir, or --overwrite to build this stage again"
"""The two ways out where results were made from other things."""
_BY_AN_EARLIER_VERSION = "made by an earlier version of this stage, which gave other results"
_BY_A_LATER_VERSION = "made by a later version of this stage"


def result_params(params: Any) -> dict[str, Any]:
    """The parameters that results depend on.

    Args:
        params: a dataclass; fields with the metadata {"fingerprint": False} do not count, such as a choice
            between two ways to the same result. Fields with {"fingerprint": "unless default"} count when they
            are set: they came with a later version, and folders of an earlier one stay valid.
    """
    values = asdict(params)
    return {field.name: values[field.name] for field in fields(params) if _counts(field, values)}


def _counts(field: Field[Any], values: dict[str, Any]) -> bool:
    counts = field.metadata.get("fingerprint", True)
    return bool(counts) and (counts != "unless default" or values[field.name] != field.default)


def require_sources_elsewhere(place: Path, params: Any) -> None:
    """Refuse to clear a folder when a parameter names something in it to read.

    Args:
        place: the folder.
        params: a dataclass; every text in it, and in its tuples, may be a path.

    Raises:
        ArtifactError: one does.
    """
    whole = place.resolve()
    for name, value in asdict(params).items():
        for text in value if isinstance(value, (tuple, list)) else [value]:
            # Not Path.exists: it raises for texts that can be no path.
            if not isinstance(text, str) or not os.path.exists(text):  # noqa: PTH110
                continue
            if Path(text).resolve().is_relative_to(whole):
                raise ArtifactError(
                    f"--{name.replace('_', '-')} {text}: lies in {place}, which --overwrite would clear; "
                    "copy it to another place first, or give another --run-dir"
                )


@dataclass(frozen=True)
class Origin:
    """What a stage makes its results from: their fingerprint, what is read, `facts_of`; and what it goes on with."""

    fingerprint: str
    reads: dict[str, str]
    facts: dict[str, str]
    previous: StageRecord | None


def facts_of(stage: Stage[Any], job: Job[Any, Any]) -> dict[str, str]:
    """What results depend on beside parameters, files and other stages, by name.

    The stage's version and the class names; in trainings the seed and the list of images; where networks run, their
    precision.
    """
    found = {"version": str(stage.version), "classes": fingerprint_of(list(job.data.identity))}
    if isinstance(stage, FitStage):
        found["seed"] = str(job.execution.seed)
        found["images"] = fingerprint_of(_trained_on(job))
    if stage.runs_network is not None and stage.runs_network(job.params):
        found["precision"] = job.execution.effective_precision
    return found


def _trained_on(job: Job[Any, Any]) -> list[str]:
    """Ids of the pictures that a training may use: the items, and those without a tag where the data set has some."""
    return sorted(item.image_id for item in (*job.data.items, *getattr(job.data, "negatives", ())))


def stage_fingerprint(
    stage: Stage[Any],
    job: Job[Any, Any],
    reads: Mapping[str, str],
    *,
    facts: Mapping[str, str] | None = None,
    inputs: Inputs | None = None,
) -> str:
    """Hash of all that the stage's results depend on.

    Args:
        stage: the stage.
        job: parameters, data set, execution.
        reads: fingerprint of every stage that is read.
        facts: those of `facts_of`; None for the fingerprint that versions without facts gave, by `stage.version`.
        inputs: the files that parameters name; their paths do not count.
    """
    inputs = inputs or {}
    params = {name: value for name, value in result_params(job.params).items() if name not in inputs}
    parts: dict[str, Any] = {
        "stage": stage.name, "version": stage.version, "params": params,
        "reads": dict(reads), "data": list(job.data.identity),
    }  # fmt: skip
    if isinstance(stage, FitStage):
        parts["seed"] = job.execution.seed
        parts["images"] = _trained_on(job)
    if inputs:
        parts["inputs"] = digests(inputs)
    if facts is not None and "precision" in facts:
        parts["precision"] = facts["precision"]
    return fingerprint_of(parts)


def fingerprints_read(run: RunFolder, stage: str, artifacts: Sequence[Artifact[Any]]) -> dict[str, str]:
    """Fingerprint of every stage whose artifacts are read.

    Args:
        run: the run folder.
        stage: name of the reading stage, for the message.
        artifacts: what it reads.

    Raises:
        ArtifactError: one is not there or not finished.
    """
    reads: dict[str, str] = {}
    for artifact in artifacts:
        record = run.record(artifact.stage)
        if record is None or (not record.complete and not artifact.per_image):
            state = "is not there" if record is None else "is not finished"
            raise ArtifactError(
                f"{run.root}: {stage} reads the {artifact.name} of stage {artifact.stage}, which {state}; "
                f"run stage {artifact.stage} on this --run-dir first"
            )
        reads[artifact.stage] = record.fingerprint
    return reads


def fingerprints_kept(run: RunFolder, previous: StageRecord) -> dict[str, str]:
    """What `previous` has read: the fingerprints of today, or those of then where a stage's folder was removed."""
    records = {name: run.record(name) for name in previous.reads}
    return {
        name: then if (now := records[name]) is None else now.fingerprint
        for name, then in previous.reads.items()
    }


def differences(
    stage: Stage[Any],
    job: Job[Any, Any],
    reads: Mapping[str, str],
    facts: Mapping[str, str],
    previous: StageRecord,
    by_content: Sequence[str] = (),
) -> list[str]:
    """What a stage would now make its results from that a folder's results were not made from, one phrase each.

    What the record does not tell, because an earlier version of this program wrote it, is taken to be the same.

    Args:
        stage: the stage.
        job: its job now.
        reads: fingerprint of every stage that is read, now.
        facts: those of `facts_of`, now.
        previous: the record of what the folder holds.
        by_content: parameters that name files whose contents were compared; their paths may differ.
    """
    found = _other_facts(facts, previous.facts) if previous.facts else _facts_by_hash(stage, job, previous)
    values = _as_json(job.params)
    for field in fields(job.params):
        name = field.name
        was = previous.params.get(name, _plain(field.default))
        if field.metadata.get("fingerprint", True) and name not in by_content and was != values[name]:
            found.append(f"{name} was {was}, is now {values[name]}")
    return found + [
        f"the results of {name} it reads were made anew"
        for name, now in reads.items()
        if previous.reads.get(name, now) != now
    ]


def _other_facts(facts: Mapping[str, str], then: Mapping[str, str]) -> list[str]:
    found = []
    for name, now in facts.items():
        was = then.get(name, now)
        if was == now:
            continue
        if name == "version":
            later = was.isdecimal() and now.isdecimal() and int(was) > int(now)
            found.append(_BY_A_LATER_VERSION if later else _BY_AN_EARLIER_VERSION)
        elif name in ("classes", "images"):
            found.append(f"the {'class names' if name == 'classes' else 'list of images'} changed")
        else:
            found.append(f"{name} was {was}, is now {now}")
    return found


def _facts_by_hash(stage: Stage[Any], job: Job[Any, Any], previous: StageRecord) -> list[str]:
    """The facts that a record of an earlier version of this program has in its fingerprint alone."""
    known = {field.name: field.default for field in fields(job.params)}
    recorded = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in previous.params.items()
        if name in known
    }
    try:
        then = replace(job, params=type(job.params)(**{**known, **recorded}))
    except (TypeError, ValueError):  # values that were possible then
        then = job
    for version in range(stage.version, 0, -1):
        if stage_fingerprint(replace(stage, version=version), then, previous.reads) == previous.fingerprint:
            return [] if version == stage.version else [_BY_AN_EARLIER_VERSION]
    return ["the seed, the class names, the list of images or the version of this program changed"]


def _as_json(params: Any) -> dict[str, Any]:
    return {name: _plain(value) for name, value in asdict(params).items()}


def _plain(value: Any) -> Any:
    # As JSON keeps it: tuples come back as lists.
    return list(value) if isinstance(value, tuple) else value


def refusal(folder: Path, found: Sequence[str], previous: StageRecord, facts: Mapping[str, str]) -> str:
    """Why results cannot stay beside those that a folder holds, and the ways out, in one line.

    Args:
        folder: of the stage.
        found: what `differences` has found.
        previous: the record of what the folder holds.
        facts: those of `facts_of`, now.
    """
    ways = [OTHER_FOLDER]
    then = previous.facts.get("precision", "")
    if facts.get("precision", then) != then:
        ways.insert(0, f"give --precision {then} to go on as it was begun")
    if _BY_AN_EARLIER_VERSION in found:
        ways.insert(0, "run the later stages by name to use them as they are")
    return f"{folder}: holds results made from other things ({'; '.join(found)}); {', or '.join(ways)}"
