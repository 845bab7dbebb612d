"""Counting metrics of instance masks: symmetric best Dice and difference in count (CVPPP leaf counting)."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from irn_pipeline.errors import ConfigError, ShapeError
from irn_pipeline.metrics.counted import counted_instances
from irn_pipeline.ops.masks import mask_iou
from irn_pipeline.structures import BoolArray, GroundTruth, Instances


@dataclass(frozen=True)
class CountScores:
    """How well instances are told apart and counted over a set of pictures.

    Attributes:
        sbd: mean symmetric best Dice in [0, 1] of the pictures that hold a true or a predicted instance; NaN
            without such a picture.
        abs_dic: mean over all pictures of |predicted - true| number of instances; NaN without pictures.
        dic: the same with its sign: positive where too many are predicted.
        pictures: number of pictures that `sbd` is a mean of.
    """

    sbd: float
    abs_dic: float
    dic: float
    pictures: int


@dataclass(frozen=True)
class CountingScores:
    """Counting scores of every class, and of all classes as one.

    Attributes:
        per_class: C scores, each of the instances of one class alone.
        class_agnostic: scores of all instances, whatever their class.
    """

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

    The best Dice of one side is the mean over its instances of the greatest Dice with an instance of the other
    side; background is no instance. Instances that have no counterpart therefore lower the score, on either side.

    Args:
        dice: (R, G) Dice coefficients of predictions and truths.

    Returns:
        A number in [0, 1]: 0 where only one side has instances, NaN where neither has, as such a picture says
        nothing about masks (were it 1, most pictures would score 1 for a rare class whatever is predicted).

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


@dataclass
class _Tally:
    """Measurements of the pictures seen so far for one class or for all."""

    sbd: list[float] = field(default_factory=list)
    differences: list[int] = field(default_factory=list)

    def add(self, dice: npt.NDArray[np.float64]) -> None:
        self.sbd.append(symmetric_best_dice(dice))
        self.differences.append(dice.shape[0] - dice.shape[1])

    def scores(self) -> CountScores:
        measured = [value for value in self.sbd if not np.isnan(value)]
        return CountScores(
            sbd=_mean(measured),
            abs_dic=_mean([abs(value) for value in self.differences]),
            dic=_mean(self.differences),
            pictures=len(measured),
        )


class CountingEvaluator:
    """SBD and difference in count per class and class-agnostic, gathered picture by picture.

    Only numbers are kept, so the memory does not depend on the size of the pictures.
    """

    def __init__(self, num_classes: int, *, min_score: float = 0.5, ignore_void: bool = True) -> None:
        """Start with no picture.

        Args:
            num_classes: C foreground classes.
            min_score: predictions below this score are not counted. A detector gives many more candidates
                than it believes in, and unlike average precision a count does not rank them; 0 counts all but
                fragments.
            ignore_void: take the void pixels out of the masks first (see `counted.counted_instances`); instances
                that lie wholly on them are not counted.

        Raises:
            ConfigError: there is no class, or the least score is not a number.
        """
        if num_classes < 1:
            raise ConfigError(f"num_classes must be at least 1, got {num_classes}")
        if np.isnan(min_score):
            raise ConfigError("min_score is not a number")
        self._min_score, self._ignore_void = min_score, ignore_void
        self._tallies = [_Tally() for _ in range(num_classes)]
        self._agnostic = _Tally()

    def add(self, predictions: Instances, truth: GroundTruth) -> None:
        """Take in one picture; a picture that is refused leaves no trace.

        Args:
            predictions: predicted instances; (R, H, W) masks.
            truth: true instances and void pixels of the same picture.

        Raises:
            ShapeError: prediction, truth and void map differ in picture size.
            DataError: a class id is outside 0..C-1, or a score is not a number.
        """
        predictions, truths = counted_instances(
            predictions, truth, len(self._tallies), ignore_void=self._ignore_void
        )
        predictions = predictions.select(predictions.scores >= self._min_score)
        dice = mask_dice(predictions.masks, truths.masks)
        for class_id, tally in enumerate(self._tallies):
            tally.add(dice[predictions.class_ids == class_id][:, truths.class_ids == class_id])
        self._agnostic.add(dice)

    def result(self) -> CountingScores:
        """The scores of the pictures added so far."""
        return CountingScores(
            per_class=tuple(tally.scores() for tally in self._tallies), class_agnostic=self._agnostic.scores()
        )


def _mean(values: list[float] | list[int]) -> float:
    return float(np.mean(values)) if values else float("nan")
