"""Maths of refiners: maps and labels made to follow the picture's regions; no files, no configuration."""
