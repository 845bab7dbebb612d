"""Parameters of the dense CRF, whoever computes it and whatever it starts from."""

from __future__ import annotations

from dataclasses import dataclass

from irn_pipeline.errors import ConfigError


@dataclass(frozen=True)
class CrfParams:
    """Parameters of the dense CRF; the defaults are those published for IRNet.

    Raises:
        ConfigError: a parameter is out of range.
    """

    confidence: float = 0.7
    """Probability that the given label is right, between 0 and 1; not used when probabilities are given."""
    iterations: int = 10
    """Mean-field iterations."""
    gaussian_sxy: float = 3.0
    """Standard deviation of the smoothness term, in pixels."""
    gaussian_compat: float = 3.0
    """Weight of the smoothness term."""
    bilateral_sxy: float = 50.0
    """Standard deviation of the appearance term, in pixels."""
    bilateral_srgb: float = 5.0
    """Standard deviation of the appearance term, in colour values 0..255."""
    bilateral_compat: float = 10.0
    """Weight of the appearance term."""

    def __post_init__(self) -> None:
        if not 0 < self.confidence < 1:
            raise ConfigError(f"the CRF's confidence must be above 0 and below 1, got {self.confidence}")
        if self.iterations < 0:
            raise ConfigError(f"the CRF's iterations must be 0 or more, got {self.iterations}")
        for name in ("gaussian_sxy", "bilateral_sxy", "bilateral_srgb"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"the CRF's {name} must be above 0, got {getattr(self, name)}")
        for name in ("gaussian_compat", "bilateral_compat"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"the CRF's {name} must be 0 or more, got {getattr(self, name)}")


DEEPLAB_CRF = CrfParams(gaussian_sxy=1.0, bilateral_sxy=67.0, bilateral_srgb=3.0, bilateral_compat=4.0)
"""The usual ones for DeepLab v2's probabilities on VOC."""
