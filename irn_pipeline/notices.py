"""Signs that a stage has learned or made nothing: each function gives one line, what was seen and what to do, or None.

The limits are set where nothing sensible lies: they tell a failure, not how good a result is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

import numpy as np

from irn_pipeline.structures import BoolArray, FloatArray

EVERYTHING, NOTHING = 0.95, 0.002
"""Shares of a picture above and below which a map or a label covers everything or nothing."""
HELD_OUT_NAME = "held_out.json"
"""File of `train_cam` with what its pictures kept out of the training say."""
MANY = 1 / 3
"""Share of the pictures that must show a sign before it is told."""
LEAST_POSITIVES = 3
"""Held-out pictures of a class below which its average precision says nothing."""
_STARTS_AT_NOUGHT = ("background_displacement",)
"""Losses that are least in a network that has learned nothing."""
_FALLEN, _FORMED, _ABOVE_CHANCE, _FEW_STEPS = 0.95, 0.5, 0.1, 20


def average_precision(scores: FloatArray, positive: BoolArray) -> float | None:
    """Mean of the precisions at the rank of each positive picture; None without one.

    Of pictures with the same score the positive ones come last.

    Args:
        scores: (N,) of one class.
        positive: (N,) whether the picture shows it.

    Example:
        >>> average_precision(np.float32([0.9, 0.8, 0.1]), np.array([True, False, True]))
        0.8333333333333333
    """
    if not positive.any():
        return None
    hits = positive[np.lexsort((positive, -scores))]
    precisions = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return float(precisions[hits].mean())


def read_losses(folder: Path) -> dict[str, list[float]]:
    """Every loss of a training by name, step after step; lines of the file that are cut off are left out."""
    found: dict[str, list[float]] = {}
    path = folder / "losses.jsonl"
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        for name, value in entry.items():
            if name not in ("step", "epoch", "time"):
                found.setdefault(name, []).append(float(value))
    return found


def flat_losses(folder: Path) -> list[str]:
    """A line for each loss of a training, by its folder, that should have fallen and is not below its start."""
    falling = {name: values for name, values in read_losses(folder).items() if name not in _STARTS_AT_NOUGHT}
    lines = [flat_loss(f"the {name} loss", values) for name, values in falling.items()]
    return [line for line in lines if line is not None]


def flat_loss(name: str, values: Sequence[float]) -> str | None:
    """A loss that is not below its start: means of the first and the last tenth of the steps.

    Args:
        name: of the loss.
        values: step after step.
    """
    tenth = len(values) // 10
    if len(values) < _FEW_STEPS:
        return None
    first, last = fmean(values[:tenth]), fmean(values[-tenth:])
    if last < _FALLEN * first:
        return None
    return (
        f"{name} has not fallen: it was {first:.3f} at the start and is {last:.3f} after {len(values)} steps; train "
        "for more epochs or with another learning rate"
    )


def untold_classes(precisions: Mapping[str, float | None], shares: Mapping[str, float]) -> str | None:
    """Classes that held-out pictures are not told by: average precision hardly above the share of such pictures.

    Args:
        precisions: class -> average precision on held-out pictures; None where there are too few.
        shares: class -> share of the held-out pictures that show it, which is what guessing reaches.
    """
    known = {name: value for name, value in precisions.items() if value is not None}
    untold = [n for n, value in known.items() if value < shares[n] + _ABOVE_CHANCE * (1 - shares[n])]
    if not untold:
        return None
    which = (
        "no class is"
        if len(untold) == len(known)
        else f"{', '.join(untold[:5])}{' ...' * (len(untold) > 5)}: not"
    )
    return (
        f"{which} recognised better than by guessing on held-out images; check their tags, add images of these "
        "classes, or train for more epochs"
    )


def odd_maps(shares: Sequence[float]) -> str | None:
    """Maps that cover everything or nothing.

    Args:
        shares: of each picture, the part that its maps cover.
    """
    everything = sum(share >= EVERYTHING for share in shares)
    nothing = sum(share <= NOTHING for share in shares)
    if everything > MANY * len(shares):
        return (
            f"the maps of {everything} of {len(shares)} images cover everything: the classifier looks at the whole "
            "image; train it longer, or add images without these classes"
        )
    if nothing > MANY * len(shares):
        return (
            f"the maps of {nothing} of {len(shares)} images cover nothing: the classifier has not found these "
            "classes; train it longer"
        )
    return None


def no_boundaries(highest: Sequence[float]) -> str | None:
    """Boundaries that never formed.

    Args:
        highest: of each picture, the largest probability of a boundary.
    """
    without = sum(value < _FORMED for value in highest)
    if without <= MANY * len(highest):
        return None
    return (
        f"no boundary formed in {without} of {len(highest)} images, so nothing stops the walk; train train_irn "
        "longer, or move the thresholds of mine_relations closer together"
    )


def far_walk(shares: Sequence[tuple[float, float]]) -> str | None:
    """A walk across the whole grid, from maps that did not cover it.

    Args:
        shares: of each picture, the parts that its maps and its label cover.
    """
    crossed = sum(maps < EVERYTHING <= label for maps, label in shares)
    if crossed <= MANY * len(shares):
        return None
    return (
        f"in {crossed} of {len(shares)} images the walk spread over the whole image, although the maps did not: use a "
        "smaller --exp-times, or a higher --semantic-bg-threshold"
    )


def covered(maps: FloatArray, height: float = 0.25) -> float:
    """Part of a picture where one of its maps (K, H, W), in [0, 1], is above `height`."""
    return float((maps > height).any(axis=0).mean()) if maps.size else 0.0
