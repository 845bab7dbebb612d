"""What stands out from its surroundings, pixel by pixel, and where it ends."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_SURROUNDINGS = 0.2
"""Side of the window of the local background, as a share of the image's shorter side."""

_Floats = npt.NDArray[np.float32]


def largest_piece(contrast: _Floats, region: npt.NDArray[np.bool_]) -> float:
    """Share of the largest connected piece in what stands out inside a region; 0 where nothing does.

    Args:
        contrast: (H, W) of `contrast_map`.
        region: (H, W), where to look.
    """
    outstanding = region & (contrast > otsu(contrast[region]))
    count, _, stats, _ = cv2.connectedComponentsWithStats(outstanding.astype(np.uint8), connectivity=8)
    return float(stats[1:, cv2.CC_STAT_AREA].max() / outstanding.sum()) if count > 1 else 0.0


def contrast_map(gray: Tensor, blur: float = 2.0) -> _Floats:
    """How far pixels are from the median of their surroundings.

    Args:
        gray: (H, W) floats.
        blur: standard deviation of the noise filter, pixels.

    Returns:
        (H, W), in 255ths of the image's range.
    """
    low, high = (float(value) for value in (gray.min(), gray.max()))
    image = ((gray - low) / max(high - low, 1e-6) * 255).cpu().numpy().astype(np.uint8)
    # OpenCV's median takes odd windows up to 255.
    window = min(max(int(min(image.shape) * _SURROUNDINGS), 3), 255) | 1
    around = cv2.GaussianBlur(cv2.medianBlur(image, window).astype(np.float32), (0, 0), 5)
    found: _Floats = np.abs(cv2.GaussianBlur(image.astype(np.float32), (0, 0), blur) - around)
    return found


def otsu(values: _Floats) -> float:
    """Otsu's threshold, of 256 steps between the smallest and the largest value."""
    if not values.size:
        return 0.0
    low, high = float(values.min()), float(values.max())
    steps = ((values - low) / max(high - low, 1e-6) * 255).astype(np.uint8).reshape(-1, 1)
    return low + cv2.threshold(steps, 0, 255, cv2.THRESH_OTSU)[0] / 255 * (high - low)


def edge_at(values: Tensor, edge: float) -> Tensor:
    """Values turned monotonously into 0 to 1 so that the edge becomes 0.5 and the maximum 1."""
    above = (values - edge) / (values.max() - edge).clamp(min=1e-6)
    return torch.where(values > edge, 0.5 + above / 2, (values - edge).clamp(max=0).sigmoid())
