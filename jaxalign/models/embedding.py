"""Token embeddings, and their gradient in the form that suits the backend."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxalign.models.int8 import Int8

Form = Literal["scatter", "sorted"]


def token_embeddings(table: Any, ids: Int[Array, "*B"]) -> Any:
    """The rows of `table` [V, D] (an array, or an `Int8`, which does not learn) at `ids`, in its dtype: [*B, D].

    The gradient of a row is a sum over the tokens that read it.
    """
    plain = isinstance(table, Int8) or embedding_form() == "scatter"
    return table[ids] if plain else _sorted_lookup(table, ids)


def embedding_form() -> Form:
    """How the gradient is summed: `scatter` on a CPU, else `sorted`.

    Accelerators scatter with atomic additions, whose order, and so whose rounding, is not that of the next run: there
    the tokens are sorted by id first, and a resumed run has the same bits. A CPU adds in order, and faster unsorted
    (docs/performance.md).
    """
    return "scatter" if jax.default_backend() == "cpu" else "sorted"


@jax.custom_vjp
def _sorted_lookup(table: jax.Array, ids: jax.Array) -> jax.Array:
    return table[ids]


def _forward(table: jax.Array, ids: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return table[ids], (table, ids)


def _backward(saved: tuple[jax.Array, jax.Array], d_out: jax.Array) -> tuple[jax.Array, None]:
    table, ids = saved
    order = jnp.argsort(ids.reshape(-1), stable=True)
    rows = d_out.reshape(-1, table.shape[1]).astype(jnp.float32)[order]
    summed = jax.ops.segment_sum(
        rows, ids.reshape(-1)[order], num_segments=table.shape[0], indices_are_sorted=True
    )
    return summed.astype(table.dtype), None


_sorted_lookup.defvjp(_forward, _backward)
