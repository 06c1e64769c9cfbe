"""Exact mode: a token's log-prob is the same bits in the sampler and in training, however tokens are batched."""

import dataclasses
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import models
from jaxalign.data import packed_alike
from jaxalign.models import LoraConfig, exact
from jaxalign.models.exact import TILE, tiled
from jaxalign.rollout import Sampler, join_rows
from jaxalign.training.core.batch import TokenRows
from jaxalign.training.core.scoring import CausalPolicy

GOLDEN = Path(__file__).parents[1] / "golden" / "models"
FAMILIES = ["llama", "gemma2"]
SIMILAR = [
    "gpt2",
    "gpt_neox",
    "mistral",
    "gemma",
    "gemma3_text",
    "gpt_neox_serial",
    "llama3",
    "llama_linear",
    "llama_yarn",
    "llama_dynamic",
    "phi3",
    "phi3_longrope",
    "olmo2",
    "olmo3",
    "smollm3",
    "glm",
    "glm4",
    "qwen2",
    "qwen3",
    "qwen3_yarn",
]
# Log-probs under bfloat16's own rounding, as an accelerator has it: on a CPU it is else computed in float32.
ROUNDED = {"compute_dtype": "bfloat16", "products": "compute_dtype"}
CASES = [
    *[pytest.param(family, {}, id=family) for family in FAMILIES],
    *[pytest.param(family, ROUNDED, id=f"{family}-bfloat16") for family in FAMILIES[:1]],
    *[pytest.param(family, {}, id=family, marks=pytest.mark.slow) for family in SIMILAR],
    *[pytest.param(f, ROUNDED, id=f"{f}-bfloat16", marks=pytest.mark.slow) for f in FAMILIES[1:] + SIMILAR],
]
LENGTHS, NEW = (3, 15, 20, 9, 1, 12), 12
TEMPERATURE = 0.7


@pytest.fixture(autouse=True, scope="module")
def several_blocks():
    """Blocks that are shorter than these rows, so that a query sees several of them."""
    patch = pytest.MonkeyPatch()
    patch.setattr(exact, "BLOCK", 8)
    yield
    patch.undo()


def exact_model(family, **changes):
    return models.with_config(models.load_pretrained(GOLDEN / family), exact=True, **changes)


def prompts(vocabulary):
    rng = np.random.default_rng(0)
    return [rng.integers(0, vocabulary, n).tolist() for n in LENGTHS]


def sampled(model, asked, *, adapter=None, order=slice(None), **options):
    """Two completions of each prompt, in the prompts' own order, whatever `order` they are sampled in."""
    ids = np.arange(2 * len(asked)).reshape(-1, 2)[order].ravel()
    done = Sampler(model, adapter=adapter, **options).generate(
        asked[order],
        max_new_tokens=NEW,
        key=jax.random.key(1),
        num_samples=2,
        row_ids=ids,
        temperature=TEMPERATURE,
        stop_tokens=(0, 1, 2, 7, 11, 20, 30, 33),
    )
    own = np.argsort(ids)
    fields = {f.name: np.asarray(getattr(done, f.name))[own] for f in dataclasses.fields(done)}
    return type(done)(**fields)


def scores(policy, trained, frozen, rows, indices, *, packing):
    columns = {name: value[indices] for name, value in rows.batch(0, len(rows.lengths)).items()}
    if packing:
        (columns,) = packed_alike([columns])
    score = jax.jit(
        lambda columns: policy.score(trained, frozen, TokenRows.of(columns), temperature=TEMPERATURE)
    )
    return np.asarray(score(columns).logps)


@pytest.mark.long
@pytest.mark.parametrize(("family", "changes"), CASES)
def test_sampler_and_trainer_agree_to_the_bit_however_tokens_are_batched(family, changes):
    model = exact_model(family, **changes)
    asked = prompts(model.config.vocab_size)
    done = sampled(model, asked)
    assert len(set(done.lengths)) > 2
    # Rows come and go, and the cache is compacted and grows.
    again = sampled(model, asked, order=slice(None, None, -1), max_rows=4, block=8)
    np.testing.assert_array_equal(again.mask, done.mask)
    np.testing.assert_array_equal(again.tokens[again.mask], done.tokens[done.mask])
    np.testing.assert_array_equal(again.logps[again.mask], done.logps[done.mask])

    rows = join_rows([p for p in asked for _ in range(2)], done)
    definition, params = models.split(model)
    policy, everything = CausalPolicy(definition), np.arange(len(rows.lengths))
    for indices, packing in ((everything, False), (everything, True), (np.array([5]), False)):
        found = scores(policy, params, None, rows, indices, packing=packing)
        np.testing.assert_array_equal(found, rows.from_completion(done.logps)[indices])


