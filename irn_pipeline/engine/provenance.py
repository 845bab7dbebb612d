"""What results are made from, and whether a stage may go on with those that its folder holds."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import Field, asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from irn_pipeline.engine.aside import set_aside
from irn_pipeline.engine.inputs import Inputs, digests, read_inputs, take_stock, write_inputs
from irn_pipeline.engine.stage import FitStage, Job, MapStage, ReduceStage, Remake, Stage
from irn_pipeline.engine.store import (
    RESUME_NAME,
    StageRecord,
    fingerprint_of,
    require_same_classes,
)
from irn_pipeline.errors import ArtifactError
from irn_pipeline.files.atomic import PART_PREFIX, remove
from irn_pipeline.files.lock import LOCK_NAME

_EARLIER = "made by an earlier version of this stage, which gave other results"
_LATER = "made by a later version of this stage"
_UNKNOWN = "the seed, the class names, the list of images or the version of this program changed"


@dataclass(frozen=True)
class Origin:
    """What a stage makes its results from; `previous` is the record of the results that it goes on with."""

    fingerprint: str
    reads: dict[str, str]
    facts: dict[str, str]
    previous: StageRecord | None


def origin_of(stage: Stage[Any], job: Job[Any, Any]) -> Origin:
    """Compare what a stage's folder holds with what it would be made from now; with --overwrite, set it aside.

    The caller holds the folder's lock. Results of a run that failed before it made anything are none.

    Raises:
        ArtifactError: something that the stage reads is missing, or the folder holds results of other things.
    """
    place = job.run.stage_dir(stage.folder(job.params))
    previous = job.run.record(stage.folder(job.params))
    if isinstance(stage, MapStage) and stage.remake is not None and stage.remake.chosen(job.params):
        return _half_way(stage, stage.remake, job, place, previous)
    reads = _reads(stage, job)
    named = stage.files(job) if stage.files is not None else {}
    known = read_inputs(place)
    if previous is not None and job.execution.overwrite:
        _require_sources_elsewhere(place, job.params)
        set_aside(place, keep=LOCK_NAME)
        previous = None
    if not isinstance(stage, ReduceStage) and not has_results(stage, place):
        previous = None
    made = None if previous is None else partial(_is_made, stage, job)
    inputs, changed = take_stock(named, known, made, job.execution)
    facts = facts_of(stage, job)
    fingerprint = stage_fingerprint(stage, job, reads, facts, inputs)
    if previous is not None and not isinstance(stage, ReduceStage):
        if job.execution.precision == "auto" and _nothing_to_do(stage, job, previous):
            # The machine's choice matters only where something is computed.
            facts |= {name: was for name, was in previous.facts.items() if name == "precision"}
        by_content = {name for name, sets in inputs.items() if len(sets) == len(known.get(name, ()))}
        found = differences(stage, job, reads, facts, previous, by_content) + changed
        if found:
            raise ArtifactError(_refusal(place, found, previous, facts))
        fingerprint = previous.fingerprint
    if inputs:
        # Before the record: files are compared for results that are there, so an interruption in between does no harm.
        write_inputs(place, inputs)
    return Origin(fingerprint, reads, facts, previous)


def _half_way(
    stage: MapStage[Any], remake: Remake[Any], job: Job[Any, Any], place: Path, previous: StageRecord | None
) -> Origin:
    """Clear the way for other values of the free parameters: what was made with others goes, the artifact stays."""
    if previous is None:
        raise ArtifactError(
            f"{place}: {remake.flag} needs the {remake.source.name} of an earlier run, and there is none; "
            f"run {stage.name} with {remake.keep_flag} first"
        )
    now = {name: job.run.record(name) for name in previous.reads}
    # The folder of a stage that was read may be gone.
    reads = {
        name: was if (record := now[name]) is None else record.fingerprint
        for name, was in previous.reads.items()
    }
    facts = {**previous.facts, **facts_of(stage, job)}
    found = differences(stage, job, reads, facts, previous, remake.free)
    if found:
        raise ArtifactError(
            f"{place}: holds results made with other settings or data ({'; '.join(found)}); with {remake.flag} only "
            f"{', '.join(remake.free)} may change; give the others as they were, or --overwrite {remake.keep_flag} "
            f"without {remake.flag} to build this stage again"
        )
    if not job.execution.overwrite and not differences(stage, job, reads, facts, previous):
        return Origin(previous.fingerprint, reads, facts, previous)
    has = job.run.has
    made = [artifact for artifact in stage.writes if artifact is not remake.source]
    ids = [item.image_id for item in job.data.items]
    lost = [
        one for one in ids if any(has(artifact, one) for artifact in made) and not has(remake.source, one)
    ]
    if lost:
        raise ArtifactError(
            f"{place}: no {remake.source.name} were kept of {len(lost)} images, the first is {lost[0]}; run "
            f"{stage.name} with {remake.keep_flag} and the parameters of these results first"
        )
    if remake.require is not None:
        remake.require(job)
    # Before the new record is written: an interruption in between leaves gaps, but nothing made otherwise.
    for artifact in made:
        remove(place / artifact.name)
    return Origin(stage_fingerprint(stage, job, reads, facts, read_inputs(place)), reads, facts, previous)


def facts_of(stage: Stage[Any], job: Job[Any, Any]) -> dict[str, str]:
    """What results depend on beside parameters, files and other stages, by name.

    The stage's version and the class names; how items are read; where something is fitted the seed and the list of
    images; where networks run, their precision.
    """
    found = {"version": str(stage.version), "classes": fingerprint_of(list(job.data.identity))}
    if job.data.pixels:
        found["pixels"] = job.data.pixels
    if stage.is_fitted(job.params):
        found["seed"] = str(job.execution.seed)
        found["images"] = fingerprint_of(_trained_on(job))
    if stage.runs_network is not None and stage.runs_network(job.params):
        found["precision"] = job.execution.effective_precision
    return found


def _trained_on(job: Job[Any, Any]) -> list[str]:
    """Ids of what a training may use."""
    return sorted(item.image_id for item in (*job.data.items, *job.data.negatives))


def stage_fingerprint(
    stage: Stage[Any], job: Job[Any, Any], reads: Mapping[str, str], facts: Mapping[str, str], inputs: Inputs
) -> str:
    """Hash of all that the stage's results depend on; files that parameters name count by content."""
    values = asdict(job.params)
    params = {
        f.name: values[f.name] for f in fields(job.params) if f.name not in inputs and _counts(f, values)
    }
    parts: dict[str, Any] = {
        "stage": stage.name, "version": stage.version, "params": params,
        "reads": dict(reads), "data": list(job.data.identity),
    }  # fmt: skip
    if stage.is_fitted(job.params):
        parts["seed"] = job.execution.seed
        parts["images"] = _trained_on(job)
    if inputs:
        parts["inputs"] = digests(inputs)
    parts |= {name: facts[name] for name in ("precision", "pixels") if name in facts}
    return fingerprint_of(parts)


