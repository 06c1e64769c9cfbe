"""Trainers: one file per algorithm; `core` is shared."""
