"""The report: prepared records -> one HTML file that opens offline and asks no other host for anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from irn_pipeline.export.report_charts import bar_chart, line_chart
from irn_pipeline.export.report_pictures import hues, wheel_legend
from irn_pipeline.export.report_records import Bar, Curves, Picture, Result, Series, StageSummary
from irn_pipeline.structures import background_name

SHOWN_EXTREMES = 8
"""Pictures in each of the rows "worst" and "best"."""
_FIGURES = (("miou", "Mean IoU of the labels"), ("ap50", "AP50 of the instances"))


@dataclass(frozen=True)
class Report:
    """Everything the report shows.

    Attributes:
        title: name of the run.
        class_names: foreground classes, in order.
        stages: what is known of each stage, in the order of the run.
        curves: losses of each training.
        results: figures of the evaluation; empty without one.
        sweep: mIoU and AP50 over a threshold; empty without one.
        pictures: those of the gallery, in the order of the list.
        num_pictures: pictures of the run, shown or not.
        class_counts: pictures whose tags name each class, in the order of `class_names`.
        notes: sentences about what could not be shown, and why.
    """

    title: str
    class_names: tuple[str, ...]
    stages: tuple[StageSummary, ...]
    curves: tuple[Curves, ...] = ()
    results: tuple[Result, ...] = ()
    sweep: tuple[Series, ...] = ()
    pictures: tuple[Picture, ...] = ()
    num_pictures: int = 0
    class_counts: tuple[int, ...] = ()
    notes: tuple[str, ...] = field(default=())


def render_report(report: Report) -> str:
    """The report's HTML: styles, script and pictures inside it; every name is escaped.

    Args:
        report: what is shown.

    Returns:
        The text of the file, to be stored as UTF-8.
    """
    environment = Environment(
        loader=PackageLoader("irn_pipeline", "export/templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["seconds"] = seconds_text
    by_truth = any(picture.quality.iou is not None for picture in report.pictures)
    # Where some have truth, the others cannot be compared with them.
    ranked = [
        p for p, picture in enumerate(report.pictures) if picture.quality.iou is not None or not by_truth
    ]
    order = sorted(ranked, key=lambda place: report.pictures[place].quality.rank)
    extremes = min(SHOWN_EXTREMES, -(-len(order) // 2))
    return environment.get_template("report.html.j2").render(
        report=report,
        tiles=_tiles(report),
        seconds_chart=bar_chart(
            [Bar(stage.name, stage.seconds, seconds_text(stage.seconds)) for stage in report.stages]
        ),
        metric_charts=[
            (title, bar_chart(_bars(report.results, figure), maximum=1.0))
            for figure, title in _FIGURES
            if _bars(report.results, figure)
        ],
        figure_names=_figure_names(report.results),
        loss_charts=[
            (
                curves.stage,
                [
                    (one.name, line_chart([one], x_label="step", width=270, height=150))
                    for one in curves.series
                ],
            )
            for curves in report.curves
        ],
        sweep_chart=line_chart(report.sweep, x_label="threshold", width=420, height=220),
        sweep_best=[(one.name, *max(one.points, key=lambda point: point[1])) for one in report.sweep],
        class_rows=_class_rows(report),
        class_columns=_class_columns(report.results),
        gallery=_gallery(report),
        worst=order[:extremes],
        best=order[::-1][:extremes],
        by_truth=by_truth,
        wheel=wheel_legend(),
        style=_source(environment, "report.css"),
        script=_source(environment, "report.js"),
    )


def seconds_text(seconds: float) -> str:
    """A duration for people.

    Example:
        >>> [seconds_text(value) for value in (4.25, 95, 7384)]
        ['4.2 s', '1 min 35 s', '2 h 03 min']
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def chosen_places(ranks: Sequence[tuple[float, float]], limit: int) -> list[int]:
    """Which pictures the gallery shows when there are more than `limit`.

    A quarter of them are the worst, a quarter the best, the rest lie evenly over the list.

    Args:
        ranks: a key of each picture that sorts from worst to best.
        limit: most pictures.

    Returns:
        Places in the list, ascending, without repeats.

    Example:
        >>> chosen_places([(0.9, 0), (0.1, 0), (0.5, 0), (0.6, 0), (0.7, 0)], 4)
        [0, 1, 2, 4]
    """
    count = len(ranks)
    if count <= limit:
        return list(range(count))
    order = sorted(range(count), key=lambda place: ranks[place])
    quarter = limit // 4
    chosen = {*order[:quarter], *order[count - quarter :]}
    others = [place for place in range(count) if place not in chosen]
    wanted = limit - len(chosen)
    chosen.update(others[int((number + 0.5) * len(others) / wanted)] for number in range(wanted))
    return sorted(chosen)


