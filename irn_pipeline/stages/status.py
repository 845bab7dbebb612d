"""How far a run folder has come: one line a stage, and the command to type next."""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from irn_pipeline.engine.stage import Data, FitStage, Job, MapStage, ReduceStage, Stage
from irn_pipeline.engine.store import RESUME_NAME, Artifact, RunFolder, StageRecord
from irn_pipeline.errors import ArtifactError
from irn_pipeline.files.lock import holder_of

logger = logging.getLogger(__name__)
State = Literal["done", "running", "partial", "stale", "missing", "damaged"]


@dataclass(frozen=True)
class Params:
    """Parameters of the status: none."""


def stage_of(stages: Sequence[Stage[Any]]) -> ReduceStage[Params]:
    """The tool that tells the state of these stages, which are in the order of the pipeline."""
    return ReduceStage(
        name="status",
        summary="Show which stages are done, partial, stale or missing, and what to run next.",
        params=Params,
        needs_data=False,
        run=partial(_run, stages),
        only_looks=True,
    )


def table(statuses: Sequence[StageStatus]) -> str:
    """One line a stage: folder, state, detail."""
    width = max(len(status.folder) for status in statuses)
    return "\n".join(
        f"{status.folder:<{width}}  {status.state:<8} {status.detail}".rstrip() for status in statuses
    )


def _run(stages: Sequence[Stage[Any]], job: Job[Params, Data]) -> int:
    if not job.run.root.is_dir():
        raise ArtifactError(
            f"{job.run.root}: no such run folder; name the --run-dir that the stages were given"
        )
    statuses = stage_statuses(job.run, stages)
    # At this level --quiet does not hide what was asked for.
    logger.warning("%s\nnext: %s", table(statuses), next_command(statuses, job.run.root))
    return len(statuses)


@dataclass(frozen=True)
class StageStatus:
    """How far one stage, or one variant of it, has come.

    Attributes:
        stage: name of the stage.
        folder: name of its folder in the run folder.
        state: done, running (another process holds its lock), partial, stale (made from results that have changed
            since), missing, or damaged (its record cannot be read).
        detail: counts, or why.
        always_anew: whether the stage is done anew whenever it is run, so that nothing must be removed first.
    """

    stage: str
    folder: str
    state: State
    detail: str = ""
    always_anew: bool = False


def stage_statuses(run: RunFolder, stages: Sequence[Stage[Any]]) -> list[StageStatus]:
    """The state of every stage; those with variants have one entry for each that is there.

    Args:
        run: the run folder.
        stages: in the order of the pipeline.
    """
    found: list[StageStatus] = []
    there = run.folders()
    for stage in stages:
        folders = [stage.name]
        if stage.variant is not None:
            folders = [name for name in there if name.startswith(f"{stage.name}/")] or folders
        before = {status.folder: status for status in found}
        found += [_status(run, stage, folder, before) for folder in folders]
    return found


def next_command(statuses: Sequence[StageStatus], run_dir: Path) -> str:
    """The command that brings a run forward, or a sentence that says that there is none.

    Args:
        statuses: of all stages, in order.
        run_dir: the run folder.
    """
    where = f"--run-dir {shlex.quote(str(run_dir))}"
    last = max((n for n, status in enumerate(statuses) if status.state != "missing"), default=-1)
    read = {status.stage for status in statuses if "which it reads" in status.detail}
    for number, status in enumerate(statuses):
        # What is missing before results that do without it (maps of another project, say) is not wanted.
        gone = status.state == "missing" and (number > last or bool(read))
        if status.state == "running":
            return f"wait: {status.folder}: {status.detail}"
        if status.state == "damaged":
            return f"{status.detail}"
        if gone or status.state in ("partial", "stale"):
            again = " --overwrite" if status.state == "stale" and not status.always_anew else ""
            return f"python -m stages.{status.stage} {where}{again}, with the flags that the run was started with"
    return "nothing left to do"


