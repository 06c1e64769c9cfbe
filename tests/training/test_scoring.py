"""How rows are scored: the head in chunks, or at once where its logits are small."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from jaxalign import models
from jaxalign.training import scoring
from tests.training.cases import shape

TOKENS = jnp.arange(24, dtype=jnp.int32).reshape(2, 12) % 7
LENGTHS, MASK = jnp.array([12, 9]), jnp.arange(12)[None, :] < jnp.array([[12], [9]])


@pytest.mark.parametrize(
    ("remat", "limit", "expected"),
    # Logits of 2 x 11 tokens.
    [("none", 0, None), ("none", 1, True), ("minimal", 1, None)],
)
def test_logits_are_computed_at_once_where_they_are_small_and_nothing_is_computed_again(
    remat, limit, expected, monkeypatch
):
    config = replace(shape(), remat=remat)
    model = models.create(config, key=jax.random.key(0))
    monkeypatch.setattr(scoring, "WHOLE_LOGITS", 4 * 22 * config.vocab_size - 1 + limit)
    seen, plain = [], scoring.linear_logprobs
    monkeypatch.setattr(
        scoring, "linear_logprobs", lambda *a, **k: seen.append(k.get("chunk_size")) or plain(*a, **k)
    )
    scoring.score_tokens(model, TOKENS, LENGTHS, MASK)
    definition, params = models.split(model)
    scoring.CausalPolicy(definition).score(params, {}, TOKENS, LENGTHS, MASK)
    # What has no gradient, a reference's scores, is in chunks always.
    assert seen == [None, expected and config.vocab_size]
