"""Lines of the report's charts as numbers; the template draws them as SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from irn_pipeline.export.report_records import Series

SIDE = 1000
"""Width and height of the plane that charts are drawn on; y counts down."""


@dataclass(frozen=True)
class Line:
    """Name, (x, y) on the plane and what the points stand for."""

    name: str
    points: tuple[tuple[int, int], ...]
    values: tuple[str, ...]


@dataclass(frozen=True)
class Chart:
    """Lines over a common pair of axes.

    Attributes:
        ticks: value and y of each grid line.
        ends: smallest and largest x.
        lines: what is drawn.
    """

    ticks: tuple[tuple[str, int], ...]
    ends: tuple[str, str]
    lines: tuple[Line, ...]


def line_chart(series: Sequence[Series]) -> Chart | None:
    """The chart of some series; its y axis includes 0. None where no series has a point."""
    points = [point for one in series for point in one.points]
    if not points:
        return None
    xs, ys = zip(*points, strict=True)
    ticks = nice_ticks(min(*ys, 0.0), max(*ys, 0.0))
    first, last = min(xs), max(xs)

    def across(x: float) -> int:
        return round(SIDE * (x - first) / (last - first)) if last > first else SIDE // 2

    def down(y: float) -> int:
        return round(SIDE * (ticks[-1] - y) / (ticks[-1] - ticks[0]))

    lines = [
        Line(
            one.name,
            tuple((across(x), down(y)) for x, y in one.points),
            tuple(f"{y:.4g} at {x:.4g}" for x, y in one.points),
        )
        for one in series
    ]
    ends = (f"{first:.3g}", f"{last:.3g}") if last < 1 else (f"{first:.0f}", f"{last:.0f}")
    return Chart(tuple((f"{tick:g}", down(tick)) for tick in ticks), ends, tuple(lines))


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers, about `count` of them, from the last one <= `low` to the first one >= `high`.

    Example:
        >>> nice_ticks(0.0, 0.93)
        [0.0, 0.25, 0.5, 0.75, 1.0]
    """
    span = high - low
    if not math.isfinite(span) or span <= 0:
        span = max(abs(low), 1.0)
        high = low + span
    raw = span / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(position * step, 12) for position in range(first, last + 1)]
