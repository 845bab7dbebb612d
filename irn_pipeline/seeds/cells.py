"""Cells of a frozen network's maps: sampled over many pictures in bounded memory, and linear functions of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from irn_pipeline.errors import ShapeError
from irn_pipeline.ops.cam import sum_over_scales
from irn_pipeline.structures import IGNORE

_AXES_FROM = 48
"""Pictures whose cells are kept as they are, to find the axes that all cells are then reduced to."""
_CONSTANT = 1e-6
"""A feature that varies by less, relative to its mean, is taken as constant and left out."""
_EMPTY_AXIS = 1e-6
"""An axis along which cells vary by less, relative to the first, holds nothing but noise."""


@dataclass(frozen=True, eq=False)
class CellClassifier:
    """Scores of a cell, linear in the features of several network stages: sum over stages of weight . f + bias."""

    weights: tuple[Tensor, ...]
    """One (L, C_s) float32 tensor a stage, for L outputs."""
    bias: Tensor
    """(L,) float32; minus infinity for an output that no cell was an example of."""

    def scores(self, features: Sequence[Tensor], grid: tuple[int, int]) -> Tensor:
        """Scores of every cell.

        Args:
            features: (C_s, h_s, w_s) floats of one picture per stage, on the classifier's device.
            grid: (h, w) that all stages are brought to.

        Returns:
            (L, h, w) float32.

        Raises:
            ShapeError: the features are of other stages.
        """
        widths = [weight.shape[1] for weight in self.weights]
        if [len(stage) for stage in features] != widths:
            found = [tuple(stage.shape) for stage in features]
            raise ShapeError(f"features must have {widths} channels, got stages of {found}")
        pairs = zip(self.weights, features, strict=True)
        parts = [torch.einsum("lc,chw->lhw", weight, stage.float()) for weight, stage in pairs]
        return sum_over_scales(parts, grid, antialias=True) + self.bias[:, None, None]

    def to(self, device: torch.device | str) -> CellClassifier:
        """The same on another device."""
        return CellClassifier(tuple(weight.to(device) for weight in self.weights), self.bias.to(device))

    def state(self) -> dict[str, Tensor]:
        """Named tensors, as `from_state` takes them."""
        return {f"weight{stage}": weight for stage, weight in enumerate(self.weights)} | {"bias": self.bias}

    @staticmethod
    def from_state(state: Mapping[str, Tensor]) -> CellClassifier:
        """The classifier whose `state` this is.

        Raises:
            ShapeError: it is no classifier's.
        """
        weights = tuple(
            state[f"weight{stage}"] for stage in range(len(state) - 1) if f"weight{stage}" in state
        )
        bias = state.get("bias", torch.empty(0, 0))
        fits = bias.ndim == 1 and all(w.ndim == 2 and len(w) == len(bias) for w in weights)
        if not weights or len(weights) != len(state) - 1 or not fits:
            raise ShapeError(f"no cell classifier's tensors: {', '.join(state) or 'none'}")
        return CellClassifier(weights, bias)


@dataclass(frozen=True, eq=False)
class CellAxes:
    """Standardised features, of each stage reduced to its first principal axes, whitened."""

    means: tuple[Tensor, ...]
    """One (C_s,) tensor a stage."""
    axes: tuple[Tensor, ...]
    """One (C_s, R_s) tensor a stage."""

    @staticmethod
    def fit(cells: Sequence[Tensor], dims: Sequence[int]) -> CellAxes:
        """Fit to a sample.

        Args:
            cells: one (n, C_s) float tensor a stage.
            dims: how many axes to keep of each; a stage without more channels keeps these as they are, standardised.
        """
        means, axes = [], []
        for stage, count in zip(cells, dims, strict=True):
            mean, std = stage.mean(0), stage.std(0, correction=0)
            scale = torch.where(std > _CONSTANT * mean.abs(), 1 / std, 0.0)
            means.append(mean)
            if stage.shape[1] <= count:
                axes.append(scale.diag())
                continue
            standard = (stage - mean) * scale
            values, directions = torch.linalg.eigh(standard.T @ standard / len(standard))
            values, directions = values[-count:], directions[:, -count:]
            kept = values > _EMPTY_AXIS * values[-1]
            axes.append(scale[:, None] * directions[:, kept] / values[kept].sqrt())
        return CellAxes(tuple(means), tuple(axes))

    def __call__(self, cells: Sequence[Tensor]) -> Tensor:
        """One (n, C_s) tensor a stage -> (n, R), R being the sum of the stages' axes."""
        parts = zip(cells, self.means, self.axes, strict=True)
        return torch.cat([(stage - mean) @ axes for stage, mean, axes in parts], 1)

    def classifier(self, weight: Tensor, bias: Tensor) -> CellClassifier:
        """The function weight . axes(f) + bias, of raw features; weight is (L, R), bias (L,)."""
        stages = weight.split([axes.shape[1] for axes in self.axes], 1)
        raw = tuple(part @ axes.T for part, axes in zip(stages, self.axes, strict=True))
        shift = sum((part @ mean for part, mean in zip(raw, self.means, strict=True)), torch.zeros_like(bias))
        return CellClassifier(raw, bias - shift)


