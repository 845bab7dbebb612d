"""Counting metrics of instance masks: symmetric best Dice and difference in count (CVPPP leaf counting)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from irn_pipeline.errors import ConfigError, ShapeError
from irn_pipeline.metrics.counted import counted_instances
from irn_pipeline.ops.masks import mask_iou
from irn_pipeline.structures import BoolArray, GroundTruth, Instances


@dataclass(frozen=True)
class CountScores:
    """How well instances are told apart and counted over a set of pictures; NaN without pictures.

    Attributes:
        sbd: mean symmetric best Dice in [0, 1] of the pictures that hold a true or a predicted instance.
        abs_dic: mean over all pictures of |predicted - true| number of instances.
        dic: the same with its sign: positive where too many are predicted.
        pictures: number of pictures that `sbd` is a mean of.
    """

    sbd: float
    abs_dic: float
    dic: float
    pictures: int


@dataclass(frozen=True)
class CountingScores:
    """Counting scores of every class alone, and of all classes as one."""

    per_class: tuple[CountScores, ...]
    class_agnostic: CountScores


def mask_dice(masks_a: BoolArray, masks_b: BoolArray) -> npt.NDArray[np.float64]:
    """Dice coefficient 2 |A and B| / (|A| + |B|) of every pair of masks.

    Args:
        masks_a: (A, H, W) masks.
        masks_b: (B, H, W) masks of the same picture.

    Returns:
        (A, B) float64 ratios in [0, 1], exact to float32; 0 where both masks are empty.

    Raises:
        ShapeError: a stack is not three-dimensional, or the two have different picture sizes.

    Example:
        >>> two_of_four, all_four = np.eye(2, dtype=bool), np.ones((2, 2), bool)
        >>> mask_dice(two_of_four[None], np.stack([two_of_four, ~two_of_four])).tolist()
        [[1.0, 0.0]]
    """
    iou = mask_iou(masks_a, masks_b).astype(np.float64)
    return 2 * iou / (1 + iou)


def symmetric_best_dice(dice: npt.NDArray[np.float64]) -> float:
    """SBD of one picture: the smaller of its two best Dice (Scharr et al., MVA 2016).

    The best Dice of one side is the mean over its instances of the greatest Dice with an instance of the other side.

    Args:
        dice: (R, G) Dice coefficients of predictions and truths.

    Returns:
        A number in [0, 1]: 0 where only one side has instances, NaN where neither has, as such a picture says
        nothing about masks.

    Raises:
        ShapeError: `dice` is not (R, G).

    Example:
        >>> symmetric_best_dice(np.array([[1.0, 0.0], [0.5, 0.0]]))
        0.5
    """
    if dice.ndim != 2:
        raise ShapeError(f"Dice coefficients must be (R, G), got {dice.shape}")
    if dice.shape == (0, 0):
        return float("nan")
    if dice.size == 0:
        return 0.0
    return float(min(dice.max(axis=1).mean(), dice.max(axis=0).mean()))


class CountingEvaluator:
    """SBD and difference in count per class and class-agnostic, gathered picture by picture."""

    def __init__(self, num_classes: int, *, min_score: float = 0.5, ignore_void: bool = True) -> None:
        """Start with no picture.

        Args:
            num_classes: C foreground classes.
            min_score: predictions below this score are not counted. A detector gives many more candidates
                than it believes in, and unlike average precision a count does not rank them; 0 counts all but
                fragments.
            ignore_void: see `counted.counted_instances`.

        Raises:
            ConfigError: there is no class, or the least score is not a number.
        """
        if num_classes < 1:
            raise ConfigError(f"num_classes must be at least 1, got {num_classes}")
        if np.isnan(min_score):
            raise ConfigError("min_score is not a number")
        self._min_score, self._ignore_void = min_score, ignore_void
        # SBD and difference in count of each picture; the last list is of all classes as one.
        self._found: list[list[tuple[float, int]]] = [[] for _ in range(num_classes + 1)]

    def add(self, predictions: Instances, truth: GroundTruth) -> None:
        """Take in one picture; one that `counted_instances` refuses leaves no trace."""
        num_classes = len(self._found) - 1
        predictions, truths = counted_instances(
            predictions, truth, num_classes, ignore_void=self._ignore_void
        )
        predictions = predictions.select(predictions.scores >= self._min_score)
        whole = mask_dice(predictions.masks, truths.masks)
        own = [whole[predictions.class_ids == k][:, truths.class_ids == k] for k in range(num_classes)]
        for found, dice in zip(self._found, [*own, whole], strict=True):
            found.append((symmetric_best_dice(dice), dice.shape[0] - dice.shape[1]))

    def result(self) -> CountingScores:
        """The scores of the pictures added so far."""
        *per_class, agnostic = map(_scores, self._found)
        return CountingScores(tuple(per_class), agnostic)


def _scores(found: Sequence[tuple[float, int]]) -> CountScores:
    sbd = [value for value, _ in found if not np.isnan(value)]
    differences = [difference for _, difference in found]
    return CountScores(
        sbd=_mean(sbd),
        abs_dic=_mean([abs(value) for value in differences]),
        dic=_mean(differences),
        pictures=len(sbd),
    )


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
