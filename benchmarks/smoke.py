"""A guard against getting slower: ratios of two ways to compute the same, within this run. No other library is needed.

usage: python benchmarks/smoke.py: prints a line a ratio; exit status 1 where one is below its bound (under 3 minutes)

A bound says that something broke, not how fast it is: it is low enough for a busy machine to pass.
"""

import dataclasses
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from shapes import dialogue_lengths, shape

from jaxalign import models
from jaxalign.data import packed
from jaxalign.logprobs import linear_logprobs, token_logprobs
from jaxalign.models import attention
from jaxalign.rollout import Sampler
from jaxalign.training.core.scoring import CausalPolicy
from jaxalign.training.sft import DemonstrationBatch, SFTLossConfig, make_sft_loss, sft_counts

REPEATS = 7


def ratio(slow: Callable[[], Any], fast: Callable[[], Any]) -> float:
    """Median over repetitions, in the order A B B A, of the time of one by that of the other."""
    for run in (slow, fast):
        jax.block_until_ready(run())
    times: dict[str, list[float]] = {"slow": [], "fast": []}
    for repeat in range(REPEATS):
        sides = [("slow", slow), ("fast", fast)]
        for name, run in sides if repeat % 2 == 0 else sides[::-1]:
            began = time.perf_counter()
            jax.block_until_ready(run())
            times[name].append(time.perf_counter() - began)
    return statistics.median(a / b for a, b in zip(times["slow"], times["fast"], strict=True))


def head() -> list[tuple[str, float, float]]:
    """The chunked head against all logits at once: time, and bytes of temporaries."""
    keys = jax.random.split(jax.random.key(0), 3)
    hidden = jax.random.normal(keys[0], (4, 128, 128))
    embedding = jax.random.normal(keys[1], (32_000, 128)) * 0.05
    targets = jax.random.randint(keys[2], (4, 128), 0, 32_000)

    def dense(hidden, embedding):
        return token_logprobs(jnp.einsum("btd,vd->btv", hidden, embedding), targets).sum()

    def chunked(hidden, embedding):
        return linear_logprobs(hidden, embedding, targets).logps.sum()

    programs = [jax.jit(jax.grad(f, (0, 1))).lower(hidden, embedding).compile() for f in (dense, chunked)]
    sizes = [getattr(p.memory_analysis(), "temp_size_in_bytes", 0) for p in programs]
    times = ratio(lambda: programs[0](hidden, embedding), lambda: programs[1](hidden, embedding))
    return [
        ("dense head / chunked, time", times, 0.6),
        ("dense head / chunked, memory", sizes[0] / sizes[1], 2.0),
    ]


def decoding() -> list[tuple[str, float, float]]:
    """A forward pass over the whole row for each token, against the cache."""
    model = models.create(shape("S"), key=jax.random.key(0))
    sampler, prompts, new = Sampler(model), [list(range(4, 68))] * 4, 32
    definition, params = models.split(model)
    forward = jax.jit(lambda p, tokens: models.merge(definition, p)(tokens)[:, -1].argmax(-1))
    row = jnp.asarray(np.tile(np.arange(4, 68 + new), (4, 1)), jnp.int32)
    return [
        (
            "whole rows / cache, decoding",
            ratio(
                lambda: [forward(params, row) for _ in range(new)],
                lambda: (
                    sampler.generate(
                        prompts, max_new_tokens=new, key=jax.random.key(1), stop_tokens=()
                    ).tokens
                ),
            ),
            2.0,
        )
    ]


def tiles() -> list[tuple[str, float, float]]:
    """Attention by the compiler's own derivative, against tiles with ours."""
    config = dataclasses.replace(shape("S"))
    shapes = [
        (8, 256, n, config.head_dim) for n in (config.num_heads, config.num_kv_heads, config.num_kv_heads)
    ]
    arrays = [jax.random.normal(jax.random.key(i), s) for i, s in enumerate(shapes)]
    positions = jnp.broadcast_to(jnp.arange(256), (8, 256))
    segments = jnp.ones((8, 256), jnp.int32)

    def gradient(form):
        return jax.jit(
            jax.grad(lambda q, k, v: form(q, k, v, positions, segments, 0, config).sum(), (0, 1, 2))
        )

    plain, ours = gradient(attention.attend_plain), gradient(attention.attend)
    return [("plain attention / in tiles", ratio(lambda: plain(*arrays), lambda: ours(*arrays)), 0.8)]


def rows() -> list[tuple[str, float, float]]:
    """A gradient on 16 rows as long as real dialogues are: padded, against packed."""
    definition, params = models.split(models.create(shape("S"), key=jax.random.key(0)))
    random = np.random.default_rng(0)
    lengths = np.clip(random.choice(dialogue_lengths(), 16), 8, 256)
    columns = np.arange(256)
    batch = {
        "tokens": random.integers(4, 4096, (16, 256)).astype(np.int32),
        "mask": (columns > 0) & (columns < lengths[:, None]),
        "lengths": lengths.astype(np.int32),
        "valid": np.ones(16, bool),
        "weights": np.ones((16, 256), np.float32),
    }
    loss = make_sft_loss(CausalPolicy(definition), SFTLossConfig())
    gradient = jax.jit(jax.grad(lambda p, b: loss(p, {}, b, None, sft_counts(b))[0]))
    padded, whole = DemonstrationBatch.of(batch), DemonstrationBatch.of(packed(batch))
    value = ratio(lambda: gradient(params, padded), lambda: gradient(params, whole))
    return [("padded rows / packed", value, 1.2)]


def length() -> list[tuple[str, float, float]]:
    """Temporaries of a gradient for each token of a row of 2,048, against one of 32,768: no squares."""
    config = dataclasses.replace(shape("S"), num_layers=1, max_positions=32_768)
    definition, params = models.split(models.create(config, key=jax.random.key(0)))
    loss = make_sft_loss(CausalPolicy(definition), SFTLossConfig())

    def bytes_a_token(tokens: int) -> float:
        batch = DemonstrationBatch(
            tokens=jnp.zeros((1, tokens), jnp.int32),
            mask=jnp.ones((1, tokens), bool),
            lengths=jnp.full(1, tokens),
            valid=jnp.ones(1, bool),
            weights=jnp.ones((1, tokens)),
        )
        gradient = jax.jit(jax.grad(lambda p: loss(p, {}, batch, None, sft_counts(batch))[0]))
        analysis = gradient.lower(params).compile().memory_analysis()
        return getattr(analysis, "temp_size_in_bytes", 0) / tokens

    return [("memory a token, 2,048 / 32,768", bytes_a_token(2048) / bytes_a_token(32_768), 0.8)]


def main() -> int:
    """Measures all ratios."""
    began, failed = time.perf_counter(), 0
    for name, value, bound in [*head(), *decoding(), *tiles(), *rows(), *length()]:
        verdict = "" if value >= bound else f"  below {bound}"
        failed += value < bound
        print(f"{name:32} {value:6.2f}{verdict}", flush=True)
    print(f"{time.perf_counter() - began:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
