"""Picture transforms on uint8 tensors; every random choice comes from a generator the caller seeds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from irn_pipeline.datasets.pixels import read_pixels
from irn_pipeline.structures import ImageRecord, IntArray, imagenet_scaling


def to_tensor(image: npt.NDArray[Any]) -> Tensor:
    """(H, W, C) array, as `pixels.read_pixels` gives it -> (C, H, W) tensor of the same type."""
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)


def unit(image: Tensor) -> Tensor:
    """(C, H, W) picture as segmenters ask for it: of uint8 in [0, 1], of others such that `normalise` is undone."""
    if image.dtype == torch.uint8:
        return image.float() / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in imagenet_scaling(len(image)))
    return image * std + mean


def to_unit_tensor(image: npt.NDArray[Any]) -> Tensor:
    """(H, W, C) array of `pixels.read_pixels` -> (C, H, W) float32 tensor as segmenters ask for it (`unit`)."""
    return unit(to_tensor(image))


def normalise(image: Tensor) -> Tensor:
    """(3, H, W) uint8 -> float32, scaled to [0, 1], then centred and scaled by ImageNet's mean and deviation.

    Floating-point pictures (C, H, W) are so already, by the values of their own data set, and stay as they are.
    """
    if image.dtype != torch.uint8:
        return image
    mean, std = (torch.tensor(values, device=image.device)[:, None, None] for values in imagenet_scaling())
    return (image.float() / 255).sub_(mean).div_(std)


def pinned(image: Tensor, device: torch.device) -> Tensor:
    """The picture in memory that a GPU copies from while it works on others; for other devices as it is."""
    return image.pin_memory() if device.type == "cuda" else image


def resize_image(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Bicubic resize with antialiasing of a (C, H, W) picture to `size` (H', W')."""
    if tuple(image.shape[-2:]) == size:
        return image
    # torchvision takes longer to import than everything else here, and no help text needs it.
    from torchvision.transforms.v2 import functional as TF

    return TF.resize(image, list(size), interpolation=TF.InterpolationMode.BICUBIC, antialias=True)


def resize_label(label: Tensor, size: tuple[int, int]) -> Tensor:
    """Nearest-neighbour resize of a (R, H, W) uint8 stack of labels or masks to `size`."""
    if tuple(label.shape[-2:]) == size:
        return label
    return F.interpolate(label[None], size, mode="nearest-exact")[0]


def nearest_places(length: int, new_length: int) -> IntArray:
    """Which of `length` rows or columns `resize_label` takes for each of `new_length`: (new_length,) ascending."""
    # As torch itself finds them, rounding included.
    places = torch.arange(length, dtype=torch.float32)[None, None, :, None]
    return F.interpolate(places, (new_length, 1), mode="nearest-exact").flatten().long().numpy()


def scaled_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """(H, W) times `scale`, rounded, at least 1."""
    return max(round(size[0] * scale), 1), max(round(size[1] * scale), 1)


def read_resized(record: ImageRecord, long_side: float, *, enlarge: bool = True) -> Tensor:
    """(C, H, W) picture whose longer side is `long_side`; without `enlarge`, smaller pictures stay as they are.

    Raises:
        DataError: the file cannot be read.
    """
    image = to_tensor(read_pixels(record))
    height, width = image.shape[-2:]
    scale = long_side / max(height, width)
    return resize_image(image, scaled_size((height, width), scale if enlarge else min(1.0, scale)))


@dataclass(frozen=True)
class Crop:
    """A window of a picture placed in a square of `side` pixels; the rest is padding.

    Attributes:
        side: pixels of the square; 0 for the window as it is.
        source: (top, left) of the window in the picture.
        target: (top, left) of the window in the square.
        size: (height, width) of the window.
    """

    side: int
    source: tuple[int, int]
    target: tuple[int, int]
    size: tuple[int, int]

    def apply(self, array: Tensor, fill: float) -> Tensor:
        """Cut the window out of (..., H, W) and pad with `fill` to (..., side, side)."""
        return self.pad(self.cut(array), fill)

    def cut(self, array: Tensor) -> Tensor:
        """The window of (..., H, W), without padding."""
        (sy, sx), (h, w) = self.source, self.size
        return array[..., sy : sy + h, sx : sx + w]

    def pad(self, window: Tensor, fill: float) -> Tensor:
        """A window in its place in (..., side, side)."""
        if not self.side:
            return window
        (ty, tx), (h, w) = self.target, self.size
        return F.pad(window, (tx, self.side - tx - w, ty, self.side - ty - h), value=fill)


def random_crop(size: tuple[int, int], side: int, rng: np.random.Generator) -> Crop:
    """A random window where the picture is larger than `side`, a random place where it is smaller."""
    source, target, extent = [], [], []
    for length in size:
        slack = length - side
        source.append(int(rng.integers(0, slack + 1)) if slack > 0 else 0)
        target.append(int(rng.integers(0, -slack + 1)) if slack < 0 else 0)
        extent.append(min(length, side))
    return Crop(side, (source[0], source[1]), (target[0], target[1]), (extent[0], extent[1]))


def stride4_label(label: Tensor) -> Tensor:
    """Nearest-neighbour label at stride 4 of a crop whose sides are multiples of 4: (..., H, W) -> (..., H/4, W/4)."""
    return label[..., 2::4, 2::4]
