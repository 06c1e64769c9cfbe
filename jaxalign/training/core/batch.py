"""What losses read: batches on the device, one dataclass for each kind, with a field for each array.

`data` makes batches on the host as columns by name (see `data.batches`). `KIND.of(columns)` takes the columns that a
batch of this kind has.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Bool, Int

from jaxalign.arrays import AnyArray
from jaxalign.training.core.packing import Packing

Kind = TypeVar("Kind", bound="TokenRows")


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class TokenRows:
    """Right-padded rows of tokens.

    Attributes:
      tokens: token ids.
      lengths: valid tokens of each row.
      mask: True at the tokens that the loss reads.
      packing: the layout in which a model computes the rows; None computes them as they are.
    """

    tokens: Int[AnyArray, "*N T"]
    lengths: Int[AnyArray, "*N"]
    mask: Bool[AnyArray, "*N T"]
    packing: Packing | None = None

    @classmethod
    def of(cls, columns: Mapping[str, Any], prefix: str = "") -> Self:
        """A batch from columns by the names of its fields, each with the prefix; other columns are left out.

        Raises:
          TypeError: a field without a default has no column.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        needed = {field.name for field in dataclasses.fields(cls) if field.default is dataclasses.MISSING}
        needed -= {f.name for f in dataclasses.fields(cls) if f.default_factory is not dataclasses.MISSING}
        if missing := sorted(prefix + name for name in needed if prefix + name not in columns):
            raise TypeError(
                f"{cls.__name__}: missing column {missing[0]}; there are {', '.join(sorted(columns))}"
            )
        found = {name: columns[prefix + name] for name in names if prefix + name in columns}
        return cls(**{"packing": Packing.of(columns, prefix), **found})

    def columns(self) -> dict[str, Any]:
        """The inverse of `of`: the fields by name, without layout and without those that are None."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: x for name, x in values.items() if name != "packing" and x is not None}


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class TokenBatch(TokenRows):
    """Rows of B examples, one each, some of which may be fillers.

    Attributes:
      valid: False for fillers.
    """

    valid: Bool[AnyArray, " B"]

    def rows(self) -> TokenRows:
        """All rows one after another, in which no token of a filler counts."""
        valid = self.valid.reshape(-1, *[1] * (self.mask.ndim - 1))
        return TokenRows(
            tokens=rearrange(self.tokens, "b ... t -> (b ...) t"),
            lengths=rearrange(self.lengths, "b ... -> (b ...)"),
            mask=rearrange(self.mask & valid, "b ... t -> (b ...) t"),
            packing=self.packing,
        )


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class CompletionBatch(TokenBatch):
    """G completions of each prompt (chosen and rejected, or candidates): tokens and mask [B, G, T], lengths [B, G]."""

    @property
    def shape(self) -> tuple[int, int]:
        """(B, G)."""
        batch, group, _ = self.tokens.shape
        return batch, group


def valid_count(batch: TokenBatch) -> jax.Array:
    """The number of examples that count, float32."""
    return jnp.sum(batch.valid, dtype=jnp.float32)


# --- columns on the host ----------------------------------------------------------------------

ROW_COLUMNS = ("tokens", "mask", "lengths", "kl_tokens", "kl_mask", "kl_lengths")


def pair_axis(columns: Mapping[str, Any]) -> dict[str, Any]:
    """Chosen rows, then rejected rows, [2 * B, ...] -> [B, 2, ...], so that micro-batches keep pairs together."""
    return dict(columns) | {
        name: rearrange(rows, "(side b) ... -> b side ...", side=2) for name, rows in _rows(columns)
    }


def question_axis(columns: Mapping[str, Any]) -> dict[str, Any]:
    """The completions of a prompt one after another, [B * G, ...] -> [B, G, ...]."""
    count = len(columns["row_ids"])
    return dict(columns) | {
        name: rearrange(rows, "(b g) ... -> b g ...", b=count) for name, rows in _rows(columns)
    }


def _rows(columns: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(name, columns[name]) for name in ROW_COLUMNS if name in columns]
