"""Token embeddings, and their gradient in the form that suits the backend."""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxalign.kernels.int8 import Int8
from jaxalign.target import platform

Form = Literal["scatter", "sorted"]


def token_embeddings(table: Any, ids: Int[Array, "*B"]) -> Any:
    """The rows of `table` [V, D] (an array, or an `Int8`, which does not learn) at `ids`, in its dtype: [*B, D].

    The gradient of a row is a sum over the tokens that read it, in float32.
    """
    form = embedding_form()
    if isinstance(table, Int8) or (form == "scatter" and table.dtype == jnp.float32):
        return table[ids]  # whose derivative is that sum
    return _lookup(form, table, ids)


def embedding_form() -> Form:
    """How the gradient is summed: `scatter` on a CPU, else `sorted`.

    Accelerators scatter with atomic additions, whose order, and so whose rounding, is not that of the next run: there
    the tokens are sorted by id first, and a resumed run has the same bits. A CPU adds in order, and faster unsorted
    (docs/performance_appendix.md).
    """
    return "scatter" if platform() == "cpu" else "sorted"


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _lookup(form: Form, table: jax.Array, ids: jax.Array) -> jax.Array:
    return table[ids]


def _forward(form: Form, table: jax.Array, ids: jax.Array):
    return table[ids], (table, ids)


def _backward(form: Form, saved: tuple[jax.Array, jax.Array], d_out: jax.Array) -> tuple[jax.Array, None]:
    table, ids = saved
    ids, rows = ids.reshape(-1), d_out.reshape(-1, table.shape[1]).astype(jnp.float32)
    if form == "sorted":
        order = jnp.argsort(ids, stable=True)
        ids, rows = ids[order], rows[order]
    summed = jax.ops.segment_sum(rows, ids, num_segments=table.shape[0], indices_are_sorted=form == "sorted")
    return summed.astype(table.dtype), None


_lookup.defvjp(_forward, _backward)
