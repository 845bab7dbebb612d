"""Refiners, one module each: the random walk of IRNet, and what else makes regions of a picture's maps."""

from __future__ import annotations

from typing import Literal, get_args

from irn_pipeline.refiners.base import Refiner
from irn_pipeline.variants import load_variants

RefinerName = Literal["walk", "none", "pamr", "features", "crf", "sam"]
"""All refiners; each is declared by the module of its name in this package."""
REFINERS = load_variants("irn_pipeline.refiners", Refiner, get_args(RefinerName))
