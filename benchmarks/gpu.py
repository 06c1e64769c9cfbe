"""What one GPU gives: full and LoRA training, decoding and a GRPO step, against what the card could do.

usage: python benchmarks/gpu.py [--output runs/gpu] [--only NAME ...]: a row a measurement, kept as soon as it is
there; the table at the end is for docs/performance.md. Made for one H200; `--shape tiny` runs all of it anywhere.

MFU counts 6 operations a parameter and token (4 with LoRA) and causal attention once, recomputation never, against
989 TFLOP/s (the data sheet's bfloat16 peak). The roofline of decoding is the time to read weights and the filled cache
at 4.3 TB/s. Not run on a GPU yet.
"""

import argparse
import dataclasses
import json
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from inputs import shape

from jaxalign import models
from jaxalign.models import LoraConfig, ModelConfig
from jaxalign.rollout import Sampler
from jaxalign.training.optimizer import OptimizerConfig, make_optimizer
from jaxalign.training.scoring import CausalPolicy
from jaxalign.training.sft import SFTLossConfig, sft_counts, sft_loss
from jaxalign.training.state import create_state
from jaxalign.training.step import make_update

PEAK, BANDWIDTH = 989e12, 4.3e12
# vocabulary, width, MLP, layers, heads, key heads, tied head
SHAPES = {
    "tiny": (512, 64, 176, 2, 4, 2, True),
    "1B": (128_256, 2048, 8192, 16, 32, 8, True),
    "3B": (128_256, 3072, 8192, 28, 24, 8, True),
    "8B": (128_256, 4096, 14_336, 32, 32, 8, False),
}
# name, shape, LoRA, rows, tokens a row
TRAINING = [
    ("sft 1B", "1B", False, 8, 2048),
    ("sft 1B long rows", "1B", False, 4, 4096),
    ("sft 3B", "3B", False, 4, 2048),
    ("lora 8B", "8B", True, 2, 4096),
]
# name, shape, rows, prompt, new tokens
DECODING = [
    ("decode 1B 64", "1B", 64, 896, 256),
    ("decode 1B 256", "1B", 256, 896, 256),
    ("decode 8B 64", "8B", 64, 896, 128),
]


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


def training(name: str, lora: bool, rows: int, length: int, *, steps: int) -> dict[str, float]:
    """Steps of SFT on full rows."""
    definition, params = model_of(name, trained=not lora)
    count = models.params_count(params)
    config = definition.config
    settings = LoraConfig(enabled=lora, rank=16) if lora else None
    policy, frozen = CausalPolicy(definition, settings), {}
    if settings is not None:
        frozen, params = params, models.create_adapter(config, settings, key=jax.random.key(1))
    optimizer, _ = make_optimizer(OptimizerConfig(), 1000)
    update = make_update(sft_loss(policy, SFTLossConfig()), sft_counts, optimizer)
    random = np.random.default_rng(0)
    mask = np.ones((rows, length), bool)
    mask[:, 0] = False
    batches = [
        jax.device_put(
            {
                "tokens": random.integers(4, config.vocab_size, (rows, length)).astype(np.int32),
                "mask": mask,
                "lengths": np.full(rows, length, np.int32),
                "valid": np.ones(rows, bool),
            }
        )
        for _ in range(4)
    ]
    state, times, key = create_state(params, optimizer), [], jax.random.key(2)
    began = time.perf_counter()
    for step in range(steps + 1):
        state, metrics = update(state, frozen, batches[step % 4], key)
        jax.block_until_ready((state, metrics))
        times.append(time.perf_counter() - began)
        began = time.perf_counter()
    seconds = statistics.median(times[1:])
    # The input table of an untied model multiplies nothing.
    dense = count - (0 if config.tied_head else config.vocab_size * config.hidden_size)
    attention = 6 * config.num_layers * length * config.num_heads * config.head_dim
    operations = (4 if lora else 6) * dense + attention * (2 / 3 if lora else 1)
    speed = rows * length / seconds
    return {
        "ms": seconds * 1e3,
        "tokens_per_second": speed,
        "mfu": speed * operations / PEAK,
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


def peak_gib() -> float:
    """The most device memory in use so far, GiB; 0 where the backend does not tell."""
    stats = jax.devices()[0].memory_stats() or {}
    return stats.get("peak_bytes_in_use", 0) / 2**30


def main() -> None:
    """Measures all, or what is named."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("runs/gpu"), help="folder for gpu.json")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="measurements that begin with these names")
    parser.add_argument("--shape", choices=SHAPES, help="take this shape for all, and few tokens")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    small = arguments.shape == "tiny"
    found: dict[str, Any] = {"device": jax.devices()[0].device_kind, "jax": jax.__version__, "rows": {}}
    for name, size, *numbers in [*TRAINING, *DECODING]:
        if arguments.only and not name.startswith(tuple(arguments.only)):
            continue
        size = arguments.shape or size
        began = time.perf_counter()
        if name.startswith("decode"):
            rows, prompt, new = (8, 32, 16) if small else numbers
            row = decoding(size, rows, prompt, new)
        else:
            lora, rows, length = numbers[0], *((2, 64) if small else numbers[1:])
            row = training(size, lora, rows, length, steps=8)
        found["rows"][name] = row | {"peak_gib": peak_gib(), "took": time.perf_counter() - began}
        (arguments.output / "gpu.json").write_text(json.dumps(found, indent=1))
        print(name, {k: float(f"{v:.4g}") for k, v in found["rows"][name].items()}, flush=True)
    print(
        "| measurement | ms a step | tokens/s | MFU or share of the roofline | peak GiB so far |\n"
        "|---|---:|---:|---:|---:|"
    )
    for name, row in found["rows"].items():
        share = row.get("mfu", row.get("roofline", 0.0))
        print(
            f"| {name} | {row['ms']:.1f} | {row['tokens_per_second']:,.0f} | {share:.1%} | {row['peak_gib']:.1f} |"
        )


if __name__ == "__main__":
    main()
