"""Chunked log-probs equal the dense form, values and gradients, without [B, T, V]."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from jaxalign.logprobs import linear_logprobs, token_logprobs
from jaxalign.mesh import MeshConfig, make_mesh, partition_spec

B, T, D, V = 2, 5, 8, 37
KEYS = jax.random.split(jax.random.key(0), 6)
HIDDEN = jax.random.normal(KEYS[0], (B, T, D))
EMBEDDING = jax.random.normal(KEYS[1], (V, D))
BIAS = jax.random.normal(KEYS[2], (V,))
TARGETS = jax.random.randint(KEYS[3], (B, T), 0, V)
MASK = jnp.asarray([[1, 1, 0, 1, 1], [1, 0, 1, 1, 0]], bool)
WEIGHTS = jax.random.normal(KEYS[4], (5, B, T))
FIELDS = ("logps", "entropy", "logsumexp", "mean_logps", "sum_squared_probs")
OPTIONS = {"temperature": 0.7, "softcap": 3.0, "logit_scale": 1.3}


def dense(hidden, embedding, bias, *, temperature=1.0, softcap=None, logit_scale=1.0):
    logits = logit_scale * hidden @ embedding.T + bias
    logits = softcap * jnp.tanh(logits / softcap) if softcap else logits
    logits = logits / temperature
    logps = jax.nn.log_softmax(logits)
    p = jnp.exp(logps)
    return {
        "logps": jnp.take_along_axis(logps, TARGETS[..., None], -1)[..., 0],
        "entropy": -(p * logps).sum(-1),
        "logsumexp": jax.nn.logsumexp(logits, -1),
        "mean_logps": logps.mean(-1),
        "sum_squared_probs": (p * p).sum(-1),
        "is_top1": (jnp.argmax(logits, -1) == TARGETS).astype(jnp.float32),
    }


@pytest.mark.parametrize("chunk_size", [4096, 37, 8, 5, 1])
@pytest.mark.parametrize("options", [{}, OPTIONS], ids=["plain", "all options"])
def test_values_equal_the_dense_form(chunk_size, options):
    ours = linear_logprobs(HIDDEN, EMBEDDING, TARGETS, MASK, chunk_size=chunk_size, bias=BIAS, **options)
    for name, value in dense(HIDDEN, EMBEDDING, BIAS, **options).items():
        np.testing.assert_allclose(getattr(ours, name), jnp.where(MASK, value, 0), atol=2e-5, err_msg=name)


@pytest.mark.parametrize("chunk_size", [4096, 8, 5])
@pytest.mark.parametrize("field", FIELDS)
def test_gradients_equal_the_dense_form(chunk_size, field):
    weight = jnp.where(MASK, WEIGHTS[FIELDS.index(field)], 0)

    def ours(hidden, embedding, bias):
        stats = linear_logprobs(hidden, embedding, TARGETS, MASK, chunk_size=chunk_size, bias=bias, **OPTIONS)
        return (weight * getattr(stats, field)).sum()

    def plain(hidden, embedding, bias):
        return (weight * dense(hidden, embedding, bias, **OPTIONS)[field]).sum()

    arguments = (HIDDEN, EMBEDDING, BIAS)
    for a, b in zip(
        jax.grad(ours, (0, 1, 2))(*arguments), jax.grad(plain, (0, 1, 2))(*arguments), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=1e-5)
        assert np.abs(b).max() > 1e-3


def test_nan_in_a_masked_slot_changes_neither_value_nor_gradient():
    def loss(hidden, embedding):
        return linear_logprobs(hidden, embedding, TARGETS, MASK, chunk_size=8).logps.sum()

    spoiled = jnp.where(MASK[..., None], HIDDEN, jnp.nan)
    clean = jax.value_and_grad(loss, (0, 1))(HIDDEN, EMBEDDING)
    dirty = jax.value_and_grad(loss, (0, 1))(spoiled, EMBEDDING)
    np.testing.assert_array_equal(clean[0], dirty[0])
    np.testing.assert_array_equal(clean[1][1], dirty[1][1])
    np.testing.assert_array_equal(dirty[1][0][~MASK], 0)


def test_no_array_of_rows_by_vocabulary_is_made():
    def loss(hidden, embedding):
        stats = linear_logprobs(hidden, embedding, TARGETS, chunk_size=4)
        return (stats.logps + stats.entropy).sum()

    def sizes(jaxpr):
        for equation in jaxpr.eqns:
            yield from (int(np.prod(v.aval.shape)) for v in equation.outvars)
            for value in equation.params.values():
                inner = getattr(value, "jaxpr", value)
                if hasattr(inner, "eqns"):
                    yield from sizes(inner)

    found = list(sizes(jax.make_jaxpr(jax.grad(loss, (0, 1)))(HIDDEN, EMBEDDING).jaxpr))
    assert max(found) < B * T * V


def test_jit_and_vmap_equal_the_plain_call():
    def logps(hidden, targets):
        return linear_logprobs(hidden[None], EMBEDDING, targets[None], chunk_size=8).logps[0]

    plain = linear_logprobs(HIDDEN, EMBEDDING, TARGETS, chunk_size=8).logps
    np.testing.assert_allclose(jax.jit(jax.vmap(logps))(HIDDEN, TARGETS), plain, atol=1e-6)


def test_bfloat16_inputs_accumulate_in_float32():
    low = linear_logprobs(HIDDEN.astype(jnp.bfloat16), EMBEDDING.astype(jnp.bfloat16), TARGETS, chunk_size=8)
    assert low.logps.dtype == jnp.float32
    rounded = dense(
        HIDDEN.astype(jnp.bfloat16).astype(jnp.float32),
        EMBEDDING.astype(jnp.bfloat16).astype(jnp.float32),
        0.0,
    )
    np.testing.assert_allclose(low.logps, rounded["logps"], atol=1e-4)


@pytest.mark.parametrize("chunk", [8, EMBEDDING.shape[0]])
def test_bfloat16_gradients_come_back_in_their_dtypes_and_near_the_float32_ones(chunk):
    def loss(hidden, embedding):
        return linear_logprobs(hidden, embedding, TARGETS, chunk_size=chunk).logps.sum()

    gradient = jax.jit(jax.grad(loss, (0, 1)))
    low, full = gradient(HIDDEN.astype(jnp.bfloat16), EMBEDDING), gradient(HIDDEN, EMBEDDING)
    assert [g.dtype for g in low] == [jnp.bfloat16, jnp.float32]
    for ours, theirs in zip(low, full, strict=True):
        np.testing.assert_allclose(ours.astype(jnp.float32), theirs, atol=0.03 * float(jnp.abs(theirs).max()))


def test_token_logprobs_by_hand_with_temperature():
    # logits (0, log 3) at temperature 1/2 are (0, 2 log 3): p = (1/10, 9/10).
    logits = jnp.log(jnp.asarray([[[1.0, 3.0]]]))
    np.testing.assert_allclose(
        token_logprobs(logits, jnp.asarray([[1]]), temperature=0.5), np.log([[0.9]]), rtol=1e-6
    )


def test_wrong_shapes_and_numbers_are_named():
    with pytest.raises(AssertionError, match="hidden_rows"):
        linear_logprobs(HIDDEN, EMBEDDING, TARGETS[:, :4])
    with pytest.raises(AssertionError, match="width"):
        linear_logprobs(HIDDEN, EMBEDDING[:, :3], TARGETS)
    with pytest.raises(ValueError, match="temperature"):
        linear_logprobs(HIDDEN, EMBEDDING, TARGETS, temperature=0.0)


def test_the_gradient_of_a_head_takes_no_second_copy_of_it():
    """[V, D] is summed in place, chunk by chunk: temporaries are chunks."""
    hidden, head = jnp.ones((1, 8, 64)), jnp.ones((8192, 64))
    targets = jnp.zeros((1, 8), jnp.int32)

    def loss(hidden, head):
        return linear_logprobs(hidden, head, targets, chunk_size=256).logps.sum()

    program = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(hidden, head).compile()
    assert program.memory_analysis().temp_size_in_bytes < head.nbytes / 2


@pytest.mark.parametrize("rows", [4, 3])
@pytest.mark.parametrize("axes", [{"fsdp": 2, "tensor": 4}, {"data": 2, "fsdp": 2, "tensor": 2}], ids=str)
def test_a_vocabulary_that_is_split_over_devices_gives_the_values_and_gradients_of_one(axes, rows, devices):
    """Rows that do not divide lie on all devices."""
    mesh, keys = make_mesh(MeshConfig(**axes), devices), jax.random.split(jax.random.key(7), 5)
    hidden, head = jax.random.normal(keys[0], (rows, T, D)), jax.random.normal(keys[1], (40, D))
    bias, targets = jax.random.normal(keys[2], (40,)), jax.random.randint(keys[3], (rows, T), 0, 40)
    mask, weights = (
        jnp.arange(T) < jnp.asarray([[5], [2], [4], [1]][:rows]),
        jax.random.normal(keys[4], (5, rows, T)),
    )

    def run(mesh, hidden, head, bias):
        def loss(*arrays):
            hidden, head, bias = arrays
            options = OPTIONS | {"chunk_size": 3, "bias": bias, "mesh": mesh}
            stats = linear_logprobs(hidden, head, targets, mask, **options)
            return sum(
                (w * getattr(stats, name)).sum() for w, name in zip(weights, FIELDS, strict=True)
            ), stats

        return jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(hidden, head, bias)

    places = [("batch", None, None), ("vocab", "embed"), ("vocab",)]
    arrays = (hidden, head, bias)
    placed = [
        jax.device_put(x, NamedSharding(mesh, partition_spec(names, x.shape, mesh)))
        for x, names in zip(arrays, places, strict=True)
    ]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5),
        run(mesh, *placed),
        run(None, *arrays),
    )
