"""Checkpoints: whole training states, saved atomically, restored onto any mesh."""

from jaxalign.checkpoints.orbax_store import CheckpointStore

__all__ = ["CheckpointStore"]
