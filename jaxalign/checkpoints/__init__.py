"""Checkpoints: whole training states, saved atomically, restored onto any mesh; and read in parts."""

from jaxalign.checkpoints.orbax_store import CheckpointStore
from jaxalign.checkpoints.reading import (
    best_step,
    read_part,
    saved_at,
    saved_metrics,
    saved_steps,
    saved_tree,
)

__all__ = [
    "CheckpointStore",
    "best_step",
    "read_part",
    "saved_at",
    "saved_metrics",
    "saved_steps",
    "saved_tree",
]
