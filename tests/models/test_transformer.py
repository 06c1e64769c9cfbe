"""The decoder's own identities: padding, packing, the cache, the adapter, remat, gradients."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxalign import models
from jaxalign.models import kv_cache, transformer
from jaxalign.models.attention import BLOCK
from jaxalign.models.lora import LoraConfig
from jaxalign.target import compiling_for
from tests.fake_devices import H100

GOLDEN = Path(__file__).parents[1] / "golden" / "models"
ALL = [
    "llama",
    "mistral",
    "gemma",
    "gemma2",
    "gemma3_text",
    "gpt2",
    "gpt_neox",
    "qwen3",
    "olmo2",
    "olmo3",
    "smollm3",
    "glm4",
    "mixtral",
    "qwen3_moe",
    "gpt_oss",
]
# What these have is in the others, and their logits are held to transformers' in any case.
SIMILAR = ("mistral", "gemma", "qwen3", "olmo3", "glm4", "mixtral", "qwen3_moe")
# Whose decoding alone is another program than that of the others.
DECODED = ("olmo2", "smollm3", "gpt_oss")


def families(*, decoded: bool = False) -> list:
    """All, of which those that add nothing are slow."""
    slow = SIMILAR if decoded else (*SIMILAR, *DECODED)
    return [pytest.param(name, marks=pytest.mark.slow) if name in slow else name for name in ALL]


def rows(seed: int, *shape: int) -> jax.Array:
    return jax.random.randint(jax.random.key(seed), shape, 0, 48)


# One program instead of one for each operation.
@nnx.jit
def forward(model, tokens, **inputs):
    return model(tokens, **inputs)


@pytest.mark.parametrize("family", families())
def test_longer_padding_changes_nothing(family):
    model = models.load_pretrained(GOLDEN / family)
    tokens, lengths = rows(0, 2, 12), jnp.asarray([12, 7])
    short = forward(model, tokens, lengths=lengths)
    longer = forward(model, jnp.pad(tokens, ((0, 0), (0, 5)), constant_values=3), lengths=lengths)
    np.testing.assert_allclose(longer[0, :12], short[0], atol=1e-5)
    np.testing.assert_allclose(longer[1, :7], short[1, :7], atol=1e-5)
    assert np.isfinite(longer).all()


@pytest.mark.long
@pytest.mark.parametrize("family", families())
def test_packed_rows_equal_separate_rows(family):
    model = models.load_pretrained(GOLDEN / family)
    first, second = rows(1, 1, 9), rows(2, 1, 6)
    packed = jnp.concatenate([first, second, jnp.zeros((1, 3), int)], axis=1)
    segments = jnp.asarray([[1] * 9 + [2] * 6 + [0] * 3])
    logits = forward(model, packed, segment_ids=segments)
    np.testing.assert_allclose(logits[:, :9], forward(model, first), atol=1e-5)
    np.testing.assert_allclose(logits[:, 9:15], forward(model, second), atol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("family", families(decoded=True))
def test_cached_decoding_equals_the_whole_row(family):
    model = models.load_pretrained(GOLDEN / family)
    tokens, lengths = rows(3, 2, 14), jnp.asarray([8, 5])
    hidden, cache = jax.jit(partial(model.prefill, cache_length=11))(tokens[:, :8], lengths)
    weights = model.decode_weights()
    following = rows(4, 2, 6)
    decode, head = jax.jit(model.decode), jax.jit(model.logits)
    whole = np.zeros((2, 14), np.int32)
    for row, length in enumerate((8, 5)):
        whole[row, : length + 6] = np.concatenate([tokens[row, :length], following[row]])
    expected = forward(model, whole, lengths=lengths + 6)
    for step in range(6):
        for row in range(2):
            np.testing.assert_allclose(head(hidden)[row], expected[row, lengths[row] + step - 1], atol=1e-4)
        if step == 3:
            cache = kv_cache.grow(cache, 16)
        hidden, cache = decode(weights, following[:, step], cache)


def test_rows_of_a_cache_can_be_reordered():
    model = models.load_pretrained(GOLDEN / "llama")
    tokens, lengths = rows(3, 2, 8), jnp.asarray([8, 5])
    _, cache = jax.jit(partial(model.prefill, cache_length=10))(tokens, lengths)
    weights, decode = model.decode_weights(), jax.jit(model.decode)
    plain, _ = decode(weights, jnp.asarray([4, 9]), cache)
    swapped, _ = decode(weights, jnp.asarray([9, 4]), kv_cache.take_rows(cache, jnp.asarray([1, 0])))
    np.testing.assert_allclose(swapped, plain[::-1], atol=1e-6)


def test_attention_in_blocks_equals_one_block(monkeypatch):
    model = models.load_pretrained(GOLDEN / "gemma2")
    tokens, lengths = rows(5, 2, 33), jnp.asarray([33, 20])
    whole = jax.jit(lambda t: model(t, lengths=lengths))(tokens)
    assert BLOCK > 33
    monkeypatch.setattr("jaxalign.models.attention.BLOCK", 8)
    blocks = jax.jit(lambda t: model(t, lengths=lengths))(tokens)
    np.testing.assert_allclose(blocks[0], whole[0], atol=1e-5)
    np.testing.assert_allclose(blocks[1, :20], whole[1, :20], atol=1e-5)


def test_segments_and_lengths_together_are_refused():
    model = models.load_pretrained(GOLDEN / "gpt2")
    with pytest.raises(ValueError, match="not both"):
        model(rows(0, 1, 4), segment_ids=jnp.ones((1, 4), int), lengths=jnp.asarray([4]))


def test_remat_changes_neither_loss_nor_gradient():
    model = models.load_pretrained(GOLDEN / "llama")
    tokens = rows(6, 2, 9)

    def loss(model):
        definition, params = models.split(model)
        return jax.jit(jax.value_and_grad(lambda p: models.merge(definition, p)(tokens).std()))(params)

    plain, again = loss(model), loss(models.with_remat(model))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), plain, again)


@pytest.mark.long
def test_a_fresh_adapter_changes_nothing_and_merged_equals_beside():
    model = models.load_pretrained(GOLDEN / "llama")
    settings = LoraConfig(enabled=True, rank=3, targets=("all",))
    adapter = models.create_adapter(model.config, settings, key=jax.random.key(0))
    assert set(adapter) == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    tokens = rows(7, 2, 9)
    plain = forward(model, tokens)
    np.testing.assert_allclose(
        forward(model, tokens, adapter=models.attach(adapter, settings)), plain, atol=1e-6
    )
    adapter = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(1), x.shape), adapter)
    attached = models.attach(adapter, settings)
    beside = forward(model, tokens, adapter=attached)
    assert np.abs(beside - plain).max() > 0.1
    np.testing.assert_allclose(forward(models.merge_adapter(model, attached), tokens), beside, atol=1e-4)


@pytest.mark.long
def test_adapter_dropout_needs_a_key_and_differs_by_layer_and_key():
    model = models.load_pretrained(GOLDEN / "llama")
    settings = LoraConfig(enabled=True, rank=2, dropout=0.5, targets=("q_proj", "v_proj"))
    adapter = models.create_adapter(model.config, settings, key=jax.random.key(0))
    adapter = models.attach(jax.tree.map(lambda x: x + 0.3, adapter), settings)
    tokens = rows(7, 1, 6)
    hidden = jax.jit(lambda key: model.hidden(tokens, adapter=adapter, dropout_key=key))
    off = hidden(None)
    one, two = (hidden(jax.random.key(k)) for k in (1, 2))
    assert np.abs(one - two).max() > 1e-4
    assert np.abs(one - off).max() > 1e-4
    np.testing.assert_array_equal(one, hidden(jax.random.key(1)))


def test_scores_do_not_depend_on_padding_and_sit_at_the_last_token():
    base = models.load_pretrained(GOLDEN / "llama")
    scalar = models.create_scalar_model(base, key=jax.random.key(0))
    tokens, lengths = rows(8, 2, 9), jnp.asarray([9, 5])
    scores = forward(scalar, tokens, lengths=lengths)
    padded = jnp.pad(tokens, ((0, 0), (0, 4)))
    np.testing.assert_allclose(scores, forward(scalar, padded, lengths=lengths), atol=1e-5)
    alone = forward(scalar, tokens[1:, :5], lengths=jnp.asarray([5]))
    np.testing.assert_allclose(scores[1], alone[0], atol=1e-5)
    per_token = jax.jit(lambda t: scalar.per_token(t, lengths=lengths))(tokens)
    np.testing.assert_allclose(scores[1], per_token[1, 4], atol=1e-6)


def test_a_tokenizer_larger_than_the_model_is_refused():
    class Tokenizer:
        def __len__(self):
            return 60

        def get_vocab(self):
            return {"a": 59}

    with pytest.raises(models.huggingface.ModelError, match="60 tokens, but the model's vocabulary has 48"):
        models.check_vocabulary(models.load_config(GOLDEN / "llama"), Tokenizer())


def test_on_one_gpu_the_layers_that_are_trained_are_written_out_and_no_others():
    model = models.load_pretrained(GOLDEN / "llama")
    wide = replace(model.config, num_layers=20)
    assert transformer.written_out(model.config, "none", trained=False)
    assert not transformer.written_out(wide, "none", trained=True)
    with compiling_for(H100):
        assert all(
            transformer.written_out(wide, level, trained=True) for level in ("none", "minimal", "full")
        )
        assert not transformer.written_out(wide, "none", trained=False)
        assert not transformer.written_out(wide, "offload", trained=True)
    gpus = SimpleNamespace(devices=np.asarray([H100] * 2), size=2)
    assert not transformer.written_out(replace(wide, mesh=gpus), "none", trained=True)
