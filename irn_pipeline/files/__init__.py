"""Readers of files from strangers: nothing in them is run, and nothing they say reserves memory by itself."""
