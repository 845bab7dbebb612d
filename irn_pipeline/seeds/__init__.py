"""Kinds of seeds: activation maps of the classifier, in the published way and others.

`NAME.py` declares a kind and imports no torch; `NAME_maths.py` holds the functions on tensors that it runs.
"""

from __future__ import annotations

from typing import Literal, get_args

from irn_pipeline.seeds.base import Seed
from irn_pipeline.variants import load_variants

SeedName = Literal["cam", "layercam", "lpcam", "advcam", "pixels", "centre", "defects"]
"""All kinds; each is declared by the module of that name in this package."""
SEEDS = load_variants("irn_pipeline.seeds", Seed, get_args(SeedName))
