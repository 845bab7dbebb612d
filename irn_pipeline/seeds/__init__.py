"""Maths of seeds: class activation maps from features, logits and gradients; no files, no configuration."""
