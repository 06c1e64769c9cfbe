"""Sampling and generation: exact truncation, the cached loop equals the forward, batching changes nothing."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import models
from jaxalign.errors import UserError
from jaxalign.evaluation.policy import make_scorer, token_logps
from jaxalign.rollout import (
    EngineConfig,
    Sampler,
    SamplingArguments,
    SamplingConfig,
    ServerEngine,
    generate,
    join_rows,
)
from jaxalign.rollout.decode import RowSampling, read_prompts
from jaxalign.rollout.sampling import SamplerFeatures, kept_tokens, row_uniforms, sample
from jaxalign.training.core.batch import TokenRows
from jaxalign.training.core.scoring import score_tokens
from tests.models import test_adapted

GOLDEN = Path(__file__).parents[1] / "golden" / "models"
PROMPTS = [[5, 6, 7], [9] * 11, [4, 3, 2, 1, 8]]
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def model():
    return models.load_pretrained(GOLDEN / "llama")


@pytest.fixture(scope="module")
def sampler(model):
    return Sampler(model)


def exact(completions, other):
    assert completions.token_lists() == other.token_lists()
    np.testing.assert_allclose(completions.logps * completions.mask, other.logps * other.mask, atol=2e-5)


def test_greedy_tokens_are_those_of_the_uncached_forward(model, sampler):
    done = sampler.generate(PROMPTS, max_new_tokens=6, key=KEY, temperature=0.0, stop_tokens=())
    forward = jax.jit(lambda tokens, lengths: model(tokens, lengths=lengths))
    for prompt, tokens in zip(PROMPTS, done.token_lists(), strict=True):
        row = list(prompt)
        for token in tokens:
            padded = jnp.asarray([row + [0] * (20 - len(row))])
            logits = forward(padded, jnp.asarray([len(row)]))
            assert int(jnp.argmax(logits[0, len(row) - 1])) == token
            row.append(token)


@pytest.mark.long
def test_log_probs_are_those_that_training_scores(model, sampler):
    done = sampler.generate(PROMPTS, max_new_tokens=6, key=KEY, temperature=0.7, stop_tokens=())
    rows = join_rows(PROMPTS, done)
    arrays = {name: jnp.asarray(getattr(rows, name)) for name in ("tokens", "lengths", "mask")}
    scores = score_tokens(model, TokenRows(**arrays), temperature=0.7)
    np.testing.assert_allclose(rows.to_completion(scores.logps, 6), done.logps, atol=1e-4)
    np.testing.assert_array_equal(done.sampling_logps, done.logps)


@pytest.mark.long
def test_samples_do_not_depend_on_the_batch(model, sampler):
    arguments = {"max_new_tokens": 8, "key": KEY, "top_k": 20, "top_p": 0.9, "stop_tokens": (7, 11)}
    together = sampler.generate(PROMPTS, num_samples=2, **arguments)
    exact(together, Sampler(model, max_rows=2).generate(PROMPTS, num_samples=2, **arguments))
    alone = sampler.generate([PROMPTS[2]], num_samples=2, row_ids=[4, 5], **arguments)
    assert alone.token_lists() == together.token_lists()[4:]
    assert together.token_lists()[0] != together.token_lists()[1]


def test_a_stop_token_is_counted_and_ends_the_row(model):
    greedy = generate(model, [PROMPTS[0]], max_new_tokens=6, key=KEY, temperature=0.0, stop_tokens=())
    tokens = greedy.token_lists()[0]
    stop = tokens[2]
    done = generate(model, [PROMPTS[0]], max_new_tokens=6, key=KEY, temperature=0.0, stop_tokens=(stop,))
    first = tokens.index(stop) + 1
    assert done.token_lists()[0] == tokens[:first]
    assert done.finish_reason == ["stop"]
    assert done.mask.sum() == first
    assert greedy.finish_reason == ["length"]


def test_prompts_are_read_without_logits_of_all_their_tokens(model):
    rows, width, vocabulary = 3, 16, model.config.vocab_size
    definition, params = models.split(model)
    draws = RowSampling(np.arange(6), *(np.ones(6, np.float32) for _ in range(4)))
    program = jax.make_jaxpr(
        lambda p, t, n: read_prompts(
            definition,
            p,
            None,
            t,
            n,
            draws,
            np.asarray([1]),
            KEY,
            copies=2,
            features=SamplerFeatures(),
            int8_cache=False,
        )
    )(params, jnp.zeros((rows, width), jnp.int32), jnp.full(rows, 9))
    # Logits of every row are there, and nothing with a vocabulary beside the tokens of a prompt.
    assert f"f32[{rows},{vocabulary}]" in str(program)
    assert f"{width},{vocabulary}]" not in str(program)


def test_settings_can_differ_by_prompt(sampler):
    mixed = sampler.generate(
        PROMPTS[:2], max_new_tokens=5, key=KEY, temperature=np.asarray([0.0, 1.0]), stop_tokens=()
    )
    greedy = sampler.generate(PROMPTS[:1], max_new_tokens=5, key=KEY, temperature=0.0, stop_tokens=())
    assert mixed.token_lists()[0] == greedy.token_lists()[0]


@pytest.mark.long
def test_8_bit_weights_give_the_samples_of_the_quantized_model(model):
    arguments = {"max_new_tokens": 8, "key": KEY, "stop_tokens": (7, 11)}
    small = Sampler(model, weights="int8")
    done = small.generate(PROMPTS, **arguments)
    exact(done, Sampler(models.quantize(model)).generate(PROMPTS, **arguments))
    # Its log-probs are of what was sampled from, which is near the model and not the model.
    rows = join_rows(PROMPTS, done)
    scored = rows.to_completion(
        token_logps(make_scorer(models.split(model)[0]), models.split(model)[1], rows), 8
    )
    gap = np.abs(scored - done.logps)[done.mask]
    assert 1e-3 < gap.max() < 0.5
    small.update(jax.tree.map(lambda x: -x, model.params))
    assert small.generate(PROMPTS, **arguments).token_lists() != done.token_lists()


def test_an_adapter_is_part_of_8_bit_weights(model):
    lora = models.LoraConfig(enabled=True, rank=2)
    leaves = models.create_adapter(model.config, lora, key=jax.random.key(5))
    adapter = models.attach(jax.tree.map(lambda x: x + 0.3, leaves), lora)
    arguments = {"max_new_tokens": 6, "key": KEY, "stop_tokens": ()}
    merged = Sampler(models.merge_adapter(model, adapter), weights="int8").generate(PROMPTS, **arguments)
    own = Sampler(model, adapter=adapter, weights="int8")
    exact(own.generate(PROMPTS, **arguments), merged)
    assert Sampler(model, weights="int8").generate(PROMPTS, **arguments).token_lists() != merged.token_lists()
    own.update(model.params)
    exact(own.generate(PROMPTS, **arguments), merged)


@pytest.mark.long
def test_an_8_bit_cache_is_near_and_survives_moved_columns(model):
    arguments = {"max_new_tokens": 12, "key": KEY, "stop_tokens": (7, 11)}
    prompts = [*PROMPTS, [1] * 14, [30, 31], [17] * 6]
    done = Sampler(model, cache="int8").generate(prompts, **arguments)
    exact(Sampler(model, cache="int8", block=3, max_rows=2).generate(prompts, **arguments), done)
    rows = join_rows(prompts, done)
    scored = rows.to_completion(
        token_logps(make_scorer(models.split(model)[0]), models.split(model)[1], rows), 12
    )
    gap = np.abs(scored - done.logps)
    # The first token comes from the prompt's own forward, the others from the cache.
    assert gap[:, 0].max() < 1e-4
    assert 1e-3 < gap[done.mask].max() < 0.5


def test_new_parameters_are_used(model):
    own = Sampler(model)
    before = own.generate(PROMPTS, max_new_tokens=5, key=KEY, stop_tokens=())
    own.update(jax.tree.map(lambda x: -x, model.params))
    assert (
        own.generate(PROMPTS, max_new_tokens=5, key=KEY, stop_tokens=()).token_lists() != before.token_lists()
    )
    own.update(model.params)
    exact(own.generate(PROMPTS, max_new_tokens=5, key=KEY, stop_tokens=()), before)


def test_bad_prompts_are_named(sampler):
    with pytest.raises(UserError, match="prompt 1 has no tokens"):
        sampler.generate([[1], []], max_new_tokens=2, key=KEY)
    with pytest.raises(UserError, match="prompt 0 has 3000 tokens"):
        sampler.generate([[1] * 3000], max_new_tokens=2, key=KEY)
    with pytest.raises(UserError, match="vocabulary has 48"):
        sampler.generate([[48]], max_new_tokens=2, key=KEY)
    with pytest.raises(ValueError, match="top_p"):
        sampler.generate([[1]], max_new_tokens=2, key=KEY, top_p=0.0)
    with pytest.raises(ValueError, match="num_samples"):
        SamplingConfig(num_samples=0)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"temprature": 0.5},
            r"unexpected keyword argument 'temprature'; expected max_new_tokens, key, temp",
        ),
        ({"num_samples": 0}, "max_new_tokens and num_samples must be 1 or more, got 2, 0"),
        ({"min_p": 1.0}, r"min_p must lie in \[0, 1\), got 1.0"),
        (
            {"top_k": np.asarray([1, 2])},
            r"top_k has shape \(2,\); expected a number or one per prompt, \(3,\)",
        ),
        ({"row_ids": [0, 1]}, r"row_ids has shape \(2,\); expected one per completion, \(3,\)"),
    ],
)
def test_every_engine_refuses_the_same_arguments(changes, expected, model, sampler):
    server = ServerEngine(
        EngineConfig(kind="vllm", url="http://127.0.0.1:9"), models.split(model)[0], Path("x")
    )
    server._model = "there"
    for engine in (sampler, server):
        with pytest.raises((TypeError, ValueError), match=expected):
            engine.generate(PROMPTS, **({"max_new_tokens": 2, "key": KEY} | changes))


@pytest.mark.parametrize("missing", ["max_new_tokens", "key"])
def test_a_missing_argument_is_named(missing, sampler):
    arguments = {"max_new_tokens": 2, "key": KEY}
    del arguments[missing]
    with pytest.raises(TypeError, match=f"is missing the keyword argument '{missing}'"):
        sampler.generate(PROMPTS, **arguments)


def test_what_a_configuration_holds_is_an_argument_of_generate():
    held = {field.name for field in dataclasses.fields(SamplingConfig)}
    assert SamplingArguments.__annotations__.keys() - held == {"key", "row_ids"}
    assert held <= SamplingArguments.__annotations__.keys()


def test_tokens_are_shown_after_each_block(model):
    shown = []
    done = Sampler(model, block=2).generate(
        PROMPTS,
        max_new_tokens=5,
        key=KEY,
        stop_tokens=(),
        on_tokens=lambda _, counts: shown.append(counts.tolist()),
    )
    assert shown == [[3] * 3, [5] * 3]
    assert done.lengths.tolist() == [5] * 3


def test_completions_end_between_blocks_where_they_are_told_to(model):
    def told(_, counts):
        # The second may go on; the first waited for a slot, and ends as soon as it is seen.
        return np.asarray([counts[0] > 0, False, counts[2] > 3])

    def generated(**options):
        return Sampler(model, block=2, max_rows=2).generate(
            PROMPTS, max_new_tokens=9, key=KEY, stop_tokens=(), **options
        )

    done, free = generated(on_tokens=told), generated()
    assert done.lengths.tolist() == [3, 9, 5]
    assert done.finish_reason == ["stop", "length", "stop"]
    for row in range(3):
        assert done.token_lists()[row] == free.token_lists()[row][: done.lengths[row]]


@pytest.mark.parametrize("seed", range(3))
def test_truncation_equals_a_sort(seed):
    rng = np.random.default_rng(seed)
    logits = jnp.asarray(3 * rng.standard_normal((40, 301)) + 2, jnp.float32)  # of both signs
    logps = np.asarray(jax.nn.log_softmax(logits))
    k = rng.integers(0, 60, 40)
    p = np.where(rng.random(40) < 0.3, 1.0, rng.uniform(0.1, 1, 40)).astype(np.float32)
    least = np.where(rng.random(40) < 0.5, 0.05, 0.0).astype(np.float32)
    kept = np.asarray(kept_tokens(*map(jnp.asarray, (logits, k, p, least))))
    for row in range(40):
        order = np.argsort(-logps[row])[: k[row] or 301]
        mass = np.cumsum(np.exp(logps[row, order].astype(np.float64)))
        if p[row] < 1:
            order = order[: np.searchsorted(mass / mass[-1], p[row]) + 1]
        expected = np.zeros(301, bool)
        expected[order] = True
        expected &= np.exp(logps[row]) >= least[row] * np.exp(logps[row].max())
        np.testing.assert_array_equal(kept[row], expected)


def test_ties_at_a_threshold_are_all_kept():
    logits = jnp.asarray([[2.0, 5.0, 2.0, -1.0, 2.0, 0.0], [2.0, 5.0, 2.0, -1.0, 2.0, 0.0]])
    # Of the first row the two best, of the second what makes up 0.93: 5 alone has 0.87.
    kept = kept_tokens(logits, jnp.asarray([2, 0]), jnp.asarray([1.0, 0.93]), jnp.zeros(2))
    np.testing.assert_array_equal(kept, [[True, True, True, False, True, False]] * 2)


@pytest.mark.parametrize(("name", "loops"), [("top_k", 2), ("top_p", 2), ("min_p", 0)])
def test_what_no_row_asks_for_is_not_computed_and_changes_nothing(name, loops):
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(8, 301)), jnp.float32)
    settings = {"top_k": jnp.zeros(8, jnp.int32), "top_p": jnp.ones(8), "min_p": jnp.zeros(8)}
    settings[name] = {"top_k": jnp.arange(1, 9) * 5, "top_p": jnp.full(8, 0.4), "min_p": jnp.full(8, 0.1)}[
        name
    ]
    only = SamplerFeatures(**{other: other == name for other in settings})
    whole, part = kept_tokens(logits, **settings), kept_tokens(logits, **settings, features=only)
    np.testing.assert_array_equal(part, whole)
    assert 1 < int(whole.sum()) < whole.size
    for features, expected in ((only, loops), (SamplerFeatures(), 4)):
        program = jax.make_jaxpr(lambda x, b=features: kept_tokens(x, **settings, features=b))(logits)
        assert sum("scan" in str(step.primitive) for step in program.eqns) == expected


def test_draws_follow_the_distribution_and_never_a_zero():
    probabilities = np.random.default_rng(0).random(200)
    probabilities[::5] = 0
    probabilities[-30:] = 0
    draws = 20_000
    uniforms = jax.random.uniform(jax.random.key(1), (draws,))
    tokens = np.asarray(
        sample(jnp.broadcast_to(jnp.asarray(probabilities, jnp.float32), (draws, 200)), uniforms)
    )
    counts = np.bincount(tokens, minlength=200)
    expected = draws * probabilities / probabilities.sum()
    assert counts[probabilities == 0].sum() == 0
    there = expected > 0
    chi_square = ((counts - expected)[there] ** 2 / expected[there]).sum()
    assert chi_square < there.sum() + 5 * np.sqrt(2 * there.sum())


@pytest.mark.parametrize("uniform", [0.0, 1.0 - 2**-24, 1.0])
def test_the_ends_of_the_interval_draw_a_possible_token(uniform):
    probabilities = jnp.zeros((1, 300)).at[0, 130].set(0.3).at[0, 131].set(1e-9)
    assert int(sample(probabilities, jnp.asarray([uniform]))[0]) in (130, 131)


def test_a_rows_randomness_depends_on_its_id_and_position_alone():
    first = row_uniforms(KEY, jnp.asarray([3, 8]), jnp.asarray([5, 5]))
    second = row_uniforms(KEY, jnp.asarray([8, 1, 3]), jnp.asarray([5, 5, 5]))
    assert first[0] == second[2]
    assert first[1] == second[0]
    assert first[0] != row_uniforms(KEY, jnp.asarray([3]), jnp.asarray([6]))[0]


def test_rows_and_completion_columns_map_onto_each_other(sampler):
    done = sampler.generate(PROMPTS, max_new_tokens=6, key=KEY, stop_tokens=(7, 11, 20, 21, 22, 23))
    rows = join_rows(PROMPTS, done, multiple=8)
    assert rows.tokens.shape[1] % 8 == 0
    for i, prompt in enumerate(PROMPTS):
        assert rows.tokens[i, : rows.lengths[i]].tolist() == prompt + done.token_lists()[i]
        assert rows.mask[i].sum() == done.lengths[i]
    values = np.where(done.mask, done.logps, 0)
    np.testing.assert_array_equal(rows.to_completion(rows.from_completion(values), 6), values)


@pytest.mark.long
def test_an_adapter_on_quantized_weights_decodes_as_their_floats():
    model = models.quantize(models.create(test_adapted.CONFIG, key=jax.random.key(2)), "nf4")
    merged = models.merge_adapter(model, test_adapted.drawn(model, models.LoraConfig(enabled=True, rank=4)))
    options = {"key": jax.random.key(5), "max_new_tokens": 6, "temperature": 0.0, "stop_tokens": ()}
    prompts = [[1, 2, 3], [4, 5]]
    expected = Sampler(test_adapted.floats(merged)).generate(prompts, **options)
    for weights in ("same", "int8"):
        found = Sampler(merged, weights=weights).generate(prompts, **options)
        assert weights == "int8" or np.array_equal(found.tokens, expected.tokens)
        assert np.abs(found.logps - expected.logps).max() < (1e-4 if weights == "same" else 0.2)
