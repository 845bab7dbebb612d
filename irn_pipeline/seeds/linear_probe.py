"""A linear classifier on pooled features of a frozen network, and the maps that its weights give.

Logistic regression for each class on standardised features, with the standardisation folded into the weights. The
weights serve as a classifier's in a class activation map (Zhou et al., CVPR 2016).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from scipy.linalg import svd
from scipy.optimize import minimize
from scipy.special import expit
from torch import Tensor

from irn_pipeline.errors import ConfigError, IrnError, ShapeError

_Floats = npt.NDArray[np.float64]
REGULARISATIONS = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 1e-3, 1e-4)
"""What cross-validation chooses from, the strongest first."""
_WITHOUT_CHOICE = 0.1
"""Where too few pictures have tags for cross-validation."""
_PATIENCE = 2
"""Weaker strengths are no longer tried once so many have not been better than the best."""
_CONSTANT = 1e-6
"""A feature that varies by less, relative to its mean, is taken as constant and gets the weight 0."""


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """Weights on raw features: logit_k = weight_k . feature + bias_k."""

    weight: Tensor
    """(K, D) float32; 0 for a class that no picture is tagged with."""
    bias: Tensor
    """(K,) float32; it belongs to the logit, not to the map."""
    mean: Tensor
    """(D,) float32, the mean of the features that it was fitted to."""
    regularisation: float
    """The strength that was used."""

    def scores(self, pooled: Tensor) -> Tensor:
        """Logits (B, K) of pooled features (B, D)."""
        return pooled @ self.weight.T + self.bias

    def maps(self, features: Tensor, class_ids: Sequence[int], *, centred: bool = False) -> Tensor:
        """map_k(u) = weight_k . f(u), not rectified.

        With mean pooling the mean of a map plus the bias is the class's logit.

        Args:
            features: (..., D, h, w) features of the layer that was pooled.
            class_ids: the K' classes asked for.
            centred: take off the map's value at the mean feature. For features without a common zero, as those
                behind a layer norm.

        Returns:
            (..., K', h, w) maps.

        Raises:
            ShapeError: the features have another width than the weights.
        """
        if features.ndim < 3 or features.shape[-3] != self.weight.shape[1]:
            raise ShapeError(
                f"features must be (..., {self.weight.shape[1]}, h, w), got {tuple(features.shape)}"
            )
        weight = self.weight[list(class_ids)].to(features)
        maps = torch.einsum("kd,...dhw->...khw", weight, features)
        if centred:
            maps = maps - (weight @ self.mean.to(features))[:, None, None]
        return maps


def pool(features: Tensor, pooling: Literal["mean", "max"] = "mean") -> Tensor:
    """Mean or maximum over the cells of (..., D, h, w) features: (..., D)."""
    return features.mean((-2, -1)) if pooling == "mean" else features.amax((-2, -1))


def fit_probe(
    pooled: Tensor,
    tags: Tensor,
    *,
    regularisation: float | None = None,
    balanced: bool = True,
    folds: int = 5,
) -> LinearProbe:
    """Fit all classes by L-BFGS in float64; the problem is convex and the result does not depend on a start.

    It minimises, for each class, mean_i w_i BCE_i + regularisation / 2 |W'|^2, W' being the weights on standardised
    features. A picture's mirror is no independent picture: pool it together with the picture into one row.

    Args:
        pooled: (B, D) pooled features, one row a picture.
        tags: (B, K), 1 for the classes that a picture is tagged with, else 0.
        regularisation: above 0; None chooses from `REGULARISATIONS` the one of the smallest loss on pictures
            that were left out of the fit; masks are never looked at. It is 0.1 where all classes have too few
            pictures for that.
        balanced: pictures with and without the tag weigh the same in total, however few there are of either.
        folds: of the cross-validation.

    Returns:
        The fitted probe.

    Raises:
        ShapeError: features and tags do not fit together, or there is no picture.
        IrnError: the features hold NaN or infinite values.
        ConfigError: a class is the tag of every picture, or the regularisation is not above 0.
    """
    if pooled.ndim != 2 or tags.ndim != 2 or len(pooled) != len(tags) or not len(pooled):
        raise ShapeError(
            f"pooled features must be (B, D) and tags (B, K), got {tuple(pooled.shape)} and {tuple(tags.shape)}"
        )
    if regularisation is not None and not 0 < regularisation < float("inf"):
        raise ConfigError(f"the regularisation of a linear probe must be above 0, got {regularisation}")
    features = pooled.detach().cpu().double().numpy()
    targets = tags.detach().cpu().numpy() > 0
    if not np.isfinite(features).all():
        raise IrnError("the features to fit a linear probe to hold NaN or infinite values")
    if always := np.flatnonzero(targets.all(0)).tolist():
        many = f"classes {always} (counted from 0) are tags of all {len(targets)} images"
        raise ConfigError(f"{many}: a linear probe needs images without the class; add some")
    mean, std = features.mean(0), features.std(0)
    # A constant feature gets an infinite deviation: standardised it is 0, and so is its weight.
    std = np.where(std > _CONSTANT * np.abs(mean), std, np.inf)
    problem = _Problem.along_principal_axes((features - mean) / std, balanced)
    if regularisation is None:
        regularisation = _choose(problem, targets, min(folds, len(targets)))
    solution = problem.solve(targets, regularisation)
    weight = solution[:, :-1] @ problem.axes / std
    bias = solution[:, -1] - weight @ mean
    weights, offsets, centre = (torch.from_numpy(part).float() for part in (weight, bias, mean))
    return LinearProbe(weights, offsets, centre, regularisation)


def deal_folds(targets: npt.NDArray[np.bool_], folds: int) -> npt.NDArray[np.int64]:
    """Deal pictures to folds so that each class is spread evenly, the rarest classes first.

    Args:
        targets: (B, K) tags.
        folds: number of folds.

    Returns:
        (B,) fold of each picture.
    """
    # Pictures without a tag are spread as a class of their own.
    groups = np.column_stack([targets, ~targets.any(1)])
    fold_of = np.full(len(groups), -1)
    sizes = np.zeros(folds, np.int64)
    of_group = np.zeros((folds, groups.shape[1]), np.int64)
    for group in groups.sum(0).argsort(kind="stable"):
        for picture in np.flatnonzero(groups[:, group] & (fold_of < 0)):
            fold = np.lexsort((sizes, of_group[:, group]))[0]
            fold_of[picture] = fold
            sizes[fold] += 1
            of_group[fold] += groups[picture]
    return fold_of


@dataclass(frozen=True)
class _Problem:
    """Standardised features, turned to their principal axes, which changes neither fit nor penalty.

    Few pictures have few axes, and L-BFGS needs few steps when each axis has its own scale.
    """

    turned: _Floats
    """(B, R); standardised = turned @ axes."""
    axes: _Floats
    """(R, D), orthonormal."""
    variance: _Floats
    """(R,) mean square along each axis."""
    balanced: bool

    @classmethod
    def along_principal_axes(cls, standard: _Floats, balanced: bool) -> _Problem:
        left, lengths, axes = svd(standard, full_matrices=False)
        return cls(left * lengths, axes, lengths**2 / len(standard), balanced)

    def part(self, kept: npt.NDArray[np.bool_]) -> _Problem:
        """The same of some of the pictures."""
        return replace(self, turned=self.turned[kept])

    def losses(self, solution: _Floats, targets: npt.NDArray[np.bool_]) -> _Floats:
        """(B, K) cross entropies."""
        logits = self.turned @ solution[:, :-1].T + solution[:, -1]
        result: _Floats = np.logaddexp(0, logits) - targets * logits
        return result

    def solve(
        self, targets: npt.NDArray[np.bool_], regularisation: float, start: _Floats | None = None
    ) -> _Floats:
        """(K, R + 1) weights along the axes, the bias last."""
        weights = _weights(targets, self.balanced) / len(targets)
        # One over the root of the largest curvature along each axis; a bias has the variance 1 and no penalty.
        scale = np.append(1 / np.sqrt(self.variance / 4 + regularisation), 2.0)
        design = np.column_stack([self.turned, np.ones(len(self.turned))]) * scale
        penalty = np.append(regularisation * scale[:-1] ** 2, 0.0)
        shape = (targets.shape[1], len(scale))

        def loss(flat: _Floats) -> tuple[float, _Floats]:
            scaled = flat.reshape(shape)
            logits = design @ scaled.T
            value = (weights * (np.logaddexp(0, logits) - targets * logits)).sum()
            gradient = (weights * (expit(logits) - targets)).T @ design + penalty * scaled
            return float(value + (penalty * scaled**2).sum() / 2), gradient.ravel()

        begin = np.zeros(shape) if start is None else start / scale
        found = minimize(
            loss, begin.ravel(), jac=True, method="L-BFGS-B", options={"gtol": 1e-6, "ftol": 1e-12}
        )
        return np.asarray(found.x).reshape(shape) * scale


def _choose(problem: _Problem, targets: npt.NDArray[np.bool_], folds: int) -> float:
    """Strength of the smallest cross entropy on pictures that the fit has not seen."""
    fold_of = deal_folds(targets, folds)
    weights = _weights(targets, problem.balanced)
    # A class is judged only where the fit has seen pictures with and without it.
    judged = [targets[fold_of != f].any(0) & ~targets[fold_of != f].all(0) for f in range(folds)]
    used = [f for f in range(folds) if judged[f].any() and (fold_of == f).any()]
    if not used:
        return _WITHOUT_CHOICE
    solutions: dict[int, _Floats] = {}
    totals: list[float] = []
    for strength in REGULARISATIONS:
        total = 0.0
        for f in used:
            kept, left_out = fold_of != f, fold_of == f
            solutions[f] = problem.part(kept).solve(targets[kept], strength, solutions.get(f))
            errors = weights[left_out] * problem.part(left_out).losses(solutions[f], targets[left_out])
            total += float(errors[:, judged[f]].sum())
        totals.append(total)
        if totals.index(min(totals)) <= len(totals) - 1 - _PATIENCE:
            break
    return REGULARISATIONS[int(np.argmin(totals))]


def _weights(targets: npt.NDArray[np.bool_], balanced: bool) -> _Floats:
    """(B, K) weights of mean 1 for each class; 0 for a class that all pictures have or none has."""
    positives = targets.sum(0)
    negatives = len(targets) - positives
    if not balanced:
        return np.broadcast_to((positives * negatives > 0).astype(np.float64), targets.shape)
    half = np.where(positives * negatives > 0, len(targets) / 2, 0)
    return np.where(targets, half / np.maximum(positives, 1), half / np.maximum(negatives, 1))
