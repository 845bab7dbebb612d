"""Parameters of label synthesis, apart for what comes up to the walked maps and what comes after them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

InstanceScore: TypeAlias = Literal["max", "mean"]
"""What an instance's score is: the largest value of its map inside it, as published, or the mean of them."""


@dataclass(frozen=True)
class WalkParams:
    """Parameters of what comes up to the walked maps; the defaults are the published ones."""

    beta: float = 10.0
    """Exponent of the affinity in the random walk; larger values close weak boundaries."""
    exp_times: int = 8
    """The random walk takes 2^exp_times steps."""
    radius: int = 5
    """The random walk joins cells closer than this, in cells of 4 pixels."""
    cam_power: float = 1.0
    """Exponent of the activation maps before the walk; above 1 they are trusted less where they are weak."""
    center_threshold: float = 2.5
    """Displacement, in cells of 4 pixels, below which a cell is the centre of an instance."""
    centroid_iterations: int = 300
    """Steps for which the displacement is followed."""


@dataclass(frozen=True)
class LabelParams:
    """Parameters of the way from walked maps to labels; the defaults are the published ones."""

    semantic_bg_threshold: float = 0.25
    """Score of the background in the semantic label."""
    instance_bg_threshold: float = 0.25
    """Score of the background in the instance label."""
    instance_score: InstanceScore = field(default="max", metadata={"fingerprint": "unless default"})
    """Score of an instance: its map's largest value inside it (published), or the mean, which ranks better."""
    min_area: float = 0.01
    """Share of the picture below which a component is a fragment."""
    keep_fragments: bool = True
    """Keep fragments, with the score 0, in the instance label."""


@dataclass(frozen=True)
class SynthesisParams(LabelParams, WalkParams):
    """All parameters of label synthesis; the defaults are the published ones."""
