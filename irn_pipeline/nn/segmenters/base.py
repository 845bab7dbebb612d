"""The interface of every model that learns from instance labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from irn_pipeline.structures import Instances


class Target(Protocol):
    """Instances of one picture to learn from (see `datasets.samples.SegmentationTarget`)."""

    @property
    def masks(self) -> Tensor:
        """(R, H, W) bool."""
        ...

    @property
    def class_ids(self) -> Tensor:
        """(R,) int64 in 0..C-1."""
        ...

    @property
    def weights(self) -> Tensor:
        """(R,) float32."""
        ...


class Segmenter(Protocol):
    """A network that learns instance masks."""

    def losses(self, images: Sequence[Tensor], targets: Sequence[Target]) -> dict[str, Tensor]:
        """Named losses of a batch of (3, H, W) float32 pictures in [0, 1]."""
        ...

    def predict(self, image: Tensor) -> Instances:
        """Instances of one (3, H, W) float32 picture in [0, 1], at its own size, best first."""
        ...

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """Optimiser groups."""
        ...
