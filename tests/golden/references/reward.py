"""Losses of reward models."""

REFERENCES = {}
