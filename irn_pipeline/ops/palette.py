"""Colours of the indexed PNGs that hold labels and object ids."""

from __future__ import annotations

import numpy as np

from irn_pipeline.structures import LabelArray


def voc_palette() -> LabelArray:
    """Colours of the 256 indices, as the VOC devkit's `VOClabelcolormap` makes them.

    The bits of the index go to red, green and blue in turn, the lowest to the highest bit of each.

    Returns:
        (256, 3) uint8 RGB.

    Example:
        >>> voc_palette()[[0, 1, 2, 15, 255]].tolist()
        [[0, 0, 0], [128, 0, 0], [0, 128, 0], [192, 128, 128], [224, 224, 192]]
    """
    bits = (np.arange(256)[:, None] >> np.arange(9) & 1).reshape(256, 3, 3)
    return (bits * np.array([128, 64, 32])[:, None]).sum(1).astype(np.uint8)
