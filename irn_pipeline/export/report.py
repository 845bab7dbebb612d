"""The report: prepared records -> one HTML file that opens offline and asks no other host for anything."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from irn_pipeline.engine.store import StageRecord
from irn_pipeline.export.overlay import hues
from irn_pipeline.export.report_charts import line_chart
from irn_pipeline.export.report_pictures import wheel_legend
from irn_pipeline.export.report_records import Curves, Picture, Quality, Result, Series
from irn_pipeline.structures import background_name

MAPS, LABELS = "CAMs", "Synthesized labels"
_ROWS = {"cam": MAPS, "cam_components": MAPS, "semantic_label": LABELS, "instance_label": LABELS}
_NOT_SHARES = ("instances", "pictures", "abs_dic")
"""Figures that are no shares of 1."""
_PANELS = (
    ("photograph", "CAM"),
    ("instance labels", "ground-truth instances"),
    ("semantic labels", "ground-truth labels"),
)
"""Rows of panels of a picture on the first screen."""
_PANELS_WITHOUT_TRUTH = (_PANELS[0], ("instance labels", "semantic labels"))
_MOST_CLASSES = 5
"""Classes that are named among the signs of trouble."""
_PLACE_NAMES = {1: ("only one",), 2: ("best", "worst"), 3: ("best", "median", "worst")}


@dataclass(frozen=True)
class Report:
    """Everything the report shows.

    Attributes:
        title: name of the run.
        class_names: foreground classes, in order.
        stages: what is known of each stage, in the order of the run.
        data_name: name of the data set; empty where it is unknown.
        models: networks of the run, such as "CAM network: resnet18".
        curves: losses of each training.
        results: figures of the evaluation; empty without one.
        sweep: mIoU and AP50 over a threshold; empty without one.
        pictures: those of the gallery, in the order of the list.
        chosen: name of the rank and place in `pictures` of those on the first screen.
        ranked_by: completes "chosen by rank ...".
        signs: sentences about what looks wrong.
        num_pictures: pictures of the run, shown or not.
        class_counts: pictures whose tags name each class, in the order of `class_names`.
        notes: sentences about what could not be shown, and why.
    """

    title: str
    class_names: tuple[str, ...]
    stages: tuple[StageRecord, ...]
    data_name: str = ""
    models: tuple[str, ...] = ()
    curves: tuple[Curves, ...] = ()
    results: tuple[Result, ...] = ()
    sweep: tuple[Series, ...] = ()
    pictures: tuple[Picture, ...] = ()
    chosen: tuple[tuple[str, int], ...] = ()
    ranked_by: str = ""
    signs: tuple[str, ...] = ()
    num_pictures: int = 0
    class_counts: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()


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
    environment.filters |= {"seconds": seconds_text, "figure": figure_text}
    assert environment.loader is not None
    sources = {
        name: environment.loader.get_source(environment, name)[0] for name in ("report.css", "report.js")
    }
    rows = summary_rows(report.results)
    aspects = [report.pictures[place].aspect for _, place in report.chosen]
    return environment.get_template("report.html.j2").render(
        report=report,
        rows=rows,
        panels=_panels(report),
        aspect=round(float(np.clip(np.median(aspects), 0.75, 1.78)), 3) if aspects else 1,
        longest=max((stage.seconds for stage in report.stages), default=0) or 1,
        details=[(result, _details(result)) for result in report.results],
        curves=[
            (one.stage, [line_chart(lines) for lines in ([one.series] if one.common else zip(one.series))])
            for one in report.curves
        ],
        sweep=line_chart(report.sweep),
        sweep_best=[(one.name, *max(one.points, key=lambda point: point[1])) for one in report.sweep],
        class_columns=[
            (row.kind, name) for row in rows for name, _ in row.per_class if name in ("iou", "ap50")
        ],
        class_rows=list(_class_rows(report, rows)),
        gallery=_gallery(report),
        wheel=wheel_legend(),
        style=Markup(sources["report.css"]),
        script=Markup(sources["report.js"]),
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


def figure_text(value: float | None, name: str) -> str:
    """A figure for people: shares in per cent, a dash where nothing was measured.

    Example:
        >>> figure_text(None, "miou"), figure_text(187.0, "instances"), figure_text(0.65, "abs_dic")
        ('–', '187', '0.65')
    """
    if value is None:
        return "–"
    if name in _NOT_SHARES:
        return f"{value:.2f}" if name == "abs_dic" else f"{value:.0f}"
    return f"{100 * value:.1f}\N{NO-BREAK SPACE}%"


def summary_rows(results: Sequence[Result]) -> list[Result]:
    """One row for maps, labels and each model: their semantic and instance figures together."""
    rows: dict[str, Result] = {}
    for result in results:
        name = _ROWS.get(result.kind, result.kind.removeprefix("segmenters / "))
        before = rows.get(name, Result(name, ()))
        figures, per_class = before.figures + result.figures, before.per_class + result.per_class
        rows[name] = Result(name, figures, per_class)
    return list(rows.values())


def chosen_places(ranks: Sequence[tuple[float, float]], limit: int, keep: Sequence[int] = ()) -> list[int]:
    """Which pictures the gallery shows when there are more than `limit`.

    A quarter of them are the worst, a quarter the best, the rest lie evenly over the list.

    Args:
        ranks: a key of each picture that sorts from worst to best.
        limit: most pictures.
        keep: places of others that are shown if there is room.

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
    chosen.update([place for place in keep if place not in chosen][: limit - len(chosen)])
    others = [place for place in range(count) if place not in chosen]
    wanted = limit - len(chosen)
    chosen.update(others[int((number + 0.5) * len(others) / wanted)] for number in range(wanted))
    return sorted(chosen)