def _counts(entry: Field[Any], values: Mapping[str, Any]) -> bool:
    """Whether results depend on a parameter, by its metadata "fingerprint".

    False: a choice between two ways to the same result. "unless default": it came with a later version, so folders of
    earlier ones stay valid. "before" names the value whose effect those folders have, where that is not the default.
    """
    counts = entry.metadata.get("fingerprint", True)
    return bool(counts) and (counts != "unless default" or values[entry.name] != _before(entry))


def _before(entry: Field[Any]) -> Any:
    return entry.metadata.get("before", entry.default)


def _reads(stage: Stage[Any], job: Job[Any, Any]) -> dict[str, str]:
    """Fingerprint of every stage that is read."""
    reads: dict[str, str] = {}
    for artifact in stage.read(job.params):
        record = job.run.record(artifact.stage)
        if record is None or (not record.complete and not artifact.per_image):
            state = "is not there" if record is None else "is not finished"
            raise ArtifactError(
                f"{job.run.root}: {stage.name} reads the {artifact.name} of stage {artifact.stage}, which {state}; "
                f"run stage {artifact.stage} on this --run-dir first"
            )
        require_same_classes(job.run, job.data.identity, job.data.origin, artifact.stage)
        reads[artifact.stage] = record.fingerprint
    if isinstance(stage, ReduceStage):
        # It reads whatever there is; recorded so that `status` can tell whether it is stale.
        others = [name for name in job.run.folders() if name.split("/")[0] != stage.name]
        records = {name: job.run.record(name) for name in others}
        reads |= {name: record.fingerprint for name, record in records.items() if record is not None}
    return reads


