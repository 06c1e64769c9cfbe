"""Trainers: one file an algorithm, on what they share in `core`."""
