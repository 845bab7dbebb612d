"""What results were made from: the parameters that count, what was read, and what has changed since."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import Field, asdict, fields
from pathlib import Path
from typing import Any

from irn_pipeline.errors import ArtifactError
from irn_pipeline.runtime.declaration import FitStage, Job, Stage
from irn_pipeline.runtime.store import Artifact, RunFolder, StageRecord, fingerprint_of

OTHER_FOLDER = "give another --run-dir, or --overwrite to build this stage again"
"""The two ways out where results were made from other things."""


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


def stage_fingerprint(stage: Stage[Any], job: Job[Any, Any], reads: dict[str, str]) -> str:
    """Hash of all that the stage's results depend on."""
    parts: dict[str, Any] = {
        "stage": stage.name, "version": stage.version, "params": result_params(job.params),
        "reads": reads, "data": list(job.data.identity),
    }  # fmt: skip
    if isinstance(stage, FitStage):
        parts["seed"] = job.execution.seed
        parts["images"] = sorted(item.image_id for item in job.data.items)
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


def refusal(folder: Path, params: Any, reads: Mapping[str, str], previous: StageRecord, remedy: str) -> str:
    """Why results cannot stay beside those that a folder holds, in one line.

    Args:
        folder: of the stage.
        params: the parameters now, a dataclass as for `result_params`.
        reads: fingerprint of every stage that is read, now.
        previous: the record of what the folder holds.
        remedy: what to do.
    """
    # Compare as JSON keeps them: tuples come back as lists.
    values, counted = asdict(params), result_params(params)
    changed = []
    for field in fields(params):
        name, value = field.name, values[field.name]
        value = list(value) if isinstance(value, tuple) else value
        # An earlier version's record has no word on what came later: that is told only where it is set now.
        told = name in previous.params or name in counted
        if field.metadata.get("fingerprint", True) and told and previous.params.get(name) != value:
            changed.append(f"{name} was {previous.params.get(name)}, is now {value}")
    changed += [
        f"the results of {name} it reads were made anew"
        for name in reads
        if previous.reads.get(name) != reads[name]
    ]
    why = "; ".join(changed) or "the seed, the class names or the list of images changed"
    return f"{folder}: holds results made from other things ({why}); {remedy}"
