"""Whole pipelines: the demo, and comparison of methods."""
