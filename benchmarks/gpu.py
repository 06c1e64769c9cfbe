"""What one GPU gives: full and LoRA training, decoding and a GRPO step, against what the card could do.

usage: python benchmarks/gpu.py [--output runs/gpu] [--only NAME ...]: a row a measurement, kept as soon as it is there;
the table at the end is for docs/performance.md. Made for one H200, under 8 minutes: no measurement begins after
--seconds. `--shape tiny` runs all of it anywhere. Needs jax, flax, optax and jaxalign's own modules, no data sets.

MFU counts 6 operations a parameter and token (4 with LoRA) and attention within rows once, recomputation never, against
989 TFLOP/s (the data sheet's bfloat16 peak). The roofline of decoding is the time to read weights and the filled cache
at 4.3 TB/s. A GRPO step is that of `jaxalign grpo` with no KL penalty: sample, score, one optimizer step. Not run on a
GPU yet.
"""

import argparse
import dataclasses
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from shapes import dialogue_lengths, shape

from jaxalign import losses, models
from jaxalign.data import packed
from jaxalign.data.packing import best_fit_decreasing
from jaxalign.models import LoraConfig, ModelConfig
from jaxalign.rollout import Sampler, join_rows
from jaxalign.training.grpo import grpo_loss
from jaxalign.training.grpo_config import GRPOLossConfig
from jaxalign.training.optimizer import OptimizerConfig, make_optimizer
from jaxalign.training.ppo_step import ppo_counts
from jaxalign.training.scoring import CausalPolicy
from jaxalign.training.sft import SFTLossConfig, sft_counts, sft_loss
from jaxalign.training.state import create_state
from jaxalign.training.step import make_update

PEAK, BANDWIDTH = 989e12, 4.3e12
# Counted steps of a training row.
STEPS = 8
# vocabulary, width, MLP, layers, heads, key heads, tied head
SHAPES = {
    "tiny": (512, 64, 176, 2, 4, 2, True),
    "1B": (128_256, 2048, 8192, 16, 32, 8, True),
    "3B": (128_256, 3072, 8192, 28, 24, 8, True),
    "8B": (128_256, 4096, 14_336, 32, 32, 8, False),
}
# What is asked of the card: shares of the peak, tokens a second, shares of the roofline, generation's share at most.
MFU, LORA_SPEED, ROOFLINE, GENERATION = 0.5, 13_000, 0.6, 0.4
# The most important first: what there is no time for is left out. Shape, then numbers:
ROWS = {
    # packed rows, tokens of each
    "sft 1B 2048": ("1B", 8, 2048),
    "decode 1B 256": ("1B", 256, 896, 256),  # rows, prompt, new tokens
    "grpo 1B": ("1B", 32, 8, 256, 512),  # prompts, completions of each, prompt, new tokens
    "sft 3B 4096": ("3B", 2, 4096),
    "lora 8B 4096": ("8B", 2, 4096),
    "decode 8B 64": ("8B", 64, 896, 256),
    "decode 8B 256": ("8B", 256, 896, 256),
    "sft 1B 4096": ("1B", 4, 4096),
    "sft 3B 2048": ("3B", 4, 2048),
    "decode 1B 64": ("1B", 64, 896, 256),
    "decode 1B 128": ("1B", 128, 896, 256),
    "decode 8B 128": ("8B", 128, 896, 256),
}
TINY = {"sft": (2, 64), "lora": (2, 64), "decode": (8, 32, 16), "grpo": (2, 4, 16, 16)}


def config_of(name: str) -> ModelConfig:
    """A Llama of one of the sizes."""
    vocabulary, width, mlp, layers, heads, kv_heads, tied = SHAPES[name]
    return dataclasses.replace(
        shape("S"),
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=mlp,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=width // heads,
        tied_head=tied,
        max_positions=8192,
        rope_theta=500_000.0,
        remat="none" if name == "tiny" else "full",
    )


def model_of(name: str, *, trained: bool) -> tuple[Any, Any]:
    """Definition and random weights; float32 to be trained in full, else bfloat16."""
    dtype = jnp.float32 if trained else jnp.bfloat16
    make = jax.jit(
        lambda key: models.split(
            models.create(config_of(name), key=key, param_dtype=dtype, compute_dtype=jnp.bfloat16)
        )[1]
    )
    definition = models.Definition(
        dataclasses.replace(config_of(name), param_dtype=jnp.dtype(dtype).name, compute_dtype="bfloat16")
    )
    return definition, make(jax.random.key(0))


