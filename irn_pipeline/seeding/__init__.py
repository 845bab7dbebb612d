"""Kinds of seeds, one module each: activation maps of the classifier, in the published way and others."""

from __future__ import annotations

from typing import Literal, get_args

from irn_pipeline.seeding.base import Seed
from irn_pipeline.variants import load_variants

SeedName = Literal["cam", "layercam", "lpcam", "advcam", "pixels", "centre"]
"""All kinds; each is declared by the module of its name in this package."""
SEEDS = load_variants("irn_pipeline.seeding", Seed, get_args(SeedName))
