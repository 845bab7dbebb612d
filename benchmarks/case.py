"""What a benchmark is: cases, our method, the textbook's, and when their results count as the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

Array = npt.NDArray[Any]
Arrays = Sequence[Array]


class Disagreement(Exception):
    """The two methods of a benchmark give different results: its figures would mean nothing."""


@dataclass(frozen=True)
class Case:
    """One size of input.

    Attributes:
        size: (h, w) of the grid, or of the pictures.
        count: maps, labels or pictures.
        network: which ResNet, where there is one.
    """

    size: tuple[int, int]
    count: int = 1
    network: str = ""

    @property
    def name(self) -> str:
        """Such as `94x125 n5` or `375x500 n2 resnet18`."""
        return " ".join(filter(None, (f"{self.size[0]}x{self.size[1]}", f"n{self.count}", self.network)))

    @property
    def cells(self) -> int:
        """Cells or pixels of one map or picture."""
        return self.size[0] * self.size[1]


@dataclass(frozen=True)
class Prepared:
    """Work that is ready to be timed; everything that happens once per stage is done.

    Attributes:
        work: what is timed; its arrays are compared.
        audit: raises `Disagreement` when the arrays break a law that needs no reference.
        operations: arithmetic operations that the method cannot do without, 0 where they were not counted.
        bytes: bytes that it must move at least once.
    """

    work: Callable[[], Arrays]
    audit: Callable[[Arrays], None] | None = None
    operations: float = 0.0
    bytes: float = 0.0


@dataclass(frozen=True)
class Method:
    """One way to do it.

    Attributes:
        name: shown in the table.
        prepare: inputs, networks and whatever else is made once.
        reaches: whether it finishes a case in bearable time.
        operations: how its time grows; where it does not reach, its time is extrapolated by this.
    """

    name: str
    prepare: Callable[[Case], Prepared]
    reaches: Callable[[Case], bool] = lambda case: True
    operations: Callable[[Case], float] | None = None


@dataclass(frozen=True)
class Benchmark:
    """A comparison.

    Attributes:
        name: as given to `--only`.
        summary: one line.
        cases: in order of growing size, within each network.
        small: for continuous integration, a second or so each.
        ours: our method.
        references: the textbook's; each runs where it reaches.
        agreement: (ours, reference) -> largest difference in the benchmark's own measure; raises `Disagreement`.
    """

    name: str
    summary: str
    cases: tuple[Case, ...]
    small: tuple[Case, ...]
    ours: Method
    references: tuple[Method, ...]
    agreement: Callable[[Arrays, Arrays], float]

    def chosen(self, small: bool) -> tuple[Case, ...]:
        """The cases of a full or of a small run."""
        return self.small if small else self.cases
