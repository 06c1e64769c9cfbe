"""The distance of a sampler from a model: none from itself, that of the distributions from a rounded copy."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import models
from jaxalign.evaluation.sampler_gap import sampler_gap
from jaxalign.rollout import Sampler, join_rows

GOLDEN = Path(__file__).parents[1] / "golden" / "models"
PROMPTS = [[i, i + 1, i + 2] for i in range(12)]
ARGUMENTS = {"max_new_tokens": 8, "key": jax.random.key(0), "num_samples": 8}


@pytest.fixture(scope="module")
def model():
    return models.load_pretrained(GOLDEN / "llama")


def test_a_model_is_no_distance_from_itself(model):
    gap = sampler_gap(Sampler(model), model, PROMPTS[:3], max_new_tokens=4, key=jax.random.key(0))
    assert gap.largest < 1e-4
    assert abs(gap.kl) < 1e-9
    assert 3 <= gap.tokens <= 12


@pytest.mark.long
def test_the_kl_of_a_rounded_model_is_that_of_the_distributions(model):
    sampler = Sampler(model, weights="int8")
    gap = sampler_gap(sampler, model, PROMPTS, **ARGUMENTS)
    done = sampler.generate(PROMPTS, **ARGUMENTS)
    rows = join_rows([p for p in PROMPTS for _ in range(8)], done)
    tokens, lengths = jnp.asarray(rows.tokens), jnp.asarray(rows.lengths)
    small, plain = (
        np.asarray(jax.nn.log_softmax(jax.jit(lambda t, n, m=m: m(t, lengths=n))(tokens, lengths)))
        for m in (models.quantize(model), model)
    )
    exact = (np.exp(small) * (small - plain)).sum(-1)[:, :-1][rows.mask[:, 1:]]
    assert gap.tokens == exact.size
    assert gap.kl == pytest.approx(exact.mean(), rel=0.3)
    assert 0 < gap.mean < gap.largest
