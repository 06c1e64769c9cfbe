"""Token embeddings, and their gradient in the form that suits the devices."""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Int

from jaxalign.kernels.int8 import Int8
from jaxalign.mesh import DEFAULT_RULES, constrained, entry_axes, length_shards, partition_spec
from jaxalign.target import platform

Form = Literal["scatter", "sorted"]
TABLE, ROWS = ("vocab", "embed"), ("batch", "length")
STEP = {"replica": "data", "shard": ("fsdp", "expert")}


def token_embeddings(table: Any, ids: Int[Array, "B T"], mesh: Mesh | None = None) -> Any:
    """The rows of `table` [V, D] (an array, or an `Int8`, which does not learn) at `ids`, in its dtype: [B, T, D].

    The gradient of a row is a sum over the tokens that read it, in float32. On a mesh of several devices (None for
    one) each sums the columns that lie with it.
    """
    form, mesh = embedding_form(mesh), None if mesh is None or mesh.size == 1 else mesh
    if length_shards(mesh) > 1:
        ids = constrained(ids, ROWS, mesh)
    if isinstance(table, Int8) or (form == "scatter" and table.dtype == jnp.float32 and mesh is None):
        return table[ids]  # whose derivative is that sum
    return _lookup(form, mesh, table, ids)


def embedding_form(mesh: Mesh | None = None) -> Form:
    """How the gradient is summed: `scatter` on a CPU, else `sorted`.

    Accelerators scatter with atomic additions, whose order, and so whose rounding, is not that of the next run: there
    the tokens are sorted by id first, and a resumed run has the same bits. A CPU adds in order, and faster unsorted
    (docs/performance_appendix.md).
    """
    return "scatter" if platform(mesh) == "cpu" else "sorted"


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _lookup(form: Form, mesh: Mesh | None, table: jax.Array, ids: jax.Array) -> jax.Array:
    found = table[ids]
    if length_shards(mesh) == 1:
        return found
    # From columns to tokens one mesh axis after the other: both at once, the partitioner gathers the whole.
    return constrained(found, ("replica", "length", "shard"), mesh, {**DEFAULT_RULES, **STEP})


def _forward(form: Form, mesh: Mesh | None, table: jax.Array, ids: jax.Array):
    return _lookup(form, mesh, table, ids), (table, ids)


def _backward(form: Form, mesh: Mesh | None, saved: tuple[jax.Array, jax.Array], d_out: jax.Array):
    table, ids = saved
    if mesh is None:
        return _summed(form, ids, d_out, table.shape[0]).astype(table.dtype), None
    return _summed_over(mesh, form, ids, d_out, table.shape).astype(table.dtype), None


_lookup.defvjp(_forward, _backward)


def _summed(form: Form, ids: jax.Array, d_out: jax.Array, vocabulary: int) -> jax.Array:
    """float32 [V, D]: the sum of the rows of d_out [..., D] for each id; those out of range are left out."""
    ids, rows = ids.reshape(-1), d_out.reshape(-1, d_out.shape[-1]).astype(jnp.float32)
    if form == "sorted":
        order = jnp.argsort(ids, stable=True)
        ids, rows = ids[order], rows[order]
    return jax.ops.segment_sum(rows, ids, num_segments=vocabulary, indices_are_sorted=form == "sorted")


def _summed_over(
    mesh: Mesh, form: Form, ids: jax.Array, d_out: jax.Array, shape: tuple[int, ...]
) -> jax.Array:
    """`_summed` on a mesh: a device gets the columns that it holds of all tokens of the devices that share them.

    Left to itself, the partitioner has each device hold all columns of all tokens, in float32: 32 GiB for 256 devices
    with 4,096 tokens of width 8,192 each.
    """
    of_tokens = partition_spec(ROWS, ids.shape, mesh)
    of_vocabulary, of_width = partition_spec(TABLE, shape, mesh)
    tokens, width = [x for entry in of_tokens for x in entry_axes(entry)], entry_axes(of_width)
    # What is split over the columns must be split over the tokens too, to be exchanged.
    if not tokens or not set(width) <= set(tokens):
        return _summed(form, ids, d_out, shape[0])
    others = tuple(axis for axis in tokens if axis not in width)
    vocabulary = shape[0] // (mesh.shape["tensor"] if of_vocabulary else 1)

    def part(ids: jax.Array, d_out: jax.Array) -> jax.Array:
        ids, d_out = ids.reshape(-1), d_out.reshape(-1, d_out.shape[-1])
        if width:
            ids = jax.lax.all_gather(ids, width, tiled=True)
            d_out = jax.lax.all_to_all(d_out, width, split_axis=1, concat_axis=0, tiled=True)
        if of_vocabulary:
            ids = ids - jax.lax.axis_index("tensor") * vocabulary
        return jax.lax.psum(_summed(form, ids, d_out, vocabulary), others)

    return jax.shard_map(
        part,
        mesh=mesh,
        in_specs=(of_tokens, of_tokens),
        out_specs=PartitionSpec(of_vocabulary, of_width),
        check_vma=False,
    )(ids, d_out)
