"""The log-ratio of sampled completions, against log-softmax in float64."""

import jax
import numpy as np
import pytest

from jaxalign import models
from jaxalign.mesh import MeshConfig, make_mesh
from jaxalign.models.lora import LoraConfig
from jaxalign.rollout.trajectory import Rows
from jaxalign.training.core import setup
from jaxalign.training.core.reference_kl import make_row_kl

SHAPE = models.ModelConfig(
    vocab_size=64, hidden_size=16, intermediate_size=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4,
    max_positions=32,
)  # fmt: skip


def rows(count=5):
    """Prompts of 2 and 3 tokens with completions of 1 to 5."""
    rng = np.random.default_rng(0)
    prompts = np.array([2, 3, 2, 3, 2])[:count]
    lengths = (prompts + [1, 5, 3, 2, 4][:count]).astype(np.int32)
    columns = np.arange(16)
    mask = (columns >= prompts[:, None]) & (columns < lengths[:, None])
    return Rows(rng.integers(0, 64, (count, 16)).astype(np.int32), lengths, mask, prompts.astype(np.int32))


def by_hand(model, row, temperature):
    """[N]: log-probs of completions, from the logits of each row alone."""
    found = []
    for tokens, length, mask in zip(row.tokens, row.lengths, row.mask, strict=True):
        logits = np.asarray(model(tokens[None, :length])[0], np.float64) / temperature
        logps = logits - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
        logps -= logits.max(-1, keepdims=True)
        found.append(sum(logps[t - 1, tokens[t]] for t in np.flatnonzero(mask)))
    return np.array(found)


@pytest.mark.parametrize(("temperature", "size", "count"), [(1.0, 8, 1), (0.7, 2, 1), (1.0, 3, 8)])
def test_it_is_the_difference_of_summed_log_probs_at_the_temperature(temperature, size, count, devices):
    mesh = make_mesh(MeshConfig(data=count), devices[:count])
    plain = [models.create(SHAPE, key=jax.random.key(seed)) for seed in (0, 1)]
    policy, reference = (setup.place_model(model, mesh) for model in plain)
    scorer, trained, frozen = setup.policy_of(policy, LoraConfig(), mesh, key=jax.random.key(2))
    row_kl = make_row_kl(
        scorer, frozen, models.split(reference), mesh, temperature=temperature, batch_size=size
    )
    expected = by_hand(plain[0], rows(), temperature) - by_hand(plain[1], rows(), temperature)
    assert np.abs(expected).min() > 1e-3
    np.testing.assert_allclose(row_kl(trained, rows()), expected, rtol=1e-4, atol=1e-5)
    start = make_row_kl(scorer, frozen, models.split(policy), mesh, temperature=temperature, batch_size=size)
    np.testing.assert_allclose(start(trained, rows()), np.zeros(5), atol=1e-6)
