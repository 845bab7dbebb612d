"""Weakly supervised instance and semantic segmentation from image-level labels (IRNet)."""

__version__ = "0.2.0"