def differences(
    stage: Stage[Any],
    job: Job[Any, Any],
    reads: Mapping[str, str],
    facts: Mapping[str, str],
    previous: StageRecord,
    ignored: Collection[str] = (),
) -> list[str]:
    """What a stage would now make its results from that those of `previous` were not made from, one phrase each.

    What the record of an earlier version of this program does not say is taken to be the same; so are the parameters
    that are `ignored`.
    """
    found = []
    for name, now in facts.items():
        was = previous.facts.get(name, now)
        if was != now and name == "version":
            found.append(_LATER if was.isdecimal() and int(was) > int(now) else _EARLIER)
        elif was != now and name in ("classes", "images"):
            found.append(f"the {'class names' if name == 'classes' else 'list of images'} changed")
        elif was != now:
            found.append(f"{name} was {was}, is now {now}")
    known = {entry.name: previous.params.get(entry.name, _before(entry)) for entry in fields(job.params)}
    for entry in fields(job.params):
        now, was = _plain(getattr(job.params, entry.name)), _plain(known[entry.name])
        if entry.metadata.get("fingerprint", True) and entry.name not in ignored and was != now:
            # Nobody has asked for a default that has changed.
            moved = "before" in entry.metadata and (was, now) == (
                _plain(_before(entry)),
                _plain(entry.default),
            )
            remedy = f": --{entry.name.replace('_', '-')} {was} goes on with them" if moved else ""
            found.append(f"{entry.name} was {was}, is now {now}{remedy}")
    if not found and not previous.facts:
        # The earliest versions recorded no facts; their hash holds them.
        then = replace(job, params=replace(job.params, **{name: _tuple(known[name]) for name in ignored}))
        if stage_fingerprint(stage, then, previous.reads, {}, {}) != previous.fingerprint:
            found.append(_UNKNOWN)
    return found + [
        f"the results of {name} that it reads were made again"
        for name, now in reads.items()
        if previous.reads.get(name, now) != now
    ]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value  # as JSON keeps it


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _refusal(place: Path, found: list[str], previous: StageRecord, facts: Mapping[str, str]) -> str:
    """Why results cannot stay beside those that a folder holds, and the ways out, in one line."""
    ways = ["give another --run-dir, or --overwrite to build this stage again"]
    then = previous.facts.get("precision", "")
    if facts.get("precision", then) != then:
        ways.insert(0, f"give --precision {then} to continue as it was started")
    if _EARLIER in found:
        ways.insert(0, "run the later stages by name to use them as they are")
    return (
        f"{place}: holds results made with other settings or data ({'; '.join(found)}); {', or '.join(ways)}"
    )


def _require_sources_elsewhere(place: Path, params: Any) -> None:
    """Refuse to clear a folder when a parameter, or a part of one, is the path of something in it."""
    for name, value in asdict(params).items():
        for text in value if isinstance(value, tuple | list) else [value]:
            # Not Path.exists: it raises for texts that can be no path.
            there = isinstance(text, str) and os.path.exists(text)  # noqa: PTH110
            if there and Path(text).resolve().is_relative_to(place.resolve()):
                raise ArtifactError(
                    f"--{name.replace('_', '-')} {text}: is inside {place}, which --overwrite would replace; "
                    "copy it elsewhere first, or give another --run-dir"
                )


def has_results(stage: Stage[Any], place: Path) -> bool:
    """Whether a stage's folder holds what would be lost; the losses of an unfinished first epoch would not."""
    if isinstance(stage, FitStage):
        names = (RESUME_NAME, *(f"{artifact.name}{artifact.suffix}" for artifact in stage.writes))
        return any((place / name).is_file() for name in names)
    endings = ((one, ending) for one in stage.writes for ending in (one.suffix, ".tar"))
    files = (path for one, ending in endings for path in (place / one.name).rglob(f"*{ending}"))
    return any(not path.name.startswith(PART_PREFIX) for path in files)


def _is_made(stage: Stage[Any], job: Job[Any, Any], key: str) -> bool:
    """Whether there are results of a picture, or with "" of any: asked only where there are some."""
    return key == "" or all(job.run.has(artifact, key) for artifact in stage.written(job.params))


def _nothing_to_do(stage: Stage[Any], job: Job[Any, Any], previous: StageRecord) -> bool:
    if isinstance(stage, MapStage):
        return all(_is_made(stage, job, item.image_id) for item in job.data.items)
    return previous.complete
