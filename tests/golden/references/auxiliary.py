"""Auxiliary losses."""

REFERENCES = {}
