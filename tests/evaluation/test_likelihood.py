"""Log-likelihoods of continuations against the plain forward pass, row by row."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import models
from jaxalign.evaluation.likelihood import Continuation, ContinuationScorer
from jaxalign.llmdoctor.guided import Doctor, guide
from jaxalign.models import ModelConfig

CONFIG = ModelConfig(
    family="llama",
    vocab_size=60,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    max_positions=64,
    tied_head=False,
    bos_id=1,
    eos_ids=(2,),
    pad_id=0,
)


@pytest.fixture(scope="module")
def model():
    return models.create(CONFIG, key=jax.random.key(0))


@functools.partial(jax.jit, static_argnames="definition")
def log_probs(definition, params, row):
    return jax.nn.log_softmax(models.merge(definition, params)(row[None])[0], axis=-1)


def row_logps(model, tokens):
    """[T, V] of one row, which is padded to one width: a causal model does not see what comes later."""
    row = jnp.asarray([*tokens, *[0] * (48 - len(tokens))])
    return np.asarray(log_probs(*models.split(model), row), np.float64)[: len(tokens)]


def plain(model, one):
    """The log-prob by one forward pass of one row."""
    row = (*one.context, *one.tokens)
    logps = row_logps(model, row)
    return sum(logps[t, row[t + 1]] for t in range(len(one.context) - 1, len(row) - 1))


def continuations(seed, contexts, each, *, longest=9, context=20):
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(contexts):
        before = tuple(rng.integers(3, 60, rng.integers(10, context)).tolist())
        for _ in range(each):
            tokens = rng.integers(3, 60, rng.integers(1, longest))
            found.append(Continuation(before, tuple(tokens.tolist())))
    return found


def greedy_continuation(model, context, length):
    tokens = []
    for _ in range(length):
        tokens.append(int(row_logps(model, [*context, *tokens])[-1].argmax()))
    return Continuation(context, tuple(tokens))


@pytest.mark.parametrize("each", [1, 5])
def test_continuations_have_the_log_prob_of_a_plain_forward_pass_whether_they_share_a_context_or_not(
    model, each
):
    asked = continuations(each, 7, each)
    found = ContinuationScorer(model, batch_size=8).score(asked)
    for i, one in enumerate(asked):
        assert found.logps[i] == pytest.approx(plain(model, one), abs=1e-4)


def test_one_token_after_a_shared_context_is_scored_without_decoding(model):
    context = tuple(range(3, 20))
    asked = [Continuation(context, (token,)) for token in range(3, 40)]
    found = ContinuationScorer(model, batch_size=64).score(asked)
    assert found.logps == pytest.approx([plain(model, one) for one in asked], abs=1e-4)
    assert found.greedy.sum() <= 1


@pytest.mark.parametrize("others", [0, 3])
def test_a_continuation_is_greedy_where_each_of_its_tokens_is_the_likeliest(model, others):
    context = tuple(range(5, 20))
    right = greedy_continuation(model, context, 4)
    wrong = [
        Continuation(context, (*right.tokens[:3], (right.tokens[3] + 1 + i) % 60)) for i in range(others)
    ]
    found = ContinuationScorer(model).score([right, *wrong])
    assert found.greedy.tolist() == [True] + [False] * others


@pytest.mark.parametrize("each", [1, 4])
def test_results_do_not_depend_on_order_and_batches(model, each):
    asked = continuations(3, 6, each)
    order = np.random.default_rng(0).permutation(len(asked))
    one = ContinuationScorer(model, batch_size=3).score(asked).logps
    other = ContinuationScorer(model, batch_size=32).score([asked[i] for i in order]).logps
    assert other == pytest.approx(one[order], abs=1e-5)


@pytest.mark.parametrize("each", [1, 2])
def test_of_a_context_that_is_too_long_the_end_is_read(model, each):
    rng = np.random.default_rng(1)
    context = tuple(rng.integers(3, 60, 40).tolist())
    asked = [Continuation(context, tuple(rng.integers(3, 60, 5).tolist())) for _ in range(each)]
    found = ContinuationScorer(model, context=16).score(asked)
    # 16 tokens are read: the last of the five is predicted only.
    short = [Continuation(context[-12:], one.tokens) for one in asked]
    assert found.logps == pytest.approx([plain(model, one) for one in short], abs=1e-4)


def test_a_continuation_that_does_not_fit_or_is_empty_is_an_error(model):
    scorer = ContinuationScorer(model, context=8)
    with pytest.raises(ValueError, match="of 9 tokens; the model reads 8 at once"):
        scorer.score([Continuation((3,), tuple(range(3, 12)))])
    for context, tokens in (((), (3,)), ((3,), ())):
        with pytest.raises(ValueError, match="at least one token"):
            scorer.score([Continuation(context, tokens)])


def test_each_batch_is_told_when_it_is_there(model):
    asked = continuations(4, 5, 3) + continuations(5, 4, 1)
    told = {}
    found = ContinuationScorer(model, batch_size=4).score(
        asked, lambda places, part: told.update(zip(places, part.logps, strict=True))
    )
    assert [told[i] for i in range(len(asked))] == found.logps.tolist()


@pytest.mark.parametrize("each", [1, 4])
def test_a_patient_with_a_doctor_is_scored_by_its_guided_distribution(model, each):
    guided = guide(model, [Doctor(models.create(CONFIG, key=jax.random.key(1)))], alpha=1.0, betas=[0.7])
    asked = continuations(6, 3, each)
    found = ContinuationScorer(guided).score(asked)
    assert found.logps == pytest.approx([plain(guided, one) for one in asked], abs=1e-4)
    assert abs(found.logps - ContinuationScorer(model).score(asked).logps).max() > 1e-2
