"""What a refiner is: how the maps of a picture become the regions of its classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from irn_pipeline.structures import Cam, FloatArray, IntArray, LabelArray

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class NoParams:
    """A refiner without parameters."""


@dataclass(frozen=True)
class Picture:
    """One picture with all that a refiner may look at.

    Attributes:
        image: (H, W, 3) uint8.
        cam: its K activation maps.
        boundary: (h, w) class boundary probability at stride 4.
        displacement: (2, h, w) displacement in cells, dy then dx.
        features: (D, h', w') features of IRNet's backbone, on the device.
        device: where to work.
    """

    image: LabelArray
    cam: Cam
    boundary: FloatArray
    displacement: FloatArray
    features: Tensor
    device: torch.device

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return (self.image.shape[0], self.image.shape[1])


@dataclass(frozen=True)
class Refiner:
    """A refiner: it has `scores` or `label`, whose arguments are picture, parameters, and what `prepare` has made.

    Attributes:
        scores: (M, h, w) float32 maps at stride 4, one for each instance, not negative, and the (M,) class ids they
            are of. Thresholds make the labels.
        label: (H, W) uint8 semantic label, 0 for background, else class_id + 1. The displacement parts it.
        params: a frozen dataclass of its parameters; the string below a field is its help.
        prepare: parameters and device -> what is made once for all pictures.
        walks: whether the random walk is part of it.
    """

    scores: Callable[[Picture, Any, Any], tuple[Tensor, IntArray]] | None = None
    label: Callable[[Picture, Any, Any], LabelArray] | None = None
    params: type[Any] = NoParams
    prepare: Callable[[Any, torch.device], Any] | None = None
    walks: bool = False