def _status(run: RunFolder, stage: Stage[Any], folder: str, before: dict[str, StageStatus]) -> StageStatus:
    anew = isinstance(stage, ReduceStage)
    place = run.stage_dir(folder)
    try:
        record = run.record(folder)
    except ArtifactError as error:
        return StageStatus(stage.name, folder, "damaged", str(error), anew)
    if record is None:
        return StageStatus(stage.name, folder, "missing", always_anew=anew)
    progress, whole = _progress(run, stage, place, record)
    holder = holder_of(place)
    if holder is not None:
        return StageStatus(stage.name, folder, "running", f"{progress}; {holder}", anew)
    why = _stale(run, record, before)
    if why:
        return StageStatus(stage.name, folder, "stale", why, anew)
    return StageStatus(stage.name, folder, "done" if whole else "partial", progress, anew)


def _stale(run: RunFolder, record: StageRecord, before: dict[str, StageStatus]) -> str:
    """What of the results that a stage has read is no longer as it was; "" where all is."""
    for name, then in record.reads.items():
        status = before.get(name)
        if status is None:
            continue  # not of this pipeline, or a later stage
        if status.state == "damaged":
            return f"the record of {name}, which it reads, is damaged"
        now = run.record(name)
        if now is None:
            return f"the results of {name}, which it reads, are gone"
        if now.fingerprint != then:
            return f"the results of {name}, which it reads, were made again with other parameters or inputs"
        if status.state == "stale":
            return f"{name}, which it reads, is stale"
    return ""


def _progress(run: RunFolder, stage: Stage[Any], place: Path, record: StageRecord) -> tuple[str, bool]:
    """What is there of what there shall be, in words, and whether that is all."""
    if isinstance(stage, MapStage):
        return _pictures(run, stage, record)
    if isinstance(stage, FitStage):
        # Variants have folders of their own below the one that the declaration names.
        names = [f"{artifact.name}{artifact.suffix}" for artifact in stage.writes if not artifact.per_image]
        lacking = [name for name in names if not (place / name).is_file()]
        if record.complete and not lacking:
            return _told(record), True
        return (f"{lacking[0]} is gone" if record.complete else _epochs(place, record)), False
    return _told(record), record.complete


def _pictures(run: RunFolder, stage: MapStage[Any], record: StageRecord) -> tuple[str, bool]:
    counts = record.counts
    there = min((len(run.image_ids(artifact)) for artifact in _written(run, stage, record)), default=0)
    if not record.complete:
        total = counts.get("total")
        # The folder may hold pictures of other lists as well.
        return (f"{there} files" if total is None else f"{min(there, total)} of {total} images"), False
    expected = counts.get("images", 0) + counts.get("kept", 0)
    if there < expected:
        return f"{there} of {expected} images: files were removed", False
    return _told(record), True


def _written(run: RunFolder, stage: MapStage[Any], record: StageRecord) -> Sequence[Artifact[Any]]:
    try:
        return stage.written(stage.params(**record.params))
    except (TypeError, ValueError):  # a record of another version of this program
        return [
            artifact for artifact in stage.writes if (run.stage_dir(artifact.stage) / artifact.name).is_dir()
        ]


def _epochs(place: Path, record: StageRecord) -> str:
    epochs = record.params.get("epochs")
    try:
        lines = (place / "losses.jsonl").read_text(encoding="utf-8").splitlines()
        epoch = int(json.loads(lines[-1])["epoch"])
    except (OSError, ValueError, KeyError, IndexError, TypeError, OverflowError, RecursionError):
        return "no step of the training is done"
    of = f" of {epochs}" if epochs else ""
    kept = "the epochs before it are kept" if (place / RESUME_NAME).is_file() else "no epoch is finished yet"
    return f"in epoch {epoch + 1}{of}; {kept}"


def _told(record: StageRecord) -> str:
    counts = record.counts
    pictures = counts.get("images", 0) + counts.get("kept", 0)
    skipped = f", {counts['skipped']} skipped" if counts.get("skipped") else ""
    return f"{pictures} images{skipped}, {record.seconds:.1f} s"
