"""Tokens drawn from a patient and several doctors lie where the settings say, however the compiler fuses the sum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import llmdoctor, models
from jaxalign.rollout.sampling import SamplerFeatures, next_token

ROWS, WEIGHTS = 2048, (0.5, 0.3, 0.2, 0.15, 0.35)
# Temperature, top_k, top_p, min_p.
CUTS = ((1.0, 1, 1.0, 0.0), (0.7, 0, 0.5, 0.0), (0.7, 5, 1.0, 0.0), (1.0, 0, 1.0, 0.2), (1.3, 40, 0.9, 0.05))
# As users' programs are compiled: the tests leave such passes out, and with them the fusions that compute a sum twice.
OPTIMIZED = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}
SHAPE = models.ModelConfig(
    vocab_size=512, hidden_size=16, intermediate_size=32, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8,
    max_positions=16, bos_id=1, eos_ids=(2,), pad_id=0,
)  # fmt: skip


@pytest.fixture(scope="module")
def guided():
    """`guided(number of doctors, form, vocabulary)`: adapters on one model that steer it, the last by a map."""
    base = models.create(SHAPE, key=jax.random.key(0))
    base = models.merge(models.split(base)[0], jax.tree.map(lambda x: 4 * x, base.params))
    lora = models.LoraConfig(enabled=True, rank=2)

    def doctor(seed, vocabulary=None):
        leaves = models.create_adapter(SHAPE, lora, key=jax.random.key(seed))
        leaves = jax.tree.map(lambda x: x + 0.2 * jax.random.normal(jax.random.key(seed), x.shape), leaves)
        return llmdoctor.Doctor(base, adapter=models.attach(leaves, lora), vocabulary=vocabulary)

    def made(number, form, vocabulary):
        doctors = [*map(doctor, range(1, number)), doctor(number, vocabulary)]
        return llmdoctor.guide(base, doctors, betas=WEIGHTS[:number], guidance=form)

    return made


def kept(scaled, k, p, least):
    """bool [N, V] in float64: what is left of the logits, with a little room at each threshold for rounding."""
    order = np.argsort(-scaled, axis=1)
    ranked = np.take_along_axis(scaled, order, axis=1)
    probabilities = np.exp(ranked - ranked[:, :1])
    threshold = np.full(len(scaled), -np.inf)
    if k:
        threshold = ranked[:, k - 1]
        probabilities[:, k:] = 0
    probabilities /= probabilities.sum(1, keepdims=True)
    if p < 1:
        last = np.minimum((np.cumsum(probabilities, axis=1) < p + 1e-5).sum(1), scaled.shape[1] - 1)
        threshold = np.maximum(threshold, np.take_along_axis(ranked, last[:, None], axis=1)[:, 0])
    if least:
        threshold = np.maximum(threshold, ranked[:, 0] + np.log(least))
    return scaled >= threshold[:, None] - 1e-4


# A third of the tokens are none of the doctor's.
PART = np.where(np.arange(512) % 3 == 1, -1, np.random.default_rng(0).permutation(512))
SLOW = [(1, None), (2, None), (4, None), (5, None), (1, PART)]


@pytest.mark.long
@pytest.mark.parametrize("form", ["product", "ratio"])
@pytest.mark.parametrize(
    ("number", "vocabulary"),
    [(3, None), (3, PART), *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)],
)
def test_every_drawn_token_is_one_that_the_cuts_leave(guided, number, vocabulary, form):
    definition, params = models.split(guided(number, form, vocabulary))
    rng = np.random.default_rng(number)
    tokens = jnp.asarray(rng.integers(3, 512, (ROWS, 3)), jnp.int32)
    uniforms = jnp.asarray(rng.random(ROWS), jnp.float32)

    def logits_of(params):
        model = models.merge(definition, params)
        hidden, _ = model.prefill(tokens, jnp.full(ROWS, 3, jnp.int32), cache_length=3)
        return model.logits(hidden)

    def draws(params, *settings):
        return next_token(logits_of(params), uniforms, *settings, features=SamplerFeatures())

    program = jax.jit(draws, compiler_options=OPTIMIZED)
    logits = np.asarray(jax.jit(logits_of)(params), np.float64)
    for temperature, k, p, least in (*CUTS, (0.0, 0, 1.0, 0.0)):
        settings = jnp.full(ROWS, temperature), jnp.full(ROWS, k), jnp.full(ROWS, p), jnp.full(ROWS, least)
        drawn, logps, sampling_logps = map(np.asarray, program(params, *settings))
        assert np.isfinite(sampling_logps).all()
        assert (sampling_logps >= logps).all() and (sampling_logps <= 1e-5).all()
        inside = kept(logits / temperature, k, p, least) if temperature else kept(logits, 1, 1.0, 0.0)
        assert np.take_along_axis(inside, drawn[:, None].astype(np.int64), axis=1).all(), (
            temperature,
            k,
            p,
            least,
        )
