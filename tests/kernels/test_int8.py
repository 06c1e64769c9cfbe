"""8-bit weights and caches: rounding within its bound, and every reader of a tree reads the rounded numbers."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxalign import models
from jaxalign.kernels.int8 import Int8, quantized
from jaxalign.mesh import MeshConfig, make_mesh, tree_shardings
from jaxalign.models import kv_cache
from jaxalign.models.attention import attend_cached
from jaxalign.models.lora import LoraConfig

GOLDEN = Path(__file__).parents[1] / "golden" / "models"
# Tied and untied heads; biases; norms of either kind; windows and soft caps.
FAMILIES = ["llama", "gpt2", pytest.param("gemma2", marks=pytest.mark.slow)]


def rounded(params):
    """The same tree with plain arrays in place of integers and scales."""
    return jax.tree.map(
        lambda x: x.astype(jnp.float32) if isinstance(x, Int8) else x,
        params,
        is_leaf=lambda x: isinstance(x, Int8),
    )


def pair(family):
    """A model of 8-bit weights, and the plain model of the numbers that those stand for."""
    model = models.quantize(models.load_pretrained(GOLDEN / family))
    definition, params = models.split(model)
    return model, models.merge(definition, rounded(params))


@nnx.jit
def forward(model, tokens, **inputs):
    return model(tokens, **inputs)


def tokens_of(seed, *shape):
    return jax.random.randint(jax.random.key(seed), shape, 0, 48)


def test_hand_worked_numbers():
    x = quantized(jnp.asarray([[127.0, -1.4, 0.0], [-2.54, 0.02, 0.0]]), axis=1)
    np.testing.assert_array_equal(x.values, [[127, -1, 0], [-127, 1, 0]])
    np.testing.assert_allclose(x.scales, [[1.0], [0.02]], rtol=1e-6)
    np.testing.assert_allclose(x.astype(jnp.float32), [[127, -1, 0], [-2.54, 0.02, 0]], rtol=1e-6)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_rounding_is_off_by_at_most_half_a_scale_and_zeros_stay(axis):
    x = jax.random.normal(jax.random.key(0), (3, 5, 7)).at[1].set(0.0)
    done = quantized(x, axis=axis)
    assert done.values.dtype == jnp.int8
    assert done.scales.shape[axis] == 1
    error = np.abs(done.astype(jnp.float32) - x)
    assert (error <= 0.5001 * np.asarray(done.scales)).all()
    assert error.max() > 0
    assert not np.asarray(done.astype(jnp.float32))[1].any()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_quantized_model_is_the_plain_model_of_its_rounded_numbers(family):
    model, plain = pair(family)
    tokens, lengths = tokens_of(0, 2, 9), jnp.asarray([9, 6])
    logits = forward(model, tokens, lengths=lengths)
    np.testing.assert_allclose(logits, forward(plain, tokens, lengths=lengths), atol=2e-5)
    exact = forward(models.load_pretrained(GOLDEN / family), tokens, lengths=lengths)
    assert 1e-4 < np.abs(logits - exact).mean() < 0.05 * np.std(exact)
    np.testing.assert_allclose(model.head, plain.head, atol=1e-7)


@pytest.mark.long
@pytest.mark.parametrize("family", FAMILIES)
def test_decoding_with_quantized_weights_equals_the_whole_row(family):
    model, plain = pair(family)
    tokens, following, lengths = tokens_of(1, 2, 8), tokens_of(2, 2, 3), jnp.asarray([8, 5])
    hidden, cache = jax.jit(partial(model.prefill, cache_length=11))(tokens, lengths)
    weights = model.decode_weights()
    assert weights["layers"][0]["q_proj"].values.dtype == jnp.int8
    whole = np.zeros((2, 11), np.int32)
    for row, length in enumerate((8, 5)):
        whole[row, : length + 3] = np.concatenate([tokens[row, :length], following[row]])
    expected = forward(plain, whole, lengths=lengths + 3)
    decode = jax.jit(lambda w, t, c: model.decode(w, t, c))
    for step in range(3):
        hidden, cache = decode(weights, following[:, step], cache)
        for row in range(2):
            np.testing.assert_allclose(
                model.logits(hidden)[row], expected[row, lengths[row] + step], atol=1e-4
            )


def test_quantizing_again_changes_nothing_and_memory_is_about_a_quarter():
    model = models.create(
        models.load_pretrained(GOLDEN / "llama").config, key=jax.random.key(0), param_dtype=jnp.float32
    )
    once = models.quantize_params(model.params)
    again = models.quantize_params(once)
    jax.tree.map(np.testing.assert_array_equal, again, once)
    plain, less = (sum(x.nbytes for x in jax.tree.leaves(t["layers"])) for t in (model.params, once))
    assert less < 0.4 * plain


def test_a_scalar_model_keeps_its_head():
    config = models.load_pretrained(GOLDEN / "llama").config
    trunk = models.create(config, key=jax.random.key(1))
    scalar = models.create_scalar_model(trunk, models.HeadConfig(), key=jax.random.key(0))
    small = models.quantize(scalar)
    jax.tree.map(np.testing.assert_array_equal, small.params["head"], scalar.params["head"])
    assert isinstance(small.params["trunk"]["layers"]["q_proj"], Int8)
    definition, params = models.split(small)
    tokens = tokens_of(3, 2, 6)
    run = jax.jit(lambda p: models.merge(definition, p)(tokens, lengths=jnp.asarray([6, 4])))
    np.testing.assert_allclose(run(params), run(rounded(params)), atol=1e-5)


@pytest.mark.long
def test_an_adapter_learns_on_a_quantized_base_as_on_its_rounded_numbers():
    model, plain = pair("llama")
    lora = LoraConfig(enabled=True, rank=2, targets=("all",))
    adapter = models.create_adapter(model.config, lora, key=jax.random.key(0))
    adapter = jax.tree.map(lambda x: x + 0.05, adapter)
    tokens = tokens_of(4, 2, 6)

    def gradient(base):
        definition, params = models.split(base)

        def loss(adapter):
            logits = models.merge(definition, params)(tokens, adapter=models.attach(adapter, lora))
            return jax.nn.log_softmax(logits)[..., 3].mean()

        return jax.jit(jax.grad(loss))(adapter)

    ours, theirs = gradient(model), gradient(plain)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), ours, theirs)
    assert max(np.abs(x).max() for x in jax.tree.leaves(ours)) > 1e-4
    merged = models.merge_adapter(model, models.attach(adapter, lora))
    np.testing.assert_allclose(
        forward(merged, tokens), forward(plain, tokens, adapter=models.attach(adapter, lora)), atol=1e-4
    )


def test_a_decode_loop_does_not_keep_floats_of_all_layers():
    """Temporary memory does not grow with the layers, whose integers are converted one after another."""

    def temporaries(layers):
        config = models.ModelConfig(
            vocab_size=64,
            hidden_size=64,
            intermediate_size=512,
            num_layers=layers,
            num_heads=2,
            num_kv_heads=1,
            head_dim=32,
            max_positions=16,
        )
        params = jax.eval_shape(lambda k: models.create(config, key=k).params, jax.random.key(0))
        params = jax.eval_shape(models.quantize_params, params)
        definition = models.Definition(config)
        weights = jax.eval_shape(lambda p: models.merge(definition, p).decode_weights(), params)
        columns = jnp.zeros((2, 1, 32, 8)), jnp.zeros((2, 1, 8, 32))
        cache = kv_cache.KVCache(
            (columns[0],) * layers, (columns[1],) * layers, jnp.zeros(2, jnp.int32), jnp.asarray(0)
        )

        def loop(weights, cache):
            model = models.merge(definition, weights)

            def step(_, carry):
                hidden, cache = model.decode(weights, *carry)
                return model.logits(hidden).argmax(-1), cache

            return jax.lax.fori_loop(0, 4, step, (jnp.zeros(2, jnp.int32), cache))

        return jax.jit(loop).lower(weights, cache).compile().memory_analysis().temp_size_in_bytes

    floats_of_a_layer = 4 * 64 * 512 * 3
    assert temporaries(3) - temporaries(1) < 0.2 * floats_of_a_layer


def test_a_quantized_model_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match="8-bit weights cannot be saved"):
        models.save_pretrained(pair("llama")[0], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_integers_and_scales_lie_on_a_mesh_as_the_weights_would():
    params = pair("llama")[0].params
    mesh = make_mesh(MeshConfig(data=4, tensor=2), jax.devices()[:8])
    shardings = tree_shardings(params, models.param_logical_axes(params), mesh)
    up = shardings["layers"]["up_proj"]
    assert up.values.spec[-1] is not None
    assert up.scales.spec[-1] == up.values.spec[-1]
    down = shardings["layers"]["down_proj"]
    assert down.values.spec[1] is not None
    # One scale an output serves all shards of the inputs.
    assert tuple(down.scales.spec)[1] is None


@pytest.mark.parametrize("parts", ["keys", "values", "both"])
def test_attention_over_an_8_bit_cache_is_that_over_its_rounded_numbers(parts):
    config = models.load_pretrained(GOLDEN / "gemma2").config
    rows, heads, columns, size = 2, config.num_kv_heads, 6, config.head_dim
    draw = iter(jax.random.split(jax.random.key(0), 3))
    q = jax.random.normal(next(draw), (rows, config.num_heads, size))
    k = jax.random.normal(next(draw), (rows, heads, size, columns))
    v = jax.random.normal(next(draw), (rows, heads, columns, size)) * jnp.arange(1.0, columns + 1)[:, None]
    seen = kv_cache.KVCache((k,) * 2, (v,) * 2, jnp.zeros(rows, jnp.int32), jnp.asarray(4)).seen(0)
    keys = quantized(k, axis=2) if parts != "values" else k
    values = quantized(v, axis=3) if parts != "keys" else v
    ours = attend_cached(q, keys, values, seen, config)
    plain = [x.astype(jnp.float32) for x in (keys, values)]
    np.testing.assert_allclose(ours, attend_cached(q, *plain, seen, config), atol=1e-5)
    assert np.abs(ours - attend_cached(q, k, v, seen, config)).max() > 1e-4


def test_columns_of_an_8_bit_cache_are_written_and_moved_with_their_scales():
    k = jax.random.normal(jax.random.key(0), (2, 1, 3, 2, 4)) * jnp.arange(1.0, 4)[:, None, None]
    cache = kv_cache.from_prompt(k, 2 * k, jnp.asarray([3]), 5, int8=True)
    new = jnp.full((1, 2, 4, 1), 50.0)
    keys = kv_cache.written(cache.keys[0], new, cache.column, axis=3)
    values = kv_cache.written(cache.values[0], new.swapaxes(2, 3), cache.column, axis=2)
    cache = kv_cache.moved(
        kv_cache.KVCache((keys,), (values,), cache.starts, cache.column), jnp.asarray(1), 5
    )
    numbers = cache.keys[0].astype(jnp.float32)
    np.testing.assert_allclose(numbers[..., 4], 50.0)
    np.testing.assert_allclose(cache.values[0].astype(jnp.float32)[:, :, 4], 50.0)
    np.testing.assert_allclose(numbers[..., 1:4], k[0].transpose(0, 2, 3, 1), atol=0.05)
    put = kv_cache.put_rows(kv_cache.take_rows(cache, jnp.asarray([0, 0])), cache, jnp.asarray([-1, 0]))
    np.testing.assert_array_equal(put.keys[0].values[1], cache.keys[0].values[0])
