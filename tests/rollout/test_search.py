"""Best of n keeps the highest score; ARGS chooses by log-prob and reward as a plain recomputation does."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import models
from jaxalign.errors import UserError
from jaxalign.models.heads import StepConfig
from jaxalign.rollout import Sampler
from jaxalign.rollout.search import args_generate, best_of_n, reward_guided, states_after

GOLDEN = Path(__file__).parents[1] / "golden" / "models"
PROMPTS = [[5, 6, 7], [9] * 11, [4, 3, 2, 1, 8]]
KEY = jax.random.key(0)
NEW = 6


@pytest.fixture(scope="module")
def base():
    return models.load_pretrained(GOLDEN / "llama")


@pytest.fixture(scope="module")
def sampler(base):
    return Sampler(base)


@pytest.fixture(scope="module")
def reward():
    """Of another shape than the base: 4 layers, capped scores, every second layer sees 5 tokens; gain and bias."""
    model = models.create_scalar_model(
        models.load_pretrained(GOLDEN / "gemma2"), models.HeadConfig(kind="mlp"), key=jax.random.key(3)
    )
    definition, params = models.split(model)
    return models.merge(definition, models.with_normalizer(params, gain=2.5, bias=-0.7))


@pytest.fixture(scope="module")
def plainly(base, reward):
    """Greedy ARGS by whole forwards: prompt -> (tokens, log-softmax of the candidates' scores at each)."""
    width = 20
    logits_of = jax.jit(lambda tokens, n: base(tokens, lengths=n)[0])
    reward_of = jax.jit(lambda tokens, n: reward(tokens, lengths=n))

    def run(prompt, *, weight, top_k):
        row, logps = list(prompt), []
        for _ in range(NEW):
            padded = np.asarray([row + [0] * (width - len(row))])
            own = np.asarray(jax.nn.log_softmax(logits_of(padded, np.asarray([len(row)]))[len(row) - 1]))
            # All are judged, so that one program serves every top_k.
            texts = np.repeat(padded, 48, axis=0)
            texts[:, len(row)] = np.arange(48)
            scores = own + weight * np.asarray(reward_of(texts, np.full(48, len(row) + 1)))
            candidates = np.argsort(-own, kind="stable")[:top_k]
            best = candidates[scores[candidates].argmax()]
            logps.append(scores[best] - np.log(np.exp(scores[candidates]).sum()))
            row.append(int(best))
        return row[len(prompt) :], np.asarray(logps)

    return run


@pytest.mark.long
@pytest.mark.parametrize(("weight", "top_k"), [pytest.param(1.0, 5, marks=pytest.mark.slow), (3.0, 48)])
def test_args_chooses_the_tokens_of_a_plain_recomputation(base, reward, sampler, plainly, weight, top_k):
    done = args_generate(
        base, reward, PROMPTS, weight=weight, top_k=top_k, max_new_tokens=NEW, key=KEY, stop_tokens=()
    )
    plain = sampler.generate(PROMPTS, max_new_tokens=NEW, key=KEY, temperature=0.0, stop_tokens=())
    assert done.token_lists() != plain.token_lists()
    for row, prompt in enumerate(PROMPTS):
        tokens, logps = plainly(prompt, weight=weight, top_k=top_k)
        assert done.token_lists()[row] == tokens
        np.testing.assert_allclose(done.logps[row], logps, atol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("temperature", [0.0, pytest.param(0.8, marks=pytest.mark.slow)])
def test_args_without_weight_is_the_base_model(base, reward, sampler, temperature):
    arguments = {"max_new_tokens": NEW, "key": KEY, "temperature": temperature, "stop_tokens": (7, 11)}
    # All tokens are candidates, so that the distributions agree and not the best token alone.
    done = args_generate(base, reward, PROMPTS, weight=0.0, top_k=48, **arguments)
    plain = sampler.generate(PROMPTS, **arguments)
    assert done.token_lists() == plain.token_lists()
    assert done.finish_reason == plain.finish_reason
    np.testing.assert_allclose(done.logps * done.mask, plain.logps * plain.mask, atol=1e-5)


@pytest.mark.long
def test_args_draws_among_its_candidates_alone(base, reward):
    # So hot that all candidates are as good as equal: of 40 samples each of 3 comes, and nothing else.
    done = args_generate(
        base,
        reward,
        [PROMPTS[0]],
        weight=1.0,
        top_k=3,
        max_new_tokens=1,
        key=KEY,
        temperature=1e4,
        num_samples=40,
    )
    best = np.argsort(-np.asarray(base(jnp.asarray([PROMPTS[0]]))[0, -1]))[:3]
    assert set(done.tokens[:, 0].tolist()) == set(best.tolist())
    np.testing.assert_allclose(done.logps, np.log(1 / 3), atol=1e-2)


@pytest.mark.long
def test_a_stop_token_ends_a_row_of_args_and_no_other(base, reward):
    arguments = {"weight": 3.0, "top_k": 5, "max_new_tokens": NEW, "key": KEY}
    free = args_generate(base, reward, PROMPTS, stop_tokens=(), **arguments).token_lists()
    row, place = next((r, i) for r in range(3) for i in range(1, 4) if free[r][i] not in free[r][:i])
    stop = free[row][place]
    done = args_generate(base, reward, PROMPTS, stop_tokens=(stop,), **arguments)
    cut = [tokens[: tokens.index(stop) + 1] if stop in tokens else tokens for tokens in free]
    assert done.token_lists() == cut
    assert done.finish_reason == ["stop" if stop in tokens else "length" for tokens in free]
    assert done.finish_reason[row] == "stop"
    assert len(cut[row]) == place + 1 < NEW


@pytest.mark.long
def test_args_of_another_weight_needs_no_other_program(base, reward, compiled):
    arguments = {"top_k": 5, "max_new_tokens": NEW, "key": KEY, "stop_tokens": ()}
    first = args_generate(base, reward, PROMPTS, weight=0.5, **arguments)
    compiled.clear()
    second = args_generate(base, reward, PROMPTS, weight=4.0, **arguments)
    assert not compiled
    assert first.token_lists() != second.token_lists()


@pytest.mark.parametrize(
    "name", ["gemma2", *(pytest.param(n, marks=pytest.mark.slow) for n in ("gpt2", "qwen3"))]
)
def test_states_after_candidates_are_those_of_decoding_each(name):
    model = models.load_pretrained(GOLDEN / name)
    tokens, lengths = jnp.asarray([[5, 6, 7, 0, 0, 0, 0, 0], [9, 8, 1, 2, 3, 4, 5, 6]]), jnp.asarray([3, 8])
    candidates = jnp.asarray([[1, 2, 30], [17, 2, 40]])

    @jax.jit
    def both(model):
        weights = model.decode_weights()
        _, cache = model.prefill(tokens, lengths, cache_length=12)
        _, cache = model.decode(weights, jnp.asarray([11, 12]), cache)
        alone = [model.decode(weights, column, cache)[0] for column in candidates.T]
        return states_after(model, weights, candidates, cache), jnp.stack(alone, axis=1)

    found, alone = both(model)
    np.testing.assert_allclose(found, alone, atol=1e-5)


def test_args_refuses_models_and_numbers_that_do_not_fit(base, reward):
    arguments = {"max_new_tokens": 2, "key": KEY}
    with pytest.raises(ValueError, match=r"top_k must lie in \[1, 48\]"):
        args_generate(base, reward, PROMPTS, weight=1.0, top_k=49, **arguments)
    with pytest.raises(ValueError, match="weight"):
        args_generate(base, reward, PROMPTS, weight=-1.0, top_k=4, **arguments)
    small = models.with_config(reward, vocab_size=47)
    with pytest.raises(UserError, match="47 tokens, the model's 48"):
        args_generate(base, small, PROMPTS, weight=1.0, top_k=4, **arguments)
    definition, params = models.split(reward)
    steps = models.merge(replace(definition, steps=StepConfig()), params)
    with pytest.raises(UserError, match="steps of a completion"):
        args_generate(base, steps, PROMPTS, weight=1.0, top_k=4, **arguments)
    short = models.with_config(reward, max_positions=12)
    with pytest.raises(UserError, match=r"prompt 1 has 11 tokens.* context of 12"):
        args_generate(base, short, PROMPTS, weight=1.0, top_k=4, **arguments)


def test_best_of_n_keeps_the_highest_score_of_each_prompt(sampler):
    arguments = {"max_new_tokens": NEW, "key": KEY, "stop_tokens": (7, 11)}
    every = sampler.generate(PROMPTS, num_samples=4, **arguments)
    scores = np.asarray([0.0, 3.0, 1.0, 2.0, 5.0, 5.0, 4.0, 5.0, -3.0, -2.0, -4.0, -1.0])
    asked = []

    def score(prompts, completions):
        asked.append((prompts, completions))
        return scores

    kept = best_of_n(sampler, PROMPTS, score, n=4, **arguments)
    assert asked == [([prompt for prompt in PROMPTS for _ in range(4)], every.token_lists())]
    # Of the second prompt's three best the first.
    rows = [1, 4, 11]
    assert kept.token_lists() == [every.token_lists()[row] for row in rows]
    assert kept.finish_reason == [every.finish_reason[row] for row in rows]
    for name in ("tokens", "mask", "lengths", "logps", "sampling_logps"):
        np.testing.assert_array_equal(getattr(kept, name), getattr(every, name)[rows])


def test_best_of_n_refuses_scores_that_do_not_fit(sampler):
    arguments = {"max_new_tokens": 2, "key": KEY}
    with pytest.raises(UserError, match=r"6 completions got scores of shape \(3,\)"):
        best_of_n(sampler, PROMPTS, lambda p, c: [1.0] * 3, n=2, **arguments)
    with pytest.raises(UserError, match="score of completion 1 is nan"):
        best_of_n(sampler, PROMPTS, lambda p, c: [0.0, float("nan"), *[1.0] * 4], n=2, **arguments)
    with pytest.raises(ValueError, match="num_samples must be 1 or more"):
        best_of_n(sampler, PROMPTS, lambda p, c: [], n=0, **arguments)
    with pytest.raises(TypeError, match="takes n in place of num_samples"):
        best_of_n(sampler, PROMPTS, lambda p, c: [], n=2, num_samples=3, **arguments)


def test_reward_guided_search_ends_where_its_base_model_is_told_to(base, reward):
    search = reward_guided(base, reward, weight=1.0, top_k=4)
    assert models.with_stops(search, [7]).config.eos_ids == (*base.config.eos_ids, 7)
    assert models.with_stops(search, base.config.eos_ids) is search
