"""Small charts as inline SVG that follow the page's colours; no library, no request, text escaped."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from irn_pipeline.export.report_records import Bar, Series

_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 8, 26
_ROW = 22


def line_chart(
    series: Sequence[Series], *, x_label: str, width: int = 320, height: int = 170, from_zero: bool = True
) -> Markup:
    """Lines over a common pair of axes.

    Args:
        series: what is drawn; the n-th has the CSS class `sn`, n from 0.
        x_label: name of the x axis.
        width: width in pixels.
        height: height in pixels.
        from_zero: whether the y axis begins at 0 at the latest.

    Returns:
        An `<svg>` element; empty where no series has a point.
    """
    xs = [x for one in series for x, _ in one.points]
    ys = [y for one in series for _, y in one.points]
    if not xs:
        return Markup("")
    low, high = min(ys), max(ys)
    if from_zero:
        low, high = min(low, 0.0), max(high, 0.0)
    ticks = nice_ticks(low, high)
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    first, last = min(xs), max(xs)
    inner_width, inner_height = width - _LEFT - _RIGHT, height - _TOP - _BOTTOM

    def across(x: float) -> float:
        return round(_LEFT + inner_width * ((x - first) / (last - first) if last > first else 0.5), 1)

    def down(y: float) -> float:
        return round(_TOP + inner_height * (1 - (y - low) / (high - low)), 1)

    parts = [
        Markup(
            '<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/><text x="{}" y="{}" class="end">{}</text>'
        ).format(_LEFT, width - _RIGHT, down(tick), down(tick), _LEFT - 5, down(tick) + 3.5, f"{tick:g}")
        for tick in ticks
    ]
    baseline = height - _BOTTOM + 13
    parts += [
        Markup('<text x="{}" y="{}">{}</text>').format(_LEFT, baseline, f"{first:g}"),
        Markup('<text x="{}" y="{}" class="end">{}</text>').format(width - _RIGHT, baseline, f"{last:g}"),
        Markup('<text x="{}" y="{}" class="mid">{}</text>').format(
            _LEFT + inner_width / 2, baseline + 9, x_label
        ),
    ]
    for number, one in enumerate(series):
        points = " ".join(f"{across(x)},{down(y)}" for x, y in one.points)
        parts.append(
            Markup('<polyline class="s{}" points="{}"><title>{}</title></polyline>').format(
                number, points, one.name
            )
        )
        if len(one.points) <= 40:
            parts += [
                Markup(
                    '<circle class="s{}" cx="{}" cy="{}" r="2.5"><title>{}: {} at {}</title></circle>'
                ).format(number, across(x), down(y), one.name, f"{y:.4g}", f"{x:.4g}")
                for x, y in one.points
            ]
    return _svg(parts, width, height, ", ".join(one.name for one in series))


def bar_chart(bars: Sequence[Bar], *, maximum: float | None = None, width: int = 420) -> Markup:
    """Horizontal bars, their names on the left, their values behind them.

    Args:
        bars: what is drawn, from top to bottom.
        maximum: value of a bar over the whole width; by default the largest value.
        width: width in pixels.

    Returns:
        An `<svg>` element; empty without bars.
    """
    if not bars:
        return Markup("")
    full = maximum or max(max(bar.value for bar in bars), 1e-9)
    start = min(max(7 * max(len(bar.name) for bar in bars) + 10, 70), width // 2)
    room = width - start - 64
    parts = []
    for row, bar in enumerate(bars):
        top = row * _ROW + 3
        length = max(round(room * min(bar.value / full, 1.0), 1), 1)
        parts.append(
            Markup(
                '<text x="{}" y="{}" class="end">{}</text>'
                '<rect class="s0" x="{}" y="{}" width="{}" height="{}" rx="2"><title>{}: {}</title></rect>'
                '<text x="{}" y="{}">{}</text>'
            ).format(
                *(start - 6, top + 12, bar.name),
                *(start, top, length, _ROW - 6, bar.name, bar.text),
                *(start + length + 6, top + 12, bar.text),
            )
        )
    return _svg(parts, width, _ROW * len(bars) + 4, ", ".join(f"{bar.name} {bar.text}" for bar in bars))


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


def _svg(parts: Sequence[Markup], width: int, height: int, description: str) -> Markup:
    return Markup(
        '<svg class="chart" role="img" aria-label="{}" viewBox="0 0 {} {}" width="{}" height="{}">{}</svg>'
    ).format(description, width, height, width, height, Markup("").join(parts))
