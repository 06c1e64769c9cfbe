"""How rows are scored: the head in chunks, or at once where its logits are small."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from jaxalign import models
from jaxalign.target import compiling_for
from jaxalign.training.core import scoring
from jaxalign.training.core.batch import TokenRows
from tests.training.cases import shape

TOKENS = jnp.arange(24, dtype=jnp.int32).reshape(2, 12) % 7
ROWS = TokenRows(
    tokens=TOKENS, lengths=jnp.array([12, 9]), mask=jnp.arange(12)[None, :] < jnp.array([[12], [9]])
)


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
    scoring.score_tokens(model, ROWS)
    definition, params = models.split(model)
    scoring.CausalPolicy(definition).score(params, {}, ROWS)
    # What has no gradient, a reference's scores, is in chunks always.
    assert seen == [None, expected and config.vocab_size]


@pytest.mark.long
@pytest.mark.parametrize("tied", [False, True])
def test_on_a_cpu_the_gradient_of_the_head_is_not_rounded_to_bfloat16(tied):
    config = replace(shape(), compute_dtype="bfloat16", products="bfloat16_float32", tied_head=tied)
    model = models.create(config, key=jax.random.key(0))
    definition, params = models.split(model)

    def loss(head):
        part = {"embed": {"tokens": head}} if tied else {"head": {"weight": head}}
        own = {name: {**params[name], **values} for name, values in part.items()}
        return -scoring.score_tokens(models.merge(definition, {**params, **own}), ROWS).logps.sum()

    gradient = jax.grad(loss)(params["embed"]["tokens"] if tied else params["head"]["weight"])
    rounded = gradient.astype(jnp.bfloat16).astype(jnp.float32)
    # A row that no token of the batch embeds has the head's alone.
    unseen = jnp.setdiff1d(jnp.arange(config.vocab_size), TOKENS)
    assert jnp.abs(gradient - rounded)[unseen].max() > 0


def test_a_gpu_keeps_logits_of_a_share_of_its_memory():
    assert scoring.whole_logits_limit() == scoring.WHOLE_LOGITS
    for limit, expected in ((160 << 30, 10 << 30), (1 << 30, 512 << 20), (None, 512 << 20)):
        stats = None if limit is None else {"bytes_limit": limit}
        device = SimpleNamespace(platform="gpu", memory_stats=lambda stats=stats: stats)
        with compiling_for(device):
            assert scoring.whole_logits_limit() == expected
