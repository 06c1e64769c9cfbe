"""Log-probs of tokens, from logits or, in chunks, from hidden states.

`linear_logprobs` never materializes [B, T, V], forward or backward: it processes the vocabulary in chunks with an
online log-sum-exp, and recomputes each chunk's logits in the backward pass. (With one chunk for the whole vocabulary
XLA keeps them instead.) One primitive serves supervised, preference and policy-gradient training and scoring.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int, Shaped

from jaxalign.arrays import Scalar, check_range, check_rank, check_shapes, product_precision
from jaxalign.masking import NEGATIVE, as_mask
from jaxalign.mesh import entry_axes, partition_spec

CHUNK_SIZE = 4096
VOCABULARY_AXIS = "tensor"


class LogprobStatistics(NamedTuple):
    """Per-token statistics, each [B, T] float32 and 0 where masked.

    Attributes:
      logps: log p(target), nats.
      entropy: entropy of the distribution, nats.
      logsumexp: log normalizer of the (scaled) logits.
      mean_logps: mean of log p over the vocabulary, for label smoothing.
      sum_squared_probs: sum of p^2 (1 where the model is certain).
      is_top1: 1.0 where the target is the most probable token; no gradient.
    """

    logps: Float[Array, "B T"]
    entropy: Float[Array, "B T"]
    logsumexp: Float[Array, "B T"]
    mean_logps: Float[Array, "B T"]
    sum_squared_probs: Float[Array, "B T"]
    is_top1: Float[Array, "B T"]


def token_logprobs(
    logits: Float[Array, "B T V"], targets: Int[Array, "B T"], *, temperature: Scalar = 1.0
) -> Float[Array, "B T"]:
    """log softmax(logits / temperature) at the targets.

    Args:
      logits: any float dtype, computed in float32.
      targets: token ids in [0, V).
      temperature: positive.

    Returns:
      float32 nats.

    Raises:
      AssertionError: incompatible shapes.
      ValueError: a concrete temperature that is not positive.
    """
    check_range("temperature", temperature, 0.0, open_low=True)
    check_rank(3, logits=logits)
    check_shapes(targets=targets, logits_rows=logits[..., 0])
    scaled = logits.astype(jnp.float32) / temperature
    chosen = jnp.take_along_axis(scaled, targets[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(scaled, axis=-1)


def linear_logprobs(
    hidden: Float[Array, "B T D"],
    embedding: Float[Array, "V D"],
    targets: Int[Array, "B T"],
    mask: Shaped[Array, "B T"] | None = None,
    *,
    chunk_size: int = CHUNK_SIZE,
    temperature: Scalar = 1.0,
    softcap: float | None = None,
    bias: Float[Array, " V"] | None = None,
    logit_scale: Scalar = 1.0,
    product_dtype: Any = None,
    mesh: Mesh | None = None,
) -> LogprobStatistics:
    """Statistics of softmax(logits / temperature), logits = cap(logit_scale * hidden @ embedding^T + bias).

    Args:
      hidden: any float dtype; products accumulate in float32.
      embedding: the vocabulary projection.
      targets: token ids in [0, V); ignored where masked.
      mask: tokens that contribute; None for all. Hidden states of masked entries may be NaN.
      chunk_size: vocabulary rows per chunk.
      temperature: positive; no gradient.
      softcap: c in c * tanh(logits / c), applied before the temperature; None for none.
      bias: added to the logits.
      logit_scale: factor on the logits; no gradient.
      product_dtype: dtype that the operands of products are cast to; None uses the dtype of hidden. (float32 is
        faster than bfloat16 on CPUs without bfloat16 instructions.)
      mesh: devices that the arrays lie on; None for one. Where its axis `tensor` splits the vocabulary, each device
        takes its tokens (`data`, `fsdp`, `expert`, `context`) and its part of the vocabulary.

    Returns:
      `LogprobStatistics`; gradients reach hidden, embedding and bias.

    Raises:
      AssertionError: incompatible shapes.
      ValueError: a concrete hyper-parameter out of range.
    """
    check_range("temperature", temperature, 0.0, open_low=True)
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be 1 or more, got {chunk_size}")
    check_rank(3, hidden=hidden)
    check_rank(2, embedding=embedding)
    check_shapes(targets=targets, hidden_rows=hidden[..., 0], mask=mask)
    if hidden.shape[-1] != embedding.shape[-1]:
        raise AssertionError(f"embedding has width {embedding.shape[-1]}, hidden has {hidden.shape[-1]}")
    mask = as_mask(mask, targets)
    hidden = jnp.where(mask[..., None], hidden, 0)
    targets = jnp.where(mask, targets, 0)
    with_bias = bias is not None
    if bias is None:
        bias = jnp.zeros(embedding.shape[0], jnp.float32)
    scales = jnp.stack([jnp.asarray(logit_scale, jnp.float32), 1.0 / jnp.asarray(temperature, jnp.float32)])
    dtype = jnp.dtype(product_dtype or hidden.dtype)
    # Left to itself, the partitioner would gather each chunk of a vocabulary that is split. What is not, it does well.
    if mesh is not None and (
        mesh.shape[VOCABULARY_AXIS] == 1 or embedding.shape[0] % mesh.shape[VOCABULARY_AXIS]
    ):
        mesh = None
    static = _Static(chunk_size, float(softcap or 0.0), with_bias, dtype, mesh)
    values: tuple[jax.Array, ...] = _statistics(static, hidden, embedding, bias, scales, targets)
    return LogprobStatistics(*(jnp.where(mask, v, 0.0) for v in values))


class _Static(NamedTuple):
    """What a program of `_statistics` is compiled for."""

    chunk_size: int
    softcap: float  # 0 for none
    with_bias: bool
    product_dtype: Any
    mesh: Mesh | None  # where it splits the vocabulary

    def size(self, embedding: jax.Array) -> int:
        """Rows of a chunk."""
        return min(self.chunk_size, embedding.shape[0])


def _chunks(vocabulary: int, size: int) -> tuple[jax.Array, jax.Array]:
    """Where each chunk is sliced, and the first row that is its own (the last slice is pulled back)."""
    number = -(-vocabulary // size)
    first = jnp.arange(number) * size
    return jnp.minimum(first, vocabulary - size), first


def _chunk_logits(static, hidden, embedding, bias, scales, start, first):
    """Scaled logits [B, T, C] of one chunk (NEGATIVE at rows of the chunk before), and d(logit)/d(product)."""
    size, cap, dtype = static.size(embedding), static.softcap, static.product_dtype
    weights = jax.lax.dynamic_slice_in_dim(embedding, start, size, 0).astype(dtype)
    shift = jax.lax.dynamic_slice_in_dim(bias, start, size, 0).astype(jnp.float32)
    logits = _product("btd,vd->btv", hidden.astype(dtype), weights)
    logits = scales[0] * logits + shift
    slope = jnp.ones((), jnp.float32)
    if cap:
        bent = jnp.tanh(logits / cap)
        logits, slope = cap * bent, 1.0 - jnp.square(bent)
    columns = start + jnp.arange(size)
    return weights, jnp.where(columns >= first, logits * scales[1], NEGATIVE), columns, slope * scales[1]


def _product(pattern: str, a: jax.Array, b: jax.Array) -> jax.Array:
    precision = product_precision(a.dtype)
    return jnp.einsum(pattern, a, b, precision=precision, preferred_element_type=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _statistics(static, hidden, embedding, bias, scales, targets):
    return _forward(static, hidden, embedding, bias, scales, targets)[0]


def _forward(static, hidden, embedding, bias, scales, targets):
    arrays = (hidden, embedding, bias, scales, targets)
    values, normalizer, mean_logit = _over_mesh(_values, static, arrays)
    return values, (*arrays, normalizer, mean_logit, values[4])


def _values(static: _Static, shards: "_Shards", hidden, embedding, bias, scales, targets):
    """The statistics, the log normalizer and the mean logit; targets count from the first row that is here."""

    def body(carry, bounds):
        top, total, weighted, squared, plain, chosen = carry
        start, first = bounds
        _, logits, columns, _ = _chunk_logits(static, hidden, embedding, bias, scales, start, first)
        own = columns >= first
        new_top = jnp.maximum(top, logits.max(-1))
        decay = jnp.exp(top - new_top)
        weights = jnp.exp(logits - new_top[..., None])
        finite = jnp.where(own, logits, 0.0)
        hit = (columns == targets[..., None]) & own
        carry = (
            new_top,
            total * decay + weights.sum(-1),
            weighted * decay + (weights * finite).sum(-1),
            squared * jnp.square(decay) + jnp.square(weights).sum(-1),
            plain + finite.sum(-1),
            chosen + jnp.where(hit, logits, 0.0).sum(-1),
        )
        return carry, None

    zero = jnp.zeros(targets.shape, jnp.float32)
    carry = (zero + NEGATIVE, zero, zero, zero, zero, zero)
    if static.size(embedding) == embedding.shape[0]:  # one chunk: no loop in the way of fusion
        carry, _ = body(carry, (0, 0))
    else:
        carry, _ = jax.lax.scan(body, carry, _chunks(embedding.shape[0], static.size(embedding)))
    top, total, weighted, squared, plain, chosen = shards.combined(carry)
    normalizer = top + jnp.log(total)
    mean_logit = weighted / total
    values = (
        chosen - normalizer,
        normalizer - mean_logit,
        normalizer,
        plain / shards.vocabulary - normalizer,
        squared / jnp.square(total),
        (chosen >= top).astype(jnp.float32),
    )
    return values, normalizer, mean_logit


def _backward(static, saved: Any, cotangents: Any):
    hidden, embedding, bias, scales, targets, *found = saved
    d_hidden, d_embedding, d_bias = _over_mesh(
        _gradients, static, (hidden, embedding, bias, scales, targets), (*found, *cotangents)
    )
    return d_hidden, d_embedding, d_bias, jnp.zeros_like(scales), None


def _gradients(
    static: _Static, shards: "_Shards", hidden, embedding, bias, scales, targets,
    normalizer, mean_logit, squares, d_logps, d_entropy, d_normalizer, d_mean, d_squares, d_top1,
):  # fmt: skip
    del d_top1
    size, dtype = static.size(embedding), static.product_dtype
    here, vocabulary = embedding.shape[0], shards.vocabulary
    # d(stat)/d(logit_v), with p = softmax: logps: hit - p; entropy: -p (l - mean); normalizer: p;
    # mean_logps: 1/V - p; sum of squares: 2 p (p - sum p^2).
    on_p = d_normalizer - d_logps - d_mean

    def body(carry, bounds):
        d_hidden, d_embedding, d_bias = carry
        start, first = bounds
        weights, logits, columns, slope = _chunk_logits(static, hidden, embedding, bias, scales, start, first)
        own = columns >= first
        p = jnp.exp(logits - normalizer[..., None])
        finite = jnp.where(own, logits, 0.0)
        grad = p * (
            on_p[..., None]
            - d_entropy[..., None] * (finite - mean_logit[..., None])
            + 2.0 * d_squares[..., None] * (p - squares[..., None])
        )
        grad += jnp.where((columns == targets[..., None]) & own, d_logps[..., None], 0.0)
        grad += jnp.where(own, d_mean[..., None] / vocabulary, 0.0)
        grad = grad * slope
        # The barrier keeps XLA's CPU compiler from computing `part` once for each product below, and a
        # product with ones is several times faster there than a sum over leading axes. It transposes the
        # left side of a product over rows: that is the hidden states here, not the far larger `part`.
        part = jax.lax.optimization_barrier(grad * scales[0]).astype(dtype)
        dw = _product("btd,btv->dv", hidden.astype(dtype), part)
        dh = _product("btv,vd->btd", part, weights)
        # Without the barrier XLA writes the transposed product itself, which its CPU backend has not for bfloat16.
        dw = shards.scattered(jax.lax.optimization_barrier(dw).T)
        old = jax.lax.dynamic_slice_in_dim(d_embedding, start, size, 0)
        d_embedding = jax.lax.dynamic_update_slice_in_dim(d_embedding, old + dw, start, 0)
        if static.with_bias:
            db = _product("btv,bt->v", grad, jnp.ones(targets.shape, jnp.float32))
            old = jax.lax.dynamic_slice_in_dim(d_bias, start, size, 0)
            d_bias = jax.lax.dynamic_update_slice_in_dim(d_bias, old + db, start, 0)
        return (d_hidden + dh, d_embedding, d_bias), None

    zeros = (
        jnp.zeros(hidden.shape, jnp.float32),
        jnp.zeros((here, embedding.shape[1] // shards.parts), jnp.float32),
        jnp.zeros(here, jnp.float32),
    )
    if size == here:
        carry, _ = body(zeros, (0, 0))
    else:
        carry, _ = jax.lax.scan(body, zeros, _chunks(here, size))
    d_hidden, d_embedding, d_bias = shards.summed(*carry)
    return d_hidden.astype(hidden.dtype), d_embedding.astype(embedding.dtype), d_bias.astype(bias.dtype)


_statistics.defvjp(_forward, _backward)


class _Shards(NamedTuple):
    """How a call is split over the mesh; the empty ones of one device."""

    vocabulary: int
    rows: tuple[str, ...] = ()  # mesh axes that the rows or their columns are split over
    tokens: str = ""  # the one that the vocabulary is split over
    width: tuple[str, ...] = ()  # likewise the columns of the embedding's gradient
    parts: int = 1  # number of parts of those columns

    def combined(self, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        """Sums over parts of the vocabulary -> sums over all of it."""
        if not self.tokens:
            return carry
        top, total, weighted, squared, plain, chosen = carry
        highest = jax.lax.pmax(top, self.tokens)
        decay = jnp.exp(top - highest)
        sums = (total * decay, weighted * decay, squared * jnp.square(decay), plain, chosen)
        return highest, *jax.lax.psum(sums, self.tokens)

    def scattered(self, d_embedding: jax.Array) -> jax.Array:
        """The gradient [C, D] of what is here -> the columns that lie here, summed over the rows along `width`."""
        for axis in self.width:
            d_embedding = jax.lax.psum_scatter(d_embedding, axis, scatter_dimension=1, tiled=True)
        return d_embedding

    def summed(self, d_hidden: jax.Array, d_embedding: jax.Array, d_bias: jax.Array) -> tuple[jax.Array, ...]:
        """Gradients of what is here -> those of all rows and of the whole vocabulary, each where its array lies."""
        if self.tokens:
            d_hidden = jax.lax.psum(d_hidden, self.tokens)
        if others := tuple(axis for axis in self.rows if axis not in self.width):
            d_embedding = jax.lax.psum(d_embedding, others)
        return d_hidden, d_embedding, jax.lax.psum(d_bias, self.rows) if self.rows else d_bias


def _over_mesh(function: Any, static: _Static, arrays: tuple[jax.Array, ...], per_token: Any = ()) -> Any:
    """`_values` or `_gradients` of the arrays, on each device of the mesh with its rows and its vocabulary."""
    _, embedding, _, _, targets = arrays
    mesh = static.mesh
    if mesh is None:
        return function(static, _Shards(embedding.shape[0]), *arrays, *per_token)

    of_rows = partition_spec(("batch", "length"), targets.shape, mesh)
    rows = tuple(axis for entry in of_rows for axis in entry_axes(entry))
    # Rows that are on every device give every device the whole gradient.
    of_width = partition_spec(("vocab", "embed"), embedding.shape, mesh)[1]
    width = [axis for axis in entry_axes(of_width) if axis in rows]
    parts = math.prod(mesh.shape[axis] for axis in width)
    shards = _Shards(embedding.shape[0], rows, VOCABULARY_AXIS, tuple(width), parts)
    of_tokens = PartitionSpec(VOCABULARY_AXIS)

    def call(hidden, embedding, bias, scales, targets, *per_token):
        targets = targets - jax.lax.axis_index(VOCABULARY_AXIS) * embedding.shape[0]
        return function(static, shards, hidden, embedding, bias, scales, targets, *per_token)

    of_embedding = PartitionSpec(VOCABULARY_AXIS, tuple(width) or None)
    return jax.shard_map(
        call,
        mesh=mesh,
        in_specs=(of_rows, of_tokens, of_tokens, PartitionSpec(), *[of_rows] * (1 + len(per_token))),
        out_specs=of_rows if function is _values else (of_rows, of_embedding, of_tokens),
        check_vma=False,
    )(*arrays, *per_token)
