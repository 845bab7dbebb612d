"""Semantic metric: intersection over union per label, from one confusion matrix over the whole set."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from irn_pipeline.errors import ConfigError, DataError, ShapeError
from irn_pipeline.structures import IGNORE, IntArray, LabelArray


@dataclass(frozen=True)
class SemanticScores:
    """Quality of semantic labels over a set of pictures.

    `iou` has one ratio in [0, 1] per label 0..L-1, NaN for a label absent from both prediction and truth; `miou` is the
    mean of those that are numbers, NaN where there is none.
    """

    miou: float
    iou: tuple[float, ...]


def confusion_matrix(prediction: LabelArray, truth: LabelArray, num_labels: int) -> IntArray:
    """Count the pixels of one picture by true and predicted label.

    The matrix of a set is the sum of its pictures'. A predicted value that is no label (>= L) is counted in the last
    column: it is a miss for the true label and a false positive of none.

    Args:
        prediction: (H, W) uint8 predicted labels.
        truth: (H, W) uint8 true labels; pixels of 255 are not counted.
        num_labels: L, the background included; at most 255.

    Returns:
        (L, L + 1) int64 pixel counts: row of the true label, column of the predicted one.

    Raises:
        ShapeError: the two maps differ in size or are not (H, W) uint8.
        DataError: the truth holds a value that is neither a label nor 255.
        ConfigError: `num_labels` is outside 1..255.

    Example:
        >>> truth = np.array([[0, 1], [1, 255]], np.uint8)
        >>> prediction = np.array([[0, 1], [0, 1]], np.uint8)
        >>> matrix = confusion_matrix(prediction, truth, num_labels=2)
        >>> matrix.tolist()
        [[1, 0, 0], [1, 1, 0]]
        >>> semantic_scores(matrix)
        SemanticScores(miou=0.5, iou=(0.5, 0.5))
    """
    if not 1 <= num_labels <= IGNORE:
        raise ConfigError(f"num_labels must be in 1..{IGNORE}, got {num_labels}")
    if prediction.shape != truth.shape or truth.ndim != 2:
        raise ShapeError(f"prediction and truth must be (H, W) alike, got {prediction.shape}, {truth.shape}")
    if prediction.dtype != np.uint8 or truth.dtype != np.uint8:
        raise ShapeError(f"prediction and truth must be uint8, got {prediction.dtype} and {truth.dtype}")
    counted = truth != IGNORE
    rows = truth[counted].astype(np.int64)
    if rows.size and rows.max() >= num_labels:
        raise DataError(f"the ground-truth labels hold {rows.max()}, but there are only {num_labels} labels")
    columns = np.minimum(prediction[counted], num_labels)
    counts = np.bincount(rows * (num_labels + 1) + columns, minlength=num_labels * (num_labels + 1))
    return counts.astype(np.int64).reshape(num_labels, num_labels + 1)


def semantic_scores(matrix: IntArray) -> SemanticScores:
    """Intersection over union of every label: true positives / (these + false negatives + false positives).

    Args:
        matrix: (L, L + 1) pixel counts of `confusion_matrix`, summed over the pictures of a set.

    Raises:
        ShapeError: the matrix is not (L, L + 1) with L >= 1.
    """
    if matrix.ndim != 2 or matrix.shape[0] < 1 or matrix.shape[1] != matrix.shape[0] + 1:
        raise ShapeError(f"a confusion matrix is (L, L + 1), got {matrix.shape}")
    intersection = np.diagonal(matrix)
    union = matrix.sum(axis=1) + matrix[:, :-1].sum(axis=0) - intersection
    iou = np.divide(intersection, union, out=np.full(len(matrix), np.nan), where=union > 0)
    miou = float(np.nanmean(iou)) if (union > 0).any() else float("nan")
    return SemanticScores(miou=miou, iou=tuple(iou.tolist()))
