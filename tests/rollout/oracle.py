"""Generation as one loop over a cache of full length, all rows together: slow, plain, and what blocks must equal."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.rollout.sampling import kept_tokens


def one_loop(
    model,
    prompts,
    *,
    key,
    new_tokens,
    temperature=1.0,
    top_k=0,
    top_p=1.0,
    min_p=0.0,
    stops=(),
    copies=1,
    row_ids=None,
    adapter=None,
):
    """(token lists, log-probs, sampling log-probs, finish reasons), one a completion."""
    prompts = [p for p in prompts for _ in range(copies)]
    ids = jnp.arange(len(prompts)) if row_ids is None else jnp.asarray(row_ids)
    width = max(len(p) for p in prompts)
    tokens = jnp.asarray([list(p) + [0] * (width - len(p)) for p in prompts])
    lengths = jnp.asarray([len(p) for p in prompts])
    settings = [jnp.broadcast_to(jnp.asarray(x), (len(prompts),)) for x in (temperature, top_k, top_p, min_p)]

    def program(params_model, tokens, lengths, ids):
        hidden, cache = params_model.prefill(
            tokens, lengths, cache_length=width + new_tokens, adapter=adapter
        )
        weights = params_model.decode_weights(adapter)

        def step(carry, position):
            hidden, cache = carry
            new = drawn(params_model.logits(hidden), uniforms(key, ids, position), *settings)
            hidden, cache = params_model.decode(weights, new[0], cache)
            return (hidden, cache), new

        _, drawn_all = jax.lax.scan(step, (hidden, cache), jnp.arange(new_tokens))
        return [x.T for x in drawn_all]

    out = [np.asarray(x) for x in jax.jit(lambda *a: program(model, *a))(tokens, lengths, ids)]
    ends = []
    for row in out[0]:
        hits = np.flatnonzero(np.isin(row, stops))
        ends.append((hits[0] + 1, "stop") if len(hits) else (new_tokens, "length"))
    cut = [[row[:end] for row, (end, _) in zip(x, ends, strict=True)] for x in out]
    return [row.tolist() for row in cut[0]], cut[1], cut[2], [reason for _, reason in ends]


def uniforms(key, ids, position):
    """One number a row: of (key, row id, position) alone."""
    keys = [jax.random.fold_in(jax.random.fold_in(key, i), position) for i in ids]
    return jnp.stack([jax.random.uniform(k) for k in keys])


def drawn(logits, uniforms, temperature, top_k, top_p, min_p):
    """(token, log-prob, log-prob under the distribution sampled from): softmax, argmax and a running sum."""
    greedy = temperature == 0
    scaled = logits / jnp.where(greedy, 1.0, temperature)[:, None]
    logps = jax.nn.log_softmax(scaled)
    kept = jnp.where(kept_tokens(scaled, top_k, top_p, min_p), jnp.exp(logps), 0.0)
    sums = jnp.cumsum(kept, axis=-1)
    passed = (sums <= uniforms[:, None] * sums[:, -1:]).sum(-1)
    token = jnp.where(greedy, jnp.argmax(logits, axis=-1), passed)
    chosen = jnp.take_along_axis(logps, token[:, None], axis=1)[:, 0]
    return token, chosen, jnp.where(greedy, 0.0, chosen - jnp.log(sums[:, -1]))
