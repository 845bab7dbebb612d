"""What the seeds that describe cells have in common: the size of pictures, and the features of a picture's cells."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from irn_pipeline.errors import ConfigError
from irn_pipeline.seeds.base import Picture

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from irn_pipeline.seeds.cells import CellClassifier

_COMPARED = 3
"""Last maps of the backbone that cells are described by: of a ResNet layer2, layer3 and layer4."""
_STRIDE = 16
"""Of the last map; sides are multiples of it, so that maps end where the picture does."""


def paired_features(picture: Picture) -> list[Tensor]:
    """Means of a picture's and its mirror's features: (C_s, h_s, w_s) float32 of the backbone's last maps."""
    import torch

    (scaled,) = picture.scaled
    pair = torch.stack([scaled, scaled.flip(-1)]).contiguous(memory_format=torch.channels_last)
    stages = picture.network.backbone(pair)[-_COMPARED:]
    return [(stage[0].float() + stage[1].float().flip(-1)) / 2 for stage in stages]


@contextmanager
def full_precision(device: torch.device, *, gradients: bool = False) -> Iterator[None]:
    """Float32 for what follows the network; with gradients where something is fitted."""
    import torch

    with (
        torch.autocast(device.type, enabled=False),
        torch.inference_mode(not gradients),
        torch.set_grad_enabled(gradients),
    ):
        yield


def size_at(long_side: int, size: tuple[int, int]) -> tuple[int, int]:
    """(H, W) so resized that the longer side is about `long_side`, and both are multiples of 16."""
    height, width = (max(round(side * long_side / max(size) / _STRIDE), 1) * _STRIDE for side in size)
    return height, width


def require_side(name: str, side: int) -> None:
    """Refuse a long side that leaves too few cells.

    Raises:
        ConfigError: it is below 64.
    """
    if side < 4 * _STRIDE:
        raise ConfigError(f"{name} is {side}; it must be {4 * _STRIDE} pixels at least")


def restore(state: Mapping[str, Tensor]) -> CellClassifier:
    """The fitted classifier whose tensors these are."""
    from irn_pipeline.seeds.cells import CellClassifier

    return CellClassifier.from_state(state)
