"""What a stage declares, and the engine that runs one: skip what is there, write atomically, count, record."""

from __future__ import annotations

import logging
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from tqdm import tqdm

from irn_pipeline.errors import ArtifactError, DataError
from irn_pipeline.runtime.execution import Execution, seed_everything
from irn_pipeline.runtime.store import Artifact, RunFolder, StageRecord, fingerprint_of, versions

logger = logging.getLogger(__name__)


class Item(Protocol):
    """Anything with an id that per-image artifacts are named by."""

    @property
    def image_id(self) -> str:
        """File stem."""
        ...


class Data(Protocol):
    """The data set of a job, as far as the engine knows it."""

    @property
    def items(self) -> Sequence[Item]:
        """What a map stage works on, in order."""
        ...

    @property
    def identity(self) -> Sequence[str]:
        """What makes results differ whichever pictures are worked on: the class names."""
        ...


P = TypeVar("P")
D = TypeVar("D", bound=Data)


@dataclass(frozen=True)
class Job(Generic[P, D]):
    """Everything a stage's work gets: where to write, with which parameters, on what data, how."""

    run: RunFolder
    params: P
    data: D
    execution: Execution


@dataclass(frozen=True)
class Produced:
    """The artifacts of one image, in the order of the stage's `writes`; or why there are none.

    Attributes:
        image_id: of the item.
        values: the artifacts.
        problem: why there are none.
        common: the problem is of the kind that many items share: only the first and their number are told.
        file_format: what the item's input file was recognised as; the number of files of each is told at the end.
    """

    image_id: str
    values: tuple[Any, ...] = ()
    problem: str | None = None
    common: bool = False
    file_format: str | None = None


@dataclass(frozen=True)
class Stage(Generic[P]):
    """Declaration common to all kinds of stage.

    Attributes:
        name: name of the stage, of its module and of its folder.
        summary: one line, imperative.
        params: frozen dataclass of the parameters that change the result.
        reads: artifacts of other stages that must be there.
        writes: artifacts this stage makes.
        version: raised when the same parameters begin to give another result.
        variant: what of the parameters names a folder of its own below the stage's, so that results made with
            several values lie side by side; None for one folder.
        needs_data: whether a data set must be named.
        unread: those of `reads` that such parameters make needless; it may refuse parameters, before anything is
            written.
    """

    name: str
    summary: str
    params: type[P]
    reads: tuple[Artifact[Any], ...] = ()
    writes: tuple[Artifact[Any], ...] = ()
    version: int = 1
    variant: Callable[[P], str] | None = None
    needs_data: bool = True
    unread: Callable[[P], tuple[Artifact[Any], ...]] | None = None

    def folder(self, params: P) -> str:
        """Name of the folder, below the run folder, that holds what these parameters make."""
        return self.name if self.variant is None else f"{self.name}/{self.variant(params)}"


@dataclass(frozen=True)
class FitStage(Stage[P]):
    """Images -> one checkpoint. `fit` returns the number of pictures it has seen."""

    fit: Callable[[Job[P, Any]], int] = field(kw_only=True)


@dataclass(frozen=True)
class MapStage(Stage[P]):
    """One image -> its artifacts. `run` yields one `Produced` for each item it is given, in any order."""

    run: Callable[[Job[P, Any], Sequence[Any]], Iterator[Produced]] = field(kw_only=True)


@dataclass(frozen=True)
class ReduceStage(Stage[P]):
    """All artifacts -> files of its own; always done anew. `run` returns the number of pictures it covered."""

    run: Callable[[Job[P, Any]], int] = field(kw_only=True)


def run_stage(stage: Stage[Any], job: Job[Any, Any]) -> StageRecord:
    """Run one stage; what is there already and was made from the same things is kept.

    Raises:
        ArtifactError: something it reads is missing, or its folder holds results of other parameters.
        IrnError: whatever its work raises.
    """
    reads = _fingerprints_read(stage, job)
    fingerprint = stage_fingerprint(stage, job, reads)
    folder = stage.folder(job.params)
    previous = job.run.record(folder)
    if previous is not None and job.execution.overwrite:
        shutil.rmtree(job.run.stage_dir(folder))
        previous = None
    if previous is not None and previous.fingerprint != fingerprint and not isinstance(stage, ReduceStage):
        raise ArtifactError(_refusal(stage, job, previous, reads))
    seed_everything(job.execution.seed)
    record = StageRecord(
        stage=folder,
        fingerprint=fingerprint,
        params=asdict(job.params),
        reads=reads,
        complete=False,
        counts={},
        seconds=previous.seconds if previous else 0.0,
        versions=versions(),
    )
    if isinstance(stage, FitStage) and previous is not None and previous.complete:
        logger.info("%s: already done in %s", stage.name, job.run.stage_dir(folder))
        return previous
    job.run.write_record(record)
    start = time.perf_counter()
    counts = _work(stage, job)
    seconds = time.perf_counter() - start
    done = StageRecord(
        **{**asdict(record), "complete": True, "counts": counts, "seconds": record.seconds + seconds}
    )
    job.run.write_record(done)
    _log_summary(stage, job.run.stage_dir(folder), counts, seconds)
    return done


