"""What the report shows, as records; and how they are read from the JSON of a run folder."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from irn_pipeline.errors import ArtifactError
from irn_pipeline.export.report_pictures import Panel
from irn_pipeline.files.json_text import parse_json

_NOT_LOSSES = ("step", "epoch", "time")
_PER_CLASS = "_per_class"
_LARGEST = 1e300


@dataclass(frozen=True)
class Series:
    """A line of a chart: its name and its (x, y) points."""

    name: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Curves:
    """Losses, or other figures over the steps, of one training; or one figure of several, for a common chart."""

    stage: str
    series: tuple[Series, ...]
    common: bool = False


@dataclass(frozen=True)
class Result:
    """Figures of one kind of prediction.

    Attributes:
        kind: what was compared with the truth, such as "semantic_label".
        figures: name and value of every figure of the whole set; None where it does not exist.
        per_class: name of a figure, and (class name, value) for each class.
    """

    kind: str
    figures: tuple[tuple[str, float | None], ...]
    per_class: tuple[tuple[str, tuple[tuple[str, float | None], ...]], ...] = ()


@dataclass(frozen=True)
class Sign:
    """Something suspicious about the labels or maps of a picture.

    Attributes:
        kind: what several pictures may share; completes "3 of 240 pictures: ...".
        text: the same of one picture, in a few words.
    """

    kind: str
    text: str


@dataclass(frozen=True)
class Quality:
    """What the labels of one picture are worth.

    Attributes:
        iou: mean IoU of its semantic label, in [0, 1]; None without truth.
        score: mean score of its instances, in [0, 1]; None without instance labels.
        instances: class name and score of each instance, fragments left out.
        signs: what looks suspicious.
        spread: standard deviation of the map over the picture; None where the map was not read.
    """

    iou: float | None = None
    score: float | None = None
    instances: tuple[tuple[str, float], ...] = ()
    signs: tuple[Sign, ...] = ()
    spread: float | None = None

    @property
    def rank(self) -> tuple[float, float]:
        """Sorts from worst to best: by IoU, or without truth by the number of signs, then by score."""
        if self.iou is not None:
            return (self.iou, 0.0)
        return (-float(len(self.signs)), self.score or 0.0)


@dataclass(frozen=True)
class Picture:
    """One picture of the gallery.

    Attributes:
        image_id: its id.
        class_names: classes that its tags name.
        panels: what is shown of it; the photograph, if there, is the first.
        aspect: width / height.
        quality: what its labels are worth.
    """

    image_id: str
    class_names: tuple[str, ...]
    panels: tuple[Panel, ...]
    aspect: float = 1.0
    quality: Quality = Quality()


def read_curves(text: str, stage: str, *, points: int = 200) -> Curves:
    """Lines of `losses.jsonl`, each name's values averaged over at most `points` equal parts.

    A last line that was cut off by an interruption is left out, as are values that are no numbers.

    Args:
        text: the file's content; one JSON object a line with `step` and any named values.
        stage: name of the training.
        points: most points of a curve.
    """
    found: dict[str, list[tuple[float, float]]] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            entry = parse_json(line)
        except ValueError:
            continue
        numbers = dict(numbers_of(entry)) if isinstance(entry, dict) else {}
        step = numbers.get("step") if "step" in numbers else float(number)
        for name, value in numbers.items():
            if name not in _NOT_LOSSES and value is not None and step is not None:
                found.setdefault(name, []).append((step, value))
    return Curves(stage, tuple(Series(name, thinned(values, points)) for name, values in found.items()))


def common_curves(trainings: Sequence[Curves]) -> tuple[Curves, ...]:
    """Each figure that several trainings have, one line a training.

    Args:
        trainings: named by their stage.
    """
    found: dict[str, list[Series]] = {}
    for training in trainings:
        for one in training.series:
            found.setdefault(one.name, []).append(Series(training.stage, one.points))
    return tuple(
        Curves(name, tuple(series), common=True) for name, series in found.items() if len(series) > 1
    )


def thinned(values: Sequence[tuple[float, float]], points: int) -> tuple[tuple[float, float], ...]:
    """At most `points` points: the mean x and y of equal parts of `values`.

    Example:
        >>> thinned([(1, 4.0), (2, 2.0), (3, 1.0), (4, 1.0)], 2)
        ((1.5, 3.0), (3.5, 1.0))
    """
    count = len(values)
    if count <= points:
        return tuple(values)
    edges = [count * part // points for part in range(points + 1)]
    parts = [values[start:end] for start, end in pairwise(edges)]
    return tuple(
        (math.fsum(x for x, _ in part) / len(part), math.fsum(y for _, y in part) / len(part))
        for part in parts
    )


def read_results(metrics: object, source: str) -> tuple[Result, ...]:
    """Every kind of prediction in the content of `metrics.json`, however deep.

    A kind is an object that holds a figure named `miou` or `ap50`; the kind's name is the path to it. The model that
    `segmenter` repeats from `segmenters` is left out.

    Args:
        metrics: the JSON value.
        source: where it was read, for the message.

    Raises:
        ArtifactError: the value is no JSON object.
    """
    if not isinstance(metrics, dict):
        raise ArtifactError(f"{source}: expected a JSON object of figures; run stage evaluate again")
    if isinstance(metrics.get("segmenters"), dict):
        metrics = {key: value for key, value in metrics.items() if key != "segmenter"}
    return tuple(_results(metrics, ()))


def _results(value: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[Result]:
    inside = {key: inner for key, inner in value.items() if isinstance(inner, dict)}
    if not path or not ("miou" in value or "ap50" in value):
        for key, inner in inside.items():
            yield from _results(inner, (*path, key))
        return
    nested = [
        (f"{key} {name}", number)
        for key, inner in inside.items()
        if not key.endswith(_PER_CLASS)
        for name, number in numbers_of(inner)
    ]
    per_class = [
        (key.removesuffix(_PER_CLASS), tuple(numbers_of(inner)))
        for key, inner in inside.items()
        if key.endswith(_PER_CLASS)
    ]
    yield Result(" / ".join(path), (*numbers_of(value), *nested), tuple(per_class))


def read_sweep(value: object, source: str) -> tuple[Series, ...]:
    """Curves over the threshold from the content of `sweep.json`: a list of {"threshold", "miou", "ap50"}.

    Args:
        value: the JSON value.
        source: where it was read, for the message.

    Raises:
        ArtifactError: it is no such list.
    """
    entries = [dict(numbers_of(e)) for e in value if isinstance(e, dict)] if isinstance(value, list) else []
    good = [entry for entry in entries if entry.get("threshold") is not None]
    if not isinstance(value, list) or len(good) < len(value):
        raise ArtifactError(
            f'{source}: expected a list of {{"threshold", "miou", "ap50"}}; delete it or run stage evaluate again'
        )
    series = []
    for name in ("miou", "ap50"):
        points = [(entry["threshold"], entry.get(name)) for entry in good]
        known = tuple(sorted((x, y) for x, y in points if x is not None and y is not None))
        if known:
            series.append(Series(name, known))
    return tuple(series)


def numbers_of(values: Mapping[str, Any]) -> Iterator[tuple[str, float | None]]:
    """The numbers of a JSON object by name; other values are left out."""
    for key, value in values.items():
        if value is None:
            yield key, None
        elif isinstance(value, int | float) and not isinstance(value, bool):
            # A whole number of 400 digits is no float.
            yield key, float(value) if abs(value) < _LARGEST else None