class CellSample:
    """Cells of many pictures with what they are examples of, reduced as soon as the axes are known.

    The axes are those of the first pictures: add pictures in random order. The same pictures in the same order give
    the same sample.

    Args:
        dims: axes to keep of each stage; of fewer stages, the last ones.
        per_picture: cells of a picture at most, chosen at random.
        limit: cells in all; where there are more, half of them is kept, and of later pictures half as many. With 512
            axes 2^18 cells take 256 MB.
        seed: of the choice.
    """

    def __init__(self, *, dims: Sequence[int], per_picture: int, limit: int = 2**18, seed: int = 0) -> None:
        self.dims, self.per_picture, self.limit = tuple(dims), per_picture, limit
        self._random = torch.Generator().manual_seed(seed)
        self._waiting: list[list[Tensor]] = []
        self._axes: CellAxes | None = None
        self._cells: list[Tensor] = []
        self._targets: list[Tensor] = []

    def add(self, features: Sequence[Tensor], targets: Tensor) -> None:
        """Cells of one picture.

        Args:
            features: (C_s, h_s, w_s) floats per stage.
            targets: (h, w) int64, whose grid the stages are brought to; cells of the value IGNORE are left out.
        """
        sure = torch.nonzero(targets.flatten() != IGNORE)[:, 0].cpu()
        chosen = sure[torch.randperm(len(sure), generator=self._random)[: self.per_picture]]
        if not len(chosen):
            return
        grid = (targets.shape[0], targets.shape[1])
        stages = [sum_over_scales([stage.float()], grid, antialias=True) for stage in features]
        cells = [stage.flatten(1)[:, chosen.to(stage.device)].T.cpu() for stage in stages]
        self._targets.append(targets.flatten().cpu()[chosen])
        if self._axes is None:
            self._waiting.append(cells)
            if len(self._waiting) == _AXES_FROM:
                self._find_axes()
        else:
            self._cells.append(self._axes(cells).half())
            if sum(map(len, self._targets)) > self.limit:
                self._halve()

    def finish(self) -> tuple[Tensor, Tensor, CellAxes]:
        """Cells (n, R) float32, their targets (n,) int64, and the axes.

        Raises:
            ShapeError: there is no cell.
        """
        if not self._targets:
            raise ShapeError("there is no cell to fit a classifier to")
        if self._axes is None:
            self._find_axes()
        assert self._axes is not None
        return torch.cat(self._cells).float(), torch.cat(self._targets), self._axes

    def _halve(self) -> None:
        cells, targets = torch.cat(self._cells), torch.cat(self._targets)
        kept = torch.randperm(len(targets), generator=self._random)[: len(targets) // 2]
        self._cells, self._targets = [cells[kept]], [targets[kept]]
        self.per_picture //= 2

    def _find_axes(self) -> None:
        stages = [torch.cat(parts) for parts in zip(*self._waiting, strict=True)]
        self._axes = CellAxes.fit(stages, self.dims[-len(stages) :])
        self._cells = [self._axes(cells).half() for cells in self._waiting]
        self._waiting = []
