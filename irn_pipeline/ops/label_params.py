"""Parameters of label synthesis, apart for what comes up to the walked maps and what comes after them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from irn_pipeline.errors import ConfigError
from irn_pipeline.ops.background_search import best_background, within
from irn_pipeline.structures import FloatArray

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
    bg_search: tuple[float, ...] = field(default=(), metadata={"fingerprint": "unless default"})
    """Two numbers, 0.2 0.55: each picture's own background score between them, for both labels; off, as published."""
    instance_score: InstanceScore = field(default="max", metadata={"fingerprint": "unless default"})
    """Score of an instance: its map's largest value inside it (published), or the mean, which ranks better."""
    min_area: float = 0.01
    """Share of the picture below which a component is a fragment."""
    keep_fragments: bool = True
    """Keep fragments, with the score 0, in the instance label."""

    def __post_init__(self) -> None:
        if self.bg_search and (len(self.bg_search) != 2 or not within(self.bg_search)):
            raise ValueError(
                f"bg_search is {list(self.bg_search)}; it must be two numbers, the lower one first, with a multiple of "
                "0.05 from 0.05 to 0.95 between them (0.2 0.55 does well)"
            )

    def of_picture(self, evidence: FloatArray | None) -> LabelParams:
        """These parameters with the background score of one picture, if they search for it.

        Args:
            evidence: of `background_evidence`; it may be missing unless there is a search.

        Raises:
            ConfigError: it is missing.
        """
        if not self.bg_search:
            return self
        if evidence is None:
            raise ConfigError(
                "bg_search needs evidence of the picture (background_evidence), and there is none"
            )
        found = best_background(evidence, self.bg_search)
        return (
            self if found is None else replace(self, semantic_bg_threshold=found, instance_bg_threshold=found)
        )


@dataclass(frozen=True)
class SynthesisParams(LabelParams, WalkParams):
    """All parameters of label synthesis; the defaults are the published ones."""
