"""Layouts of rows on the device: tokens into packed rows, and what a model says of them back to where they were."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Int, Shaped

from jaxalign.data.packing import MAX_SEGMENTS, segments


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Packing:
    """The layout that `data.packed` or `data.with_loss_positions` adds to a batch of N rows of T tokens.

    Attributes:
      flat_indices: row * T + column of the token in each column of the packed rows; N * T in padding. None where the
        rows are not packed: then they are the R = N rows below.
      loss_positions: for each shard of the R rows, flattened, the columns whose hidden state predicts a counted token;
        -1 fills. [S, L, C] where a row's columns are split over L devices: the same for each of their parts. None where
        no vocabulary head is applied, or (to rows that are not packed) to all columns.
    """

    flat_indices: Int[Array, "R T"] | None = None
    loss_positions: Int[Array, "S C"] | Int[Array, "S L C"] | None = None

    @classmethod
    def of(cls, columns: Mapping[str, Any], prefix: str = "") -> "Packing | None":
        """The layout among a batch's columns (of its rows with this prefix); None where there is none."""
        flat, positions = columns.get(prefix + "packed"), columns.get(prefix + "loss_positions")
        return None if flat is None and positions is None else cls(flat, positions)

    def rows(self, tokens: Int[Array, "N T"], lengths: Int[Array, " N"]) -> dict[str, Any]:
        """The arguments by which a model reads the rows.

        Returns:
          tokens with lengths, or with positions and segment_ids, int32 [R, T], and max_segments.
        """
        if self.flat_indices is None:
            return {"tokens": tokens, "lengths": lengths}
        return {
            "tokens": taken(tokens, self.flat_indices),
            **segments(self.flat_indices, tokens.size, tokens.shape[1]),
            "max_segments": MAX_SEGMENTS,
        }

    def back(self, values: Float[Array, "R T *D"], shape: tuple[int, ...]) -> Float[Array, "N T *D"]:
        """What a model says of each column of the rows, at its token's place in rows of this shape."""
        return values if self.flat_indices is None else spread(values, self.flat_indices, shape)

    def gather(self, hidden: Float[Array, "R T D"]) -> Float[Array, "S LC D"]:
        """The hidden states that predict counted tokens; some state in filled slots."""
        found = self._at_positions(hidden)
        return found.reshape(found.shape[0], -1, found.shape[-1])

    def targets(self, shape: tuple[int, ...]) -> Int[Array, "S LC"]:
        """Where the token lies that each of `gather` predicts, row * T + column of rows of the shape [N, T]; N * T in
        filled slots."""
        assert self.loss_positions is not None
        size = math.prod(shape)
        before = jnp.arange(size).reshape(shape) if self.flat_indices is None else self.flat_indices
        found = jnp.where(self.loss_positions < 0, size, self._at_positions(before[..., None])[..., 0] + 1)
        return found.reshape(found.shape[0], -1)

    def _at_positions(self, columns: Shaped[Array, "R T D"]) -> Shaped[Array, "S *L C D"]:
        """What stands at `loss_positions`; column 0 in filled slots."""
        assert self.loss_positions is not None
        positions = jnp.maximum(self.loss_positions, 0)[..., None]
        if positions.ndim == 3:
            return jnp.take_along_axis(
                columns.reshape(positions.shape[0], -1, columns.shape[-1]), positions, 1
            )
        shards, parts = positions.shape[:2]
        split = rearrange(columns, "(s r) (l c) d -> s l (r c) d", s=shards, l=parts)
        return jnp.take_along_axis(split, positions, axis=2)


def most_segments(packing: bool) -> int:
    """How many segments a row of a batch holds at most, packed or not."""
    return MAX_SEGMENTS if packing else 1


def taken(values: Shaped[Array, "N T"], places: Int[Array, "*P"]) -> Shaped[Array, "*P"]:
    """The values of the tokens at row * T + column; 0 (False) where there is none."""
    return values.reshape(-1).at[places].get(mode="fill", fill_value=0)


def spread(
    values: Float[Array, "*P"], places: Int[Array, "*P"], shape: tuple[int, ...]
) -> Float[Array, "N T"]:
    """The inverse: values of tokens at their places in rows of this shape, 0 elsewhere.

    Values may have trailing axes of their own, which are kept.
    """
    rest = values.shape[places.ndim :]
    flat = jnp.zeros((math.prod(shape), *rest), values.dtype)
    # No place occurs twice. An addition has a plain gather as its gradient, a replacement has not.
    flat = flat.at[places.reshape(-1)].add(values.reshape(-1, *rest), mode="drop")
    return flat.reshape(*shape, *rest)
