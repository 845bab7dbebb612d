"""The neighbours that PAMR and PAR take a pixel's new value from: eight directions at several distances."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from irn_pipeline.errors import ConfigError, ShapeError

DILATIONS = (1, 2, 4, 8, 12, 24)
"""Published distances in pixels; a diagonal neighbour is at the same distance along both axes."""


def offsets(dilations: Sequence[int]) -> list[tuple[int, int]]:
    """(dy, dx) of the eight neighbours at each distance; the pixel itself is not among them.

    Args:
        dilations: distances in pixels, each at least 1.

    Returns:
        8 * len(dilations) offsets.

    Raises:
        ConfigError: there is no distance, or one is below 1.
    """
    if not dilations or min(dilations) < 1:
        raise ConfigError(f"distances of neighbours must be at least 1 pixel, got {list(dilations)}")
    around = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)]
    return [(dy * distance, dx * distance) for distance in dilations for dy, dx in around]


def shifted(maps: Tensor, steps: Sequence[tuple[int, int]]) -> Iterator[Tensor]:
    """The maps seen from each neighbour, with the border replicated: views into one padded copy.

    Args:
        maps: (C, H, W).
        steps: (dy, dx) offsets.

    Yields:
        (C, H, W) with the value of pixel (y + dy, x + dx) at (y, x).
    """
    reach = max(max(abs(dy), abs(dx)) for dy, dx in steps)
    padded = pad(maps[None], [reach] * 4, mode="replicate")[0]
    height, width = maps.shape[1:]
    for dy, dx in steps:
        yield padded[:, reach + dy : reach + dy + height, reach + dx : reach + dx + width]


def deviation(image: Tensor, steps: Sequence[tuple[int, int]], *, own: int = 0) -> Tensor:
    """Standard deviation (ddof 1) of the values around each pixel.

    Args:
        image: (C, H, W) picture.
        steps: (dy, dx) offsets of the neighbours.
        own: how many times the pixel itself counts among the values.

    Returns:
        (C, H, W); exactly 0 where all values are equal.
    """
    count = len(steps) + own
    # Relative to the pixel, and in two passes, so that a small deviation of large values is not lost.
    mean = torch.zeros_like(image)
    for neighbour in shifted(image, steps):
        mean += neighbour - image
    mean /= count
    squares = own * mean**2
    for neighbour in shifted(image, steps):
        squares += (neighbour - image - mean) ** 2
    return (squares / (count - 1)).sqrt()


def softmax_of_contrasts(contrasts: Tensor) -> Tensor:
    """Softmax over the first axis, in place: of (S, H, W) contrasts, (S, H, W) weights that sum to 1 at a pixel."""
    contrasts -= contrasts.amax(0)
    contrasts.exp_()
    contrasts /= contrasts.sum(0)
    return contrasts


def propagate(maps: Tensor, weights: Tensor, steps: Sequence[tuple[int, int]], iterations: int) -> Tensor:
    """m_i <- sum_n w_in m_n, again and again; one shifted map in memory at a time.

    Args:
        maps: (K, H, W) maps.
        weights: (S, H, W) weight of each neighbour.
        steps: S offsets (dy, dx).
        iterations: rounds; 0 gives the maps back.

    Returns:
        (K, H, W) maps.
    """
    for _ in range(iterations):
        total = torch.zeros_like(maps)
        for weight, neighbour in zip(weights, shifted(maps, steps), strict=True):
            total.addcmul_(weight, neighbour)
        maps = total
    return maps


def refine(
    image: Tensor,
    maps: Tensor,
    weights_of: Callable[[Tensor, Sequence[int]], Tensor],
    dilations: Sequence[int],
    iterations: int,
) -> Tensor:
    """Maps at the picture's size, propagated with the weights that a method makes from the picture.

    Args:
        image: (C, H, W) picture.
        maps: (K, h, w) maps.
        weights_of: picture and distances -> (S, H, W) weights for the S offsets of `offsets`.
        dilations: distances of the neighbours in pixels.
        iterations: rounds; 0 only resizes, and makes no weights.

    Returns:
        (K, H, W) float32 maps.

    Raises:
        ShapeError: maps or picture are not three-dimensional.
        ConfigError: a distance is below 1.
    """
    resized = resized_to(maps, image)
    if not iterations or not len(maps):
        return resized
    return propagate(resized, weights_of(image, dilations), offsets(dilations), iterations)


def resized_to(maps: Tensor, image: Tensor) -> Tensor:
    """Maps at the picture's size, bilinear with align_corners=True as both originals do.

    Args:
        maps: (K, h, w) maps.
        image: (C, H, W) picture.

    Returns:
        (K, H, W) float32 maps on the picture's device.

    Raises:
        ShapeError: maps or picture are not three-dimensional.
    """
    if maps.ndim != 3 or image.ndim != 3:
        raise ShapeError(
            f"maps must be (K, h, w) and the image (C, H, W), got {tuple(maps.shape)} and {tuple(image.shape)}"
        )
    size = (image.shape[1], image.shape[2])
    if not len(maps):  # torch refuses to resize a stack of no maps
        return image.new_zeros((0, *size))
    return interpolate(maps[None].to(image), size, mode="bilinear", align_corners=True)[0]