def packed_batch(vocabulary: int, rows: int, length: int) -> dict[str, Any]:
    """`rows` packed rows of `length` tokens: half of them one long text each, half as many dialogues as fit."""
    random = np.random.default_rng(0)
    lengths = [length] * (rows // 2)
    while True:
        more = [*lengths, min(length, int(random.choice(dialogue_lengths())))]
        if len(best_fit_decreasing(more, length)) > rows:
            break
        lengths = more
    columns, counts = np.arange(length), np.asarray(lengths, np.int32)
    batch = {
        "tokens": random.integers(4, vocabulary, (len(counts), length)).astype(np.int32),
        "mask": (columns > 0) & (columns < counts[:, None]),
        "lengths": counts,
        "valid": np.ones(len(counts), bool),
    }
    return packed(batch)


def operations(config: ModelConfig, count: int, lengths: Any, *, lora: bool = False) -> float:
    """Floating-point operations of a training step over rows of these lengths: twice a multiplication with a weight
    forward, twice that backward (once with LoRA, whose frozen weights get no gradient), and causal attention."""
    lengths = np.asarray(lengths, np.float64)
    # The input table of an untied model multiplies nothing.
    dense = count - (0 if config.tied_head else config.vocab_size * config.hidden_size)
    # Scores and values: 2 products of half a square, each twice; and backward two times as much.
    attention = 6 * config.num_layers * config.num_heads * config.head_dim * (lengths**2).sum()
    return (4 if lora else 6) * dense * lengths.sum() + attention


def training(name: str, rows: int, length: int, *, lora: bool) -> dict[str, float]:
    """Steps of SFT on packed rows; padding is no useful token, and counts as no work."""
    definition, params = model_of(name, trained=not lora)
    count, config = models.params_count(params), definition.config
    settings = LoraConfig(enabled=lora, rank=16) if lora else None
    policy, frozen = CausalPolicy(definition, settings), {}
    if settings is not None:
        frozen, params = params, models.create_adapter(config, settings, key=jax.random.key(1))
    optimizer, _ = make_optimizer(OptimizerConfig(), 1000)
    update = make_update(sft_loss(policy, SFTLossConfig()), sft_counts, optimizer)
    batch = packed_batch(config.vocab_size, rows, length)
    work, tokens = operations(config, count, batch["lengths"], lora=lora), int(batch["lengths"].sum())
    state, times, key, batch = create_state(params, optimizer), [], jax.random.key(2), jax.device_put(batch)
    for _ in range(STEPS + 1):
        began = time.perf_counter()
        state, metrics = update(state, frozen, batch, key)
        jax.block_until_ready((state, metrics))
        times.append(time.perf_counter() - began)
    seconds = statistics.median(times[1:])
    return {
        "ms": seconds * 1e3,
        "tokens_per_second": tokens / seconds,
        "mfu": work / seconds / PEAK,
        "filled": tokens / (rows * length),
        "compile_seconds": times[0],
    }


def decoding(name: str, rows: int, prompt: int, new: int) -> dict[str, float]:
    """Completions of random prompts, no stop token; reading the prompts is measured apart and left out."""
    definition, params = model_of(name, trained=False)
    config = definition.config
    sampler = Sampler(models.merge(definition, params), max_rows=rows)
    random = np.random.default_rng(0)
    prompts = random.integers(4, config.vocab_size, (rows, prompt)).tolist()

    def seconds(tokens: int) -> float:
        taken = []
        for number in range(3):
            began = time.perf_counter()
            key = jax.random.key(number)
            sampler.generate(prompts, max_new_tokens=tokens, key=key, stop_tokens=())
            taken.append(time.perf_counter() - began)
        return min(taken[1:])

    first, whole = seconds(1), seconds(new)
    step = (whole - first) / (new - 1)
    weights = 2 * (
        models.params_count(params) - (0 if config.tied_head else config.vocab_size * config.hidden_size)
    )
    cache = 2 * 2 * config.num_layers * config.num_kv_heads * config.head_dim * (prompt + new / 2)
    return {
        "ms": step * 1e3,
        "tokens_per_second": rows / step,
        "roofline": (weights + rows * cache) / BANDWIDTH / step,
        "prefill_seconds": first,
    }


def grpo(name: str, prompts: int, samples: int, prompt: int, new: int) -> dict[str, float]:
    """Whole GRPO steps: completions of random prompts, their log-probs, advantages, one optimizer step."""
    definition, params = model_of(name, trained=True)
    policy, sampler = CausalPolicy(definition), Sampler(models.merge(definition, params))
    optimizer, _ = make_optimizer(OptimizerConfig(learning_rate=1e-6), 1000)
    parts = min(8, prompts)
    update = make_update(
        grpo_loss(policy, GRPOLossConfig(), 1.0, new), ppo_counts, optimizer, accumulation_steps=parts
    )
    score = jax.jit(lambda p, b: policy.score(p, {}, b["tokens"], b["lengths"], b["mask"]).logps)
    random = np.random.default_rng(0)
    ids = random.integers(4, definition.config.vocab_size, (prompts, prompt)).tolist()
    state, taken = create_state({"policy": params}, optimizer), []
    count = prompts * samples
    for number in range(3):
        marks = [time.perf_counter()]
        sampler.update(state.params["policy"])
        key = jax.random.key(number)
        out = sampler.generate(ids, max_new_tokens=new, key=key, stop_tokens=(), num_samples=samples)
        marks.append(time.perf_counter())
        rows = join_rows([p for p in ids for _ in range(samples)], out)
        batch = {"tokens": rows.tokens, "lengths": rows.lengths, "mask": rows.mask}
        pieces = [{k: v[i::parts] for k, v in batch.items()} for i in range(parts)]
        logps = np.zeros(rows.mask.shape, np.float32)
        for index, piece in enumerate(pieces):
            logps[index::parts] = np.asarray(score(state.params["policy"], piece))
        marks.append(time.perf_counter())
        rewards = jnp.asarray(rows.tokens[:, prompt : prompt + 4].sum(1) % 7, jnp.float32)
        advantages = np.asarray(losses.group_advantages(rewards, samples))[:, None] * rows.mask
        batch |= {"old_logps": logps, "ref_logps": logps, "weights": np.ones_like(logps)}
        batch |= {"advantages": advantages.astype(np.float32)}
        state, metrics = update(state, {"policy": {}}, batch, key)
        jax.block_until_ready((state, metrics))
        taken.append(np.diff([*marks, time.perf_counter()]))
    sample, scored, optimized = np.min(taken[1:], axis=0)
    whole = float(sample + scored + optimized)
    return {
        "ms": whole * 1e3,
        "tokens_per_second": count * new / whole,
        "generation": float(sample) / whole,
        "score": float(scored) / whole,
        "optimize": float(optimized) / whole,
        "compile_seconds": float(taken[0].sum()) - whole,
    }


def measured(name: str, shape_name: str, numbers: tuple[int, ...]) -> dict[str, float]:
    """One row of the table."""
    kind = name.split()[0]
    if kind == "decode":
        return decoding(shape_name, *numbers)
    if kind == "grpo":
        return grpo(shape_name, *numbers)
    return training(shape_name, *numbers, lora=kind == "lora")


def share(name: str, row: dict[str, float]) -> str:
    """What the row is judged by, and whether it misses its target."""
    if name.startswith("grpo"):
        text, reached = (
            f"generation {row['generation']:.0%}, scoring {row['score']:.0%}",
            row["generation"] <= GENERATION,
        )
        return f"{text} of the time | {GENERATION:.0%} at most{'' if reached else ', missed'}"
    if name.startswith("decode"):
        missed = "" if row["roofline"] >= ROOFLINE else ", missed"
        return f"{row['roofline']:.1%} of the roofline | {ROOFLINE:.0%}{missed}"
    text = f"{row['mfu']:.1%} MFU"
    if name.startswith("lora"):
        return (
            f"{text} | {LORA_SPEED:,} tokens/s{'' if row['tokens_per_second'] >= LORA_SPEED else ', missed'}"
        )
    return f"{text} | {MFU:.0%}{'' if row['mfu'] >= MFU else ', missed'}"


def peak_gib() -> float:
    """The most device memory in use so far, GiB; 0 where the backend does not tell."""
    stats = jax.devices()[0].memory_stats() or {}
    return stats.get("peak_bytes_in_use", 0) / 2**30


def table(found: dict[str, Any]) -> str:
    """What was measured, as Markdown."""
    lines = [
        f"{found['device']}, {found['platform']}, jax {found['jax']}, {found['date']}",
        "",
        "| measurement | ms a step | tokens/s | share | target | peak GiB so far |",
        "|---|---:|---:|---|---|---:|",
    ]
    for name, row in found["rows"].items():
        speed = f"{row['ms']:,.1f} | {row['tokens_per_second']:,.0f}"
        lines.append(f"| {name} | {speed} | {share(name, row)} | {row['peak_gib']:.1f} |")
    return "\n".join(lines)


def main() -> int:
    """Measures all, or what is named."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output", type=Path, default=Path("runs/gpu"), help="folder for gpu.json (runs/gpu)"
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="measurements that begin with these names")
    parser.add_argument("--shape", choices=SHAPES, help="take this shape for all; with tiny, few tokens too")
    parser.add_argument("--seconds", type=float, default=420, help="begin no measurement after so long (420)")
    arguments = parser.parse_args()
    chosen = [name for name in ROWS if not arguments.only or name.startswith(tuple(arguments.only))]
    if not chosen:
        print(f"gpu: error: --only: no measurement begins so; there are {', '.join(ROWS)}", file=sys.stderr)
        return 2
    arguments.output.mkdir(parents=True, exist_ok=True)
    device, start = jax.devices()[0], time.perf_counter()
    found: dict[str, Any] = {
        "device": device.device_kind,
        "platform": str(device.client.platform_version).splitlines()[0],
        "jax": jax.__version__,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "rows": {},
    }
    for name in chosen:
        if (passed := time.perf_counter() - start) > arguments.seconds:
            print(f"{name}: left out, {passed:.0f} s have passed")
            continue
        size, *numbers = ROWS[name]
        if arguments.shape == "tiny":
            numbers = TINY[name.split()[0]]
        began = time.perf_counter()
        row = measured(name, arguments.shape or size, tuple(numbers))
        found["rows"][name] = row | {"peak_gib": peak_gib(), "took": time.perf_counter() - began}
        (arguments.output / "gpu.json").write_text(json.dumps(found, indent=1))
        print(name, {k: float(f"{v:.4g}") for k, v in found["rows"][name].items()}, flush=True)
    print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
