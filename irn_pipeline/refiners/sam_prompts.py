"""Prompts that make Segment Anything refine a given mask, and the parts that a mask is refined in.

Lin et al., "SAMRefiner: Taming Segment Anything Model for Universal Mask Refinement", ICLR 2025; repository
linyq2117/SAMRefiner (utils.py, sem2ins_mask.py). Its elastic boxes (margin above 0, off by default) are left out.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import interpolate, pad

from irn_pipeline.errors import ConfigError, ShapeError
from irn_pipeline.structures import BoolArray, FloatArray, IntArray

_FAR = 1e10
"""Distance where a mask has no outside."""
_DECIMALS = 6
"""Distances that differ by rounding are ties: the first pixel wins."""
_PROMPT_SIDE = 256


def octile_distance(masks: BoolArray) -> npt.NDArray[np.float64]:
    """Length of the shortest way of horizontal, vertical (1) and diagonal (sqrt 2) steps to a pixel outside the mask.

    The picture's border is no outside.

    Args:
        masks: (M, H, W) masks.

    Returns:
        (M, H, W) distances in pixels, 0 outside the mask; 1e10 where the mask covers the picture.
    """
    distance = np.where(masks, _FAR, 0.0)
    columns = np.arange(masks.shape[2], dtype=np.float64)
    # Two sweeps: each row takes from the row before it, then passes values on to both sides.
    for rows in (distance, distance[:, ::-1]):
        above = np.full(rows[:, 0].shape, _FAR)
        for number in range(rows.shape[1]):
            row = np.minimum(rows[:, number], above + 1)
            row[:, 1:] = np.minimum(row[:, 1:], above[:, :-1] + np.sqrt(2))
            row[:, :-1] = np.minimum(row[:, :-1], above[:, 1:] + np.sqrt(2))
            row = np.minimum.accumulate(row - columns, axis=1) + columns
            row = np.minimum.accumulate((row + columns)[:, ::-1], axis=1)[:, ::-1] - columns
            rows[:, number] = above = row
    return distance.round(_DECIMALS)


def box_prompts(masks: BoolArray) -> IntArray:
    """Smallest boxes that hold the masks.

    Args:
        masks: (M, H, W) masks, none empty.

    Returns:
        (M, 4) x0, y0, x1, y1 in pixels, both ends inclusive.

    Raises:
        ShapeError: the masks are not (M, H, W), or one is empty.
    """
    _require_masks(masks)
    columns, rows = np.any(masks, axis=1), np.any(masks, axis=2)
    ends = [side.shape[1] - 1 - side[:, ::-1].argmax(1) for side in (columns, rows)]
    return np.stack([columns.argmax(1), rows.argmax(1), *ends], 1).astype(np.int64)


def point_prompts(masks: BoolArray, *, drop_covered: bool = False) -> tuple[IntArray, IntArray]:
    """A positive point deep in each mask, and a negative one in its box as far from it as can be.

    Both are the first pixel (row by row) of the largest octile distance to the other side.

    Args:
        masks: (M, H, W) masks, none empty.
        drop_covered: the original gives (0, 0) as the negative point where the box without its last row and column
            holds no pixel outside the mask, which can lie on the mask; True gives that point the label -1 instead,
            which tells Segment Anything that there is none.

    Returns:
        points (M, 2, 2) as x, y, the positive one first; labels (M, 2), 1 and 0.

    Raises:
        ShapeError: the masks are not (M, H, W), or one is empty.
    """
    boxes = box_prompts(masks)
    outside = octile_distance(~masks)
    for distance, (left, top, right, bottom) in zip(outside, boxes, strict=True):
        kept = distance[top:bottom, left:right].copy()
        distance[:] = 0
        distance[top:bottom, left:right] = kept
    count, height, width = masks.shape
    flat = np.stack([octile_distance(masks), outside], 1).reshape(count, 2, height * width)
    y, x = np.divmod(flat.argmax(2), width)
    labels = np.tile(np.array([1, 0], np.int64), (count, 1))
    if drop_covered:
        labels[flat[:, 1].max(1) == 0, 1] = -1
    return np.stack([x, y], 2).astype(np.int64), labels


def mask_confidence(masks: BoolArray, gamma: float = 4.0) -> FloatArray:
    """exp(-(d - max d)^2 / max(|m| / gamma, 1)) inside each mask, d its octile distance; 0 outside.

    Args:
        masks: (M, H, W) masks, none empty.
        gamma: larger values fall off faster from the middle.

    Returns:
        (M, H, W) float32 in [0, 1].

    Raises:
        ShapeError: the masks are not (M, H, W), or one is empty.
        ConfigError: gamma is not above 0.
    """
    _require_masks(masks)
    if not gamma > 0:
        raise ConfigError(f"gamma of the mask prompt must be above 0, got {gamma}")
    distance = octile_distance(masks)
    below = distance - distance.max((1, 2), keepdims=True)
    spread = np.maximum(masks.sum((1, 2), keepdims=True) / gamma, 1)
    return np.where(masks, np.exp(-(below**2) / spread), 0).astype(np.float32)


def mask_prompts(
    masks: BoolArray, *, gamma: float = 4.0, strength: float = 30.0, encoder_side: int = 1024
) -> FloatArray:
    """Masks as the low-resolution logits that Segment Anything takes: +strength in the middle, -strength outside.

    Mask (as +-1) and confidence are resized to the size that the encoder sees, padded to a square (-1; 0) and
    resized to 256; logits = +-strength times the confidence, and -strength where there is none.

    Args:
        masks: (M, H, W) masks, none empty.
        gamma: see `mask_confidence`.
        strength: largest logit.
        encoder_side: pixels of the longest side of the picture that the encoder sees.

    Returns:
        (M, 256, 256) float32 in [-strength, strength].

    Raises:
        ShapeError: the masks are not (M, H, W), or one is empty.
        ConfigError: gamma is not above 0.
    """
    confidence = mask_confidence(masks, gamma)
    height, width = masks.shape[1:]
    scale = encoder_side / max(height, width)
    size = (int(height * scale + 0.5), int(width * scale + 0.5))
    margin = (0, encoder_side - size[1], 0, encoder_side - size[0])
    prompts = np.zeros((len(masks), _PROMPT_SIDE, _PROMPT_SIDE), np.float32)
    # One mask at a time: at the encoder's size each takes megabytes.
    for prompt, mask, values in zip(prompts, masks, confidence, strict=True):
        layers = torch.from_numpy(np.stack([mask * np.float32(2) - 1, values]))
        large = interpolate(layers[None], size, mode="bilinear", align_corners=False)[0]
        square = torch.stack([pad(large[0], margin, value=-1.0), pad(large[1], margin)])
        sign, weight = interpolate(square[None], (_PROMPT_SIDE,) * 2, mode="bilinear", align_corners=False)[0]
        weight = torch.where(weight > 0, weight, 1)
        prompt[:] = torch.where(sign > 0, strength * weight, -strength * weight).numpy()
    return prompts


def split_mask(
    mask: BoolArray, *, min_pixels: int = 5, density: float = 0.5, slack: float = 0.1
) -> BoolArray:
    """Parts of a semantic mask to refine one by one: 8-connected components, joined where they belong together.

    Where there are several components, those of less than `min_pixels` are dropped, even if none is left. Component j
    joins an earlier part i if the areas of their boxes together exceed half of the area U of the box around both, and
    their masks fill more of U than min(density, the lesser of their own densities - slack).

    Args:
        mask: (H, W) mask of one class.
        min_pixels: the smallest component that is kept.
        density: see above.
        slack: see above.

    Returns:
        (P, H, W) disjoint masks; none for an empty mask.

    Raises:
        ShapeError: the mask is not (H, W).
    """
    if mask.ndim != 2:
        raise ShapeError(f"a mask to split must be (H, W), got {mask.shape}")
    count, components, statistics, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    parts = [_Part([number], *map(int, statistics[number])) for number in range(1, count)]
    if len(parts) > 1:
        parts = [part for part in parts if part.pixels >= min_pixels]
    grown: list[_Part] = []
    while parts:
        part, *others = parts
        parts = []
        for other in others:
            if part.belongs_to(other, density, slack):
                part = part.joined_to(other)
            else:
                parts.append(other)
        grown.append(part)
    return np.array([np.isin(components, part.numbers) for part in grown], np.bool_).reshape(-1, *mask.shape)


class _Part(NamedTuple):
    """Joined components; the box is that of OpenCV's statistics."""

    numbers: list[int]
    left: int
    top: int
    width: int
    height: int
    pixels: int

    def joined_to(self, other: _Part) -> _Part:
        left, top = min(self.left, other.left), min(self.top, other.top)
        right = max(self.left + self.width, other.left + other.width)
        bottom = max(self.top + self.height, other.top + other.height)
        return _Part(
            self.numbers + other.numbers, left, top, right - left, bottom - top, self.pixels + other.pixels
        )

    def belongs_to(self, other: _Part, density: float, slack: float) -> bool:
        both = self.joined_to(other)
        # The original counts the common box without its last row and column.
        common = (both.width - 1) * (both.height - 1)
        areas = self.width * self.height, other.width * other.height
        fill = min(density, min(self.pixels / areas[0], other.pixels / areas[1]) - slack)
        return sum(areas) > 0.5 * common and both.pixels > fill * common


def _require_masks(masks: BoolArray) -> None:
    if masks.ndim != 3:
        raise ShapeError(f"masks to refine must be (M, H, W), got {masks.shape}")
    empty = np.flatnonzero(~masks.any((1, 2)))
    if len(empty):
        raise ShapeError(f"masks {empty.tolist()} are empty: there is nothing to refine; leave them out")
