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
    """Exponent of the affinity in the random walk; larger values make weak boundaries harder to cross."""
    exp_times: int = 8
    """The random walk takes 2^exp_times steps."""
    radius: int = 5
    """Neighbourhood of a random-walk step: cells closer than this, in cells of 4 pixels."""
    cam_power: float = 1.0
    """Exponent applied to the activation maps before the walk; values above 1 suppress weak activations."""
    center_threshold: float = 2.5
    """A cell is the centre of an instance if its displacement is below this, in cells of 4 pixels."""
    centroid_iterations: int = 300
    """Iterations for following the displacement to a centroid."""


@dataclass(frozen=True)
class LabelParams:
    """Parameters of the way from walked maps to labels; the defaults are the published ones."""

    semantic_bg_threshold: float = 0.25
    """Background threshold of the semantic labels."""
    instance_bg_threshold: float = 0.25
    """Background threshold of the instance labels."""
    bg_search: tuple[float, ...] = field(default=(), metadata={"fingerprint": "unless default"})
    """Choose the background threshold per image between these two limits, for example 0.2 0.55; replaces both
    thresholds. Off by default, as published."""
    instance_score: InstanceScore = field(default="max", metadata={"fingerprint": "unless default"})
    """Score of an instance: the maximum of its map (published) or the mean, which ranks instances better."""
    min_area: float = 0.01
    """Components smaller than this fraction of the image count as fragments."""
    keep_fragments: bool = True
    """Keep fragments in the instance labels, with score 0."""

    def __post_init__(self) -> None:
        if self.bg_search and (len(self.bg_search) != 2 or not within(self.bg_search)):
            raise ValueError(
                f"bg_search is {list(self.bg_search)}; it must be two numbers, the lower one first, with a multiple of "
                "0.05 from 0.05 to 0.95 between them (0.2 0.55 works well)"
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
                "bg_search needs evidence of the image (background_evidence), and there is none"
            )
        found = best_background(evidence, self.bg_search)
        return (
            self if found is None else replace(self, semantic_bg_threshold=found, instance_bg_threshold=found)
        )


@dataclass(frozen=True)
class SynthesisParams(LabelParams, WalkParams):
    """All parameters of label synthesis; the defaults are the published ones."""