def by_rank(values: Sequence[float | None]) -> tuple[tuple[str, int], ...]:
    """Name of the rank and place of the best, two medians and the worst of what has a value.

    Example:
        >>> by_rank([0.5, 0.9, None, 0.1, 0.7])
        (('best', 1), ('median', 4), ('median', 0), ('worst', 3))
    """
    known = [(value, place) for place, value in enumerate(values) if value is not None]
    order = [place for _, place in sorted(known, key=lambda pair: (-pair[0], pair[1]))]
    names = _PLACE_NAMES.get(len(order), ("best", "median", "median", "worst"))
    if len(order) > 3:
        middle = (len(order) - 2) // 2
        order = [order[0], *order[middle : middle + 2], order[-1]]
    return tuple(zip(names, order, strict=False))


def signs_of_trouble(
    results: Sequence[Result], qualities: Sequence[Quality], stages: Sequence[StageRecord]
) -> tuple[str, ...]:
    """What looks wrong, one sentence each.

    Args:
        results: figures of the evaluation.
        qualities: of all pictures, or of those that are shown.
        stages: the stages of the run.
    """
    told = [f"Stage {stage.stage} has not finished." for stage in stages if not stage.complete]
    low: dict[str, list[str]] = {}
    for row in summary_rows(results):
        mean = dict(row.figures).get("miou") or 0.0
        for name, value in dict(row.per_class).get("iou", ()):
            if value is not None and value < mean / 2:
                low.setdefault(name, []).append(f"{row.kind} {figure_text(value, 'iou')}")
    told += [
        f"{name}: IoU below half of the mean ({', '.join(low[name])})." for name in list(low)[:_MOST_CLASSES]
    ]
    if len(low) > _MOST_CLASSES:
        told.append(f"IoU below half of the mean: {len(low) - _MOST_CLASSES} more classes.")
    for kind in dict.fromkeys(sign.kind for quality in qualities for sign in quality.signs):
        count = sum(any(sign.kind == kind for sign in quality.signs) for quality in qualities)
        told.append(f"{count} of {len(qualities)} images: {kind}.")
    return tuple(told)


def _panels(report: Report) -> list[list[list[tuple[str, Any]]]]:
    """Of each chosen picture, rows of title and panel; None for a panel that others have."""
    pictures = [report.pictures[place] for _, place in report.chosen]
    of = [{panel.title: panel for panel in picture.panels} for picture in pictures]
    there = {title for panels in of for title in panels}
    rows = _PANELS if there & {"ground-truth instances", "ground-truth labels"} else _PANELS_WITHOUT_TRUTH
    shown = [row for row in rows if there & set(row)]
    return [[[(title, panels.get(title)) for title in row] for row in shown] for panels in of]


def _details(result: Result) -> tuple[list[str], list[tuple[str, list[tuple[str, float | None]]]]]:
    """Names of all figures of one kind; and a row for all classes and for each class."""
    names = [name for name, _ in result.figures]
    columns = {("miou" if name == "iou" else name): dict(values) for name, values in result.per_class}
    names += [name for name in columns if name not in names]
    figures = dict(result.figures)
    classes = dict.fromkeys(name for column in columns.values() for name in column)
    rows = [("all", [(name, figures.get(name)) for name in names])]
    return names, rows + [(k, [(n, columns.get(n, {}).get(k)) for n in names]) for k in classes]


def _class_rows(
    report: Report, rows: Sequence[Result]
) -> Iterator[tuple[str, str | None, int | None, list[float | None]]]:
    """Name, colour, number of pictures and figures of each class, and of the background where it has any."""
    columns = [dict(values) for row in rows for name, values in row.per_class if name in ("iou", "ap50")]
    background = background_name(report.class_names)
    if any(background in column for column in columns):
        yield background, None, None, [column.get(background) for column in columns]
    counts = dict(zip(report.class_names, report.class_counts, strict=False))
    colours = hues(np.arange(len(report.class_names))).tolist()
    for name, colour in zip(report.class_names, colours, strict=True):
        values = [column.get(name) for column in columns]
        yield name, "#{:02x}{:02x}{:02x}".format(*colour), counts.get(name), values


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
            "signs": [sign.text for sign in picture.quality.signs],
            "panels": [
                [panel.title, panel.uri, panel.over, panel.smooth, panel.choices] for panel in picture.panels
            ],
        }
        for picture in report.pictures
    ]
