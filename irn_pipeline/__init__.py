"""Weakly supervised instance and semantic segmentation from image-level labels (IRNet)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from irn_pipeline.predictor import Predictor
    from irn_pipeline.running import class_names, read_labels, run_stages
    from irn_pipeline.structures import Instances

__version__ = "0.2.0"
__all__ = ["Instances", "Predictor", "class_names", "read_labels", "run_stages"]

_HOMES = {
    "Instances": "structures",
    "Predictor": "predictor",
    "class_names": "running",
    "read_labels": "running",
    "run_stages": "running",
}


def __getattr__(name: str) -> Any:
    # Imported when first used: torch takes seconds, and a mistyped flag should not wait for it.
    if name in _HOMES:
        return getattr(import_module(f"irn_pipeline.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'irn_pipeline' has no attribute '{name}'")
