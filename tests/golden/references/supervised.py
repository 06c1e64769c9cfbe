"""Losses of demonstrations: cross-entropy, its relatives, and distillation."""

REFERENCES = {}