def stage_fingerprint(stage: Stage[Any], job: Job[Any, Any], reads: dict[str, str]) -> str:
    """Hash of all that the stage's results depend on."""
    parts: dict[str, Any] = {
        "stage": stage.name, "version": stage.version, "params": asdict(job.params), "reads": reads,
        "data": list(job.data.identity),
    }  # fmt: skip
    if isinstance(stage, FitStage):
        parts["seed"] = job.execution.seed
        parts["images"] = sorted(item.image_id for item in job.data.items)
    return fingerprint_of(parts)


def _work(stage: Stage[Any], job: Job[Any, Any]) -> dict[str, int]:
    if isinstance(stage, MapStage):
        return _map(stage, job)
    if isinstance(stage, FitStage):
        return {"images": stage.fit(job)}
    if isinstance(stage, ReduceStage):
        return {"images": stage.run(job)}
    raise TypeError(f"{type(stage).__name__} is no kind of stage")


def _map(stage: MapStage[Any], job: Job[Any, Any]) -> dict[str, int]:
    pending = [
        item
        for item in job.data.items
        if not all(job.run.has(artifact, item.image_id) for artifact in stage.writes)
    ]
    kept = len(job.data.items) - len(pending)
    problems: list[Produced] = []
    formats: Counter[str] = Counter()
    bar = tqdm(total=len(pending), desc=stage.name, unit="image", disable=job.execution.quiet)
    with bar:
        for produced in stage.run(job, pending) if pending else ():
            if produced.problem is not None:
                problems.append(produced)
                if not produced.common:
                    logger.warning("%s: skipped: %s", produced.image_id, produced.problem)
            else:
                formats.update(filter(None, [produced.file_format]))
                for artifact, value in zip(stage.writes, produced.values, strict=True):
                    job.run.write(artifact, value, produced.image_id)
            bar.update()
    _log_counted(stage, problems, formats)
    skipped = len(problems)
    if pending and skipped == len(pending):
        raise DataError(
            f"{stage.name}: every one of the {skipped} pictures was skipped; see the messages above"
        )
    return {"images": len(pending) - skipped, "kept": kept, "skipped": skipped}


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


def _fingerprints_read(stage: Stage[Any], job: Job[Any, Any]) -> dict[str, str]:
    run = job.run
    unread = stage.unread(job.params) if stage.unread is not None else ()
    reads: dict[str, str] = {}
    for artifact in stage.reads:
        if artifact in unread:
            continue
        record = run.record(artifact.stage)
        if record is None or (not record.complete and not artifact.per_image):
            state = "is not there" if record is None else "is not finished"
            raise ArtifactError(
                f"{run.root}: {stage.name} reads the {artifact.name} of stage {artifact.stage}, which {state}; "
                f"run stage {artifact.stage} on this --run-dir first"
            )
        reads[artifact.stage] = record.fingerprint
    return reads


def _refusal(stage: Stage[Any], job: Job[Any, Any], previous: StageRecord, reads: dict[str, str]) -> str:
    # Compare as JSON keeps them: tuples come back as lists.
    now = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(job.params).items()}
    changed = [
        f"{k} was {previous.params.get(k)}, is now {v}" for k, v in now.items() if previous.params.get(k) != v
    ]
    changed += [
        f"the results of {name} it reads were made anew"
        for name in reads
        if previous.reads.get(name) != reads[name]
    ]
    why = "; ".join(changed) or "the seed, the class names or the list of images changed"
    return (
        f"{job.run.stage_dir(stage.folder(job.params))}: holds results made from other things ({why}); "
        "give another --run-dir, or --overwrite to build this stage again"
    )


def _log_summary(stage: Stage[Any], folder: Path, counts: dict[str, int], seconds: float) -> None:
    images = counts.get("images", 0)
    rate = f", {images / seconds:.2f} images/s" if seconds > 0 and images else ""
    extra = "".join(
        f", {counts[k]} {text}"
        for k, text in (("kept", "already there"), ("skipped", "skipped"))
        if counts.get(k)
    )
    logger.info(
        "%s: %d images in %.1f s%s%s -> %s",
        stage.name,
        images,
        seconds,
        rate,
        extra,
        folder,
    )
