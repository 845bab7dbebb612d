"""Readers of data sets, the generated demo set, and picture transforms."""
