"""Semantic and instance metrics."""
