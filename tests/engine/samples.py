"""Made-up stages on plain items: copy each item's text in upper case, then join all that was made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from irn_pipeline.engine.execution import Execution
from irn_pipeline.engine.stage import FitStage, Job, MapStage, Produced, ReduceStage
from irn_pipeline.engine.store import Artifact, RunFolder
from irn_pipeline.errors import DataError


@dataclass(frozen=True)
class Word:
    image_id: str
    text: str


@dataclass(frozen=True)
class Words:
    items: tuple[Word, ...]
    identity: tuple[str, ...] = ("letters",)
    origin: Path = Path("letters.txt")
    negatives: tuple[Word, ...] = ()
    pixels: str = ""


@dataclass(frozen=True)
class Source:
    """Words to work on."""

    words: str | None = None
    """Words with a blank between them."""


@dataclass(frozen=True)
class UpperParams:
    """Parameters of the copy."""

    repeat: int = 1
    """How many times."""
    scales: tuple[float, ...] = (1.0, 0.5)
    """Not used."""
    mark: Literal["dot", "dash"] = "dot"
    """What ends a word."""
    loud: bool = False
    """Not used."""

    def __post_init__(self) -> None:
        if self.repeat < 1:
            raise ValueError(f"repeat is {self.repeat}; it must be 1 or more")


@dataclass(frozen=True)
class CountParams:
    """Parameters of the count."""

    start: int = 0
    """Counted from here."""


def _write(path: Path, value: str) -> None:
    path.write_text(value)


TOTAL: Artifact[str] = Artifact("total", "count", ".txt", Path.read_text, _write, per_image=False)
UPPER: Artifact[str] = Artifact("upper", "upper", ".txt", Path.read_text, _write)
REPORT: Artifact[str] = Artifact("report", "report", ".txt", Path.read_text, _write, per_image=False)


def words(text: str) -> Words:
    return Words(tuple(Word(f"w{index}", word) for index, word in enumerate(text.split())))


def load(source: Source) -> Words:
    if source.words is None:
        raise DataError("no words: give --words")
    return words(source.words)


@dataclass
class Stages:
    """The stages, and what they were asked to do."""

    worked_on: list[str] = field(default_factory=list)
    fits: int = 0
    fail_at: str | None = None

    def _count(self, job: Job[CountParams, Words]) -> int:
        self.fits += 1
        job.run.write(TOTAL, str(job.params.start + len(job.data.items)))
        return len(job.data.items)

    def _upper(self, job: Job[UpperParams, Words], pending: Sequence[Word]) -> Iterator[Produced]:
        for word in pending:
            if word.image_id == self.fail_at:
                raise KeyboardInterrupt
            self.worked_on.append(word.image_id)
            if not word.text.isalpha():
                yield Produced(word.image_id, problem=f"{word.text} is no word")
                continue
            yield Produced(word.image_id, (word.text.upper() * job.params.repeat,))

    def _report(self, job: Job[CountParams, Words]) -> int:
        found = [job.run.read(UPPER, w.image_id) for w in job.data.items if job.run.has(UPPER, w.image_id)]
        job.run.write(REPORT, " ".join(found))
        return len(found)

    @property
    def count(self) -> FitStage[CountParams]:
        return FitStage("count", "Count words.", CountParams, writes=(TOTAL,), fit=self._count)

    @property
    def upper(self) -> MapStage[UpperParams]:
        return MapStage("upper", "Copy words.", UpperParams, reads=(TOTAL,), writes=(UPPER,), run=self._upper)

    @property
    def report(self) -> ReduceStage[CountParams]:
        return ReduceStage(
            "report", "Join words.", CountParams, reads=(UPPER,), writes=(REPORT,), run=self._report
        )


def job(folder: Path, params: Any, text: str = "one two three", **execution: Any) -> Job[Any, Words]:
    return Job(RunFolder(folder), params, words(text), Execution(quiet=True, device="cpu", **execution))
