"""What decoding reads of a device's memory, and how fast: at few rows a device that is what limits it."""

import math
from dataclasses import dataclass
from typing import Any

import jax


@dataclass
class DecodeTraffic:
    """Bytes that a device reads while it decodes: each step all weights and the whole cache, once.

    Attributes:
      bytes: of all steps so far.
      seconds: that they took, on the host's clock; compilation is in the first ones.
    """

    bytes: int = 0
    seconds: float = 0.0

    def add(self, weights: Any, cache: Any, *, steps: int, seconds: float) -> None:
        """Counts steps that read the same weights (of `decode_weights`) and a cache of one size."""
        self.bytes += steps * (weight_bytes(weights) + _own_bytes(cache))
        self.seconds += seconds

    def join(self, other: "DecodeTraffic") -> None:
        """Counts what another one has counted too."""
        self.bytes += other.bytes
        self.seconds += other.seconds


def weight_bytes(weights: Any) -> int:
    """Bytes of a device's weights that a step reads: all but a table of embeddings that is not the head too."""
    return _own_bytes(weights) - _own_bytes(_tables(weights))


def _tables(weights: Any) -> list[Any]:
    """The tables of embeddings, of each model in the tree, of which a step reads a few rows."""
    parts = (
        weights.values()
        if isinstance(weights, dict)
        else weights
        if isinstance(weights, (list, tuple))
        else ()
    )
    own = [weights["embed"]] if isinstance(weights, dict) and {"embed", "head"} <= weights.keys() else []
    return own + [table for part in parts for table in _tables(part)]


def _own_bytes(tree: Any) -> int:
    """Bytes of a device's share of the arrays."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x in jax.tree.leaves(tree)
        if isinstance(x, jax.Array)
    )