def _source(environment: Environment, name: str) -> Markup:
    assert environment.loader is not None
    return Markup(environment.loader.get_source(environment, name)[0])


def _tiles(report: Report) -> list[tuple[str, str]]:
    tiles = [("pictures", str(report.num_pictures)), ("classes", str(len(report.class_names)))]
    for result in report.results:
        for name, value in result.figures:
            if value is not None and (result.kind, name) in _HEADLINES:
                tiles.append((_HEADLINES[result.kind, name], f"{100 * value:.1f} %"))
    tiles.append(("computing time", seconds_text(sum(stage.seconds for stage in report.stages))))
    return tiles


_HEADLINES = {
    ("semantic_label", "miou"): "mIoU of the semantic labels",
    ("instance_label", "ap50"): "AP50 of the instance labels",
}


def _bars(results: Sequence[Result], figure: str) -> list[Bar]:
    values = [(result.kind, dict(result.figures).get(figure)) for result in results]
    return [Bar(kind, value, f"{100 * value:.1f}") for kind, value in values if value is not None]


def _figure_names(results: Sequence[Result]) -> list[str]:
    return list(dict.fromkeys(name for result in results for name, _ in result.figures))


def _class_columns(results: Sequence[Result]) -> list[str]:
    return [f"{result.kind}: {figure}" for result in results for figure, _ in result.per_class]


def _class_rows(report: Report) -> list[tuple[str, str | None, int | None, list[float | None]]]:
    """Name, colour, number of pictures and figures of each class, and of the background where it has any."""
    columns = [dict(values) for result in report.results for _, values in result.per_class]
    known = {name for column in columns for name in column}
    background = background_name(report.class_names)
    names = [background] if background in known else []
    colours = _colours(len(report.class_names))
    counts: dict[str, int] = dict(zip(report.class_names, report.class_counts, strict=False))
    rows: list[tuple[str, str | None, int | None, list[float | None]]] = [
        (name, None, None, [column.get(name) for column in columns]) for name in names
    ]
    for name, colour in zip(report.class_names, colours, strict=True):
        rows.append((name, colour, counts.get(name), [column.get(name) for column in columns]))
    return rows


def _colours(count: int) -> list[str]:
    return ["#{:02x}{:02x}{:02x}".format(*colour) for colour in hues(np.arange(count)).tolist()]


def _gallery(report: Report) -> list[dict[str, Any]]:
    """The pictures as the page's script reads them; short keys, because there may be thousands."""
    return [
        {
            "id": picture.image_id,
            "classes": list(picture.class_names),
            "aspect": round(picture.aspect, 4),
            "iou": picture.quality.iou,
            "score": picture.quality.score,
            "rank": list(picture.quality.rank),
            "instances": [[name, round(score, 3)] for name, score in picture.quality.instances],
            "signs": list(picture.quality.signs),
            "panels": [
                [panel.title, panel.uri, panel.over, panel.smooth, panel.choices] for panel in picture.panels
            ],
        }
        for picture in report.pictures
    ]
