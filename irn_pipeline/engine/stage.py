"""What a stage declares: what it reads and writes, its parameters, and the function that does the work.

Nothing here imports torch, so that a command line refuses a wrong flag at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from irn_pipeline.engine.execution import Execution
from irn_pipeline.engine.ranks import ALONE, Ranks
from irn_pipeline.engine.store import Artifact, RunFolder

P = TypeVar("P")
T = TypeVar("T")
D = TypeVar("D", bound="Data")


class Item(Protocol):
    """Anything with an id that per-image artifacts are named by."""

    @property
    def image_id(self) -> str:
        """File stem."""


class Data(Protocol):
    """The data set of a job, as far as the engine knows it."""

    @property
    def items(self) -> Sequence[Item]:
        """What a map stage works on, in order."""

    @property
    def negatives(self) -> Sequence[Item]:
        """What trainings may also learn from, and map stages pass over."""

    @property
    def identity(self) -> Sequence[str]:
        """What results of every picture depend on: the class names."""

    @property
    def pixels(self) -> str:
        """How items are read, where that is measured by the data; results of networks depend on it."""

    @property
    def origin(self) -> Path:
        """The folder or file that the data set was read from, for messages and records."""


class Clock:
    """Seconds of the wall clock spent in named sections, in the order in which they were first entered.

    For one thread. On a GPU, work is counted in the section that waits for its result.

    Example:
        >>> clock = Clock()
        >>> with clock.section("network"):
        ...     pass
        >>> list(clock.seconds)
        ['network']
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def add(self, name: str, seconds: float) -> None:
        """Count time that was measured elsewhere, as in a worker process."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        """Count the time until the block ends, by an error too. Sections are not nested and hold no `yield`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - start)

    def waiting(self, name: str, items: Iterable[T]) -> Iterator[T]:
        """The items, with the time that each is waited for counted; what is done between them is not."""
        iterator = iter(items)
        while True:
            with self.section(name):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item


@dataclass(frozen=True)
class Job(Generic[P, D]):
    """Everything a stage's function gets: where to write, with which parameters, on what data, how, beside whom.

    Every stage that is run gets a new clock. `reported` holds the problems of items that this command has reported.
    """

    run: RunFolder
    params: P
    data: D
    execution: Execution
    clock: Clock = field(default_factory=Clock, compare=False)
    ranks: Ranks = field(default=ALONE, compare=False)
    reported: set[tuple[str, str]] = field(default_factory=set, compare=False)

    def is_news(self, image_id: str, problem: str) -> bool:
        """Whether a problem has not been reported by this command yet; from now on it has."""
        known = (image_id, problem) in self.reported
        self.reported.add((image_id, problem))
        return not known

    def write(self, artifact: Artifact[T], value: T) -> None:
        """Write an artifact of the whole stage; of several processes, the first does.

        Raises:
            ArtifactError: the system refused the write.
        """
        if self.ranks.is_first:
            self.run.write(artifact, value)


@dataclass(frozen=True)
class Files:
    """Files that a parameter names: results are made from their content, wherever they lie.

    Attributes:
        path: as the parameter gives it, a file or a folder.
        of: key -> file. The key is the picture whose results alone are made from the file, or "" for all results.
    """

    path: Path
    of: Mapping[str, Path]

    @staticmethod
    def one(path: str | Path) -> Files:
        """One file that all results are made from."""
        return Files(Path(path), {"": Path(path)})


@dataclass(frozen=True)
class Produced:
    """The artifacts of one image, in the order of the stage's `writes`; or why there are none.

    Attributes:
        image_id: of the item.
        values: the artifacts.
        problem: why there are none.
        common: many items share the problem: it is reported once, with their number.
        file_format: format of the item's input file; the number of files of each is reported at the end.
        seconds: time spent on the item, by section, if a worker process made it.
    """

    image_id: str
    values: tuple[Any, ...] = ()
    problem: str | None = None
    common: bool = False
    file_format: str | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)


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
        variant: parameters -> subfolder for their results, so that several lie side by side; None for one folder.
        needs_data: whether a data set must be named.
        unread: parameters -> those of `reads` that they do not need; it may refuse parameters, before anything is
            written.
        unwritten: parameters -> those of `writes` that they leave out.
        files: job -> for each parameter the files that it names, one entry for each path given.
        runs_network: whether such parameters run a network, so that results depend on its precision; None for never.
        unused: parameters -> for each one without effect the reason; its flag is refused.
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
    unwritten: Callable[[P], tuple[Artifact[Any], ...]] | None = None
    files: Callable[[Job[P, Any]], Mapping[str, tuple[Files, ...]]] | None = None
    runs_network: Callable[[P], bool] | None = None
    unused: Callable[[P], Mapping[str, str]] | None = None

    def is_fitted(self, params: P) -> bool:
        """Whether results depend on the list of pictures as a whole, and on the seed."""
        return False

    def folder(self, params: P) -> str:
        """Name of the folder, below the run folder, that holds what these parameters make."""
        return self.name if self.variant is None else f"{self.name}/{self.variant(params)}"

    def read(self, params: P) -> tuple[Artifact[Any], ...]:
        """Those of `reads` that these parameters ask for."""
        unread = self.unread(params) if self.unread is not None else ()
        return tuple(artifact for artifact in self.reads if artifact not in unread)

    def written(self, params: P) -> tuple[Artifact[Any], ...]:
        """Those of `writes` that these parameters ask for."""
        unwritten = self.unwritten(params) if self.unwritten is not None else ()
        return tuple(artifact for artifact in self.writes if artifact not in unwritten)


@dataclass(frozen=True)
class Remake(Generic[P]):
    """That a stage can begin half-way, from an artifact of its own that was kept, to try other parameters.

    Attributes:
        source: the artifact, one of the stage's `writes`.
        chosen: whether such parameters ask for it.
        free: names of the parameters that may change; the others must be what they were when it was made.
        keep_flag: flag that keeps the artifact.
        flag: flag that begins half-way.
        require: raises an IrnError if the artifact cannot serve a job; called before anything is removed.
    """

    source: Artifact[Any]
    chosen: Callable[[P], bool]
    free: tuple[str, ...]
    keep_flag: str
    flag: str
    require: Callable[[Job[P, Any]], None] | None = None


@dataclass(frozen=True)
class FitStage(Stage[P]):
    """Images -> one checkpoint. `fit` returns the number of pictures it has seen."""

    fit: Callable[[Job[P, Any]], int] = field(kw_only=True)

    def is_fitted(self, params: P) -> bool:
        """Always."""
        return True


@dataclass(frozen=True)
class MapStage(Stage[P]):
    """One image -> its artifacts. `run` yields one `Produced` for each item it is given, in any order.

    Of several processes, each is given its share of the items. `fits` says whether such parameters first fit something
    to all pictures, so that results depend on their list and on the seed; None for never.
    """

    run: Callable[[Job[P, Any], Sequence[Any]], Iterator[Produced]] = field(kw_only=True)
    remake: Remake[P] | None = field(default=None, kw_only=True)
    fits: Callable[[P], bool] | None = field(default=None, kw_only=True)

    def is_fitted(self, params: P) -> bool:
        """Where these parameters first fit something."""
        return self.fits is not None and self.fits(params)


@dataclass(frozen=True)
class ReduceStage(Stage[P]):
    """All artifacts -> its own files, always made anew. `run` returns the number of pictures it covered.

    Of several processes, the first does it alone. One that only looks writes nothing, no record either.
    """

    run: Callable[[Job[P, Any]], int] = field(kw_only=True)
    only_looks: bool = field(default=False, kw_only=True)