@pytest.mark.long
@pytest.mark.parametrize("changes", [{}, pytest.param(ROUNDED, marks=pytest.mark.slow)])
def test_an_adapter_gives_both_the_same_bits(changes):
    model = exact_model("llama", **changes)
    lora = LoraConfig(enabled=True, rank=4)
    definition, params = models.split(model)
    trained = models.create_adapter(model.config, lora, key=jax.random.key(2))
    trained = jax.tree.map(
        lambda x: x + 0.1 * jax.random.normal(jax.random.key(3), x.shape, x.dtype), trained
    )
    asked = prompts(model.config.vocab_size)
    done = sampled(model, asked, adapter=models.attach(trained, lora))
    assert done.token_lists() != sampled(model, asked).token_lists()
    rows = join_rows([p for p in asked for _ in range(2)], done)
    found = scores(
        CausalPolicy(definition, lora), trained, params, rows, np.arange(len(rows.lengths)), packing=True
    )
    np.testing.assert_array_equal(found, rows.from_completion(done.logps))


@pytest.mark.long
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_the_values_and_gradients_are_the_ordinary_ones_but_for_rounding(family):
    model = exact_model(family)
    tokens = jax.random.randint(jax.random.key(0), (3, 40), 0, model.config.vocab_size)
    lengths = jnp.asarray([40, 17, 33])
    rows = TokenRows.of({"tokens": tokens, "lengths": lengths, "mask": jnp.arange(40) < lengths[:, None]})
    weights = jax.random.normal(jax.random.key(1), tokens.shape)

    def loss(params, exact):
        definition = models.Definition(replace(model.config, exact=exact))
        scores = CausalPolicy(definition).score(params, None, rows)
        return (weights * scores.logps).sum() + scores.entropy.sum(), scores

    graded = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1)
    (_, found), gradient = graded(model.params, True)
    (_, expected), expected_gradient = graded(model.params, False)
    np.testing.assert_allclose(found.logps, expected.logps, atol=2e-5)
    np.testing.assert_allclose(found.hidden[rows.mask], expected.hidden[rows.mask], atol=2e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-3), gradient, expected_gradient
    )


def test_a_tile_sees_no_token_of_another_tile_and_none_is_lost():
    seen = []

    def function(x, y):
        seen.append((x.shape, y["a"].shape))
        return {"sum": x + y["a"]}

    count = 2 * TILE + 3
    x, y = jnp.arange(count, dtype=jnp.float32), {"a": 10.0 * jnp.arange(count, dtype=jnp.float32)}
    np.testing.assert_array_equal(tiled(function, x, y)["sum"], 11.0 * np.arange(count))
    assert set(seen) == {((TILE,), (TILE,))}


@pytest.mark.long
def test_positions_that_do_not_count_from_a_segments_start_are_those_of_the_ordinary_pass():
    model = models.load_pretrained(GOLDEN / "llama")
    tokens = jax.random.randint(jax.random.key(0), (2, 20), 0, model.config.vocab_size)
    rows = {
        "segment_ids": jnp.asarray([[1] * 9 + [2] * 11, [1] * 17 + [0] * 3]),
        "positions": jnp.arange(20)[None, :] + jnp.asarray([[2], [5]]),
    }
    found, expected = (models.with_config(model, exact=e).hidden(tokens, **rows) for e in (True, False))
    real = rows["segment_ids"] > 0
    np.testing.assert_allclose(found[real], expected[real], atol=2e-5)


def test_what_cannot_be_exact_is_refused():
    model = exact_model("llama")
    for options in ({"weights": "int8"}, {"cache": "int8"}):
        with pytest.raises(ValueError, match="8 bits round"):
            Sampler(model, **options)
    with pytest.raises(ValueError, match="decodes with one adapter"):
        model.decode({}, jnp.zeros(2, jnp.int32), None, members=2)
