"""The divergence of teacher and student is that of their softmaxes, however tokens are split."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from jaxalign import models
from jaxalign.training.distill import divergence
from jaxalign.training.distill.config import DistillLossConfig
from jaxalign.training.distill.divergence import token_divergences
from tests.training.cases import rows, shape

VOCABULARY = 60
CONFIGS = {
    "jsd": DistillLossConfig(beta=0.3, temperature=0.7),
    "forward_kl": DistillLossConfig(name="forward_kl"),
    "reverse_kl": DistillLossConfig(name="reverse_kl", temperature=2.0),
}


@pytest.fixture(scope="module")
def case():
    """Student, teacher (wider, with a padded vocabulary and a softcap), hidden states of both, targets and mask."""
    wide = models.ModelConfig(
        vocab_size=72, hidden_size=24, intermediate_size=32, num_layers=1, num_heads=4, num_kv_heads=2, head_dim=4,
        max_positions=32, final_softcap=3.0,
    )  # fmt: skip
    student, teacher = (
        models.create(config, key=jax.random.key(seed)) for seed, config in enumerate((shape(), wide))
    )
    batch = rows(4)
    tokens = batch["tokens"] % VOCABULARY
    states = [3 * m.hidden(tokens) for m in (student, teacher)]
    return student, teacher, *states, jnp.asarray(tokens), jnp.asarray(batch["mask"])


def by_hand(case, config):
    """float64: loss, KL, nll of both, agreement; 0 where masked."""
    student, teacher, ours, theirs, targets, mask = case
    logits = [
        np.asarray(m.logits(x), np.float64)[..., :VOCABULARY] for m, x in ((student, ours), (teacher, theirs))
    ]
    p, q = (log_softmax(x, -1) for x in logits)
    hot, cold = (log_softmax(x / config.temperature, -1) for x in logits)

    def kl(a, b):
        return (np.exp(a) * (a - b)).sum(-1)

    if config.name == "jsd":
        middle = np.log(config.beta * np.exp(cold) + (1 - config.beta) * np.exp(hot))
        loss = config.beta * kl(cold, middle) + (1 - config.beta) * kl(hot, middle)
    else:
        loss = kl(cold, hot) if config.name == "forward_kl" else kl(hot, cold)
    of_target = [-np.take_along_axis(x, np.asarray(targets)[..., None], -1)[..., 0] for x in (p, q)]
    agreement = (p.argmax(-1) == q.argmax(-1)).astype(float)
    return [np.where(mask, x, 0) for x in (loss, kl(q, p), *of_target, agreement)]


def in_chunks(monkeypatch, columns):
    monkeypatch.setattr(divergence, "whole_logits_limit", lambda: 0)
    monkeypatch.setattr(divergence, "CHUNK_BYTES", columns * 4 * 4 * VOCABULARY)


@pytest.mark.long
@pytest.mark.parametrize("columns", [0, 1, 5], ids=["whole", "column by column", "five columns"])
@pytest.mark.parametrize("name", CONFIGS)
def test_statistics_are_those_of_the_softmaxes(name, columns, case, monkeypatch):
    if columns:
        in_chunks(monkeypatch, columns)
    found = token_divergences(*case, config=CONFIGS[name], vocabulary=VOCABULARY)
    for value, expected in zip(found, by_hand(case, CONFIGS[name]), strict=True):
        np.testing.assert_allclose(value, expected, rtol=2e-5, atol=2e-6)


@pytest.mark.long
@pytest.mark.parametrize("name", CONFIGS)
def test_the_gradient_is_the_same_in_chunks_and_reaches_the_student_alone(name, case, monkeypatch):
    student, teacher, ours, theirs, targets, mask = case
    definitions, leaves = zip(*(models.split(m) for m in (student, teacher)), strict=True)

    def total(params, states):
        both = [models.merge(d, p) for d, p in zip(definitions, params, strict=True)]
        found = token_divergences(*both, *states, targets, mask, config=CONFIGS[name], vocabulary=VOCABULARY)
        return found.loss.sum() + sum(x.sum() for x in found[1:])

    gradient = jax.grad(total, argnums=(0, 1))
    whole = gradient(leaves, (ours, theirs))
    in_chunks(monkeypatch, 5)
    chunked = gradient(leaves, (ours, theirs))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), whole, chunked)
    (student_leaves, teacher_leaves), (student_states, teacher_states) = whole
    assert all(not x.any() for x in jax.tree.leaves((teacher_leaves, teacher_states)))
    assert np.abs(student_states).max() > 1e-3 and np.abs(student_leaves["embed"]["tokens"]).max() > 1e-3
    # By the difference quotient along a direction.
    direction = jax.random.normal(jax.random.key(3), ours.shape)
    step = 1e-2

    def loss(states):
        return float(np.sum(by_hand((student, teacher, states, theirs, targets, mask), CONFIGS[name])[0]))

    slope = (loss(ours + step * direction) - loss(ours - step * direction)) / (2 * step)
    found = jax.grad(
        lambda x: token_divergences(
            student, teacher, x, theirs, targets, mask, config=CONFIGS[name], vocabulary=VOCABULARY
        ).loss.sum()
    )(ours)
    assert float((found * direction).sum()) == pytest.approx(slope, rel=2e-3)
