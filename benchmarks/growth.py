"""How step time and peak memory grow with the length of rows, their number, the vocabulary, layers and samples.

usage: python benchmarks/growth.py [--output runs/growth]: writes growth.json and growth.png, prints a table (6 minutes)

Each line of a curve doubles one number of a small Llama and leaves the others; memory is what the compiled program
needs for temporaries, which XLA states exactly.
"""

import argparse
import dataclasses
import json
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from inputs import shape

from jaxalign import models
from jaxalign.rollout import Sampler
from jaxalign.training.optimizer import OptimizerConfig, make_optimizer
from jaxalign.training.scoring import CausalPolicy
from jaxalign.training.sft import SFTLossConfig, sft_counts, sft_loss
from jaxalign.training.state import create_state
from jaxalign.training.step import make_update

BASE = {"length": 256, "rows": 4, "vocabulary": 4096, "layers": 4}
CURVES = {
    "length": (128, 256, 512, 1024, 2048),
    "rows": (1, 2, 4, 8, 16),
    "vocabulary": (2048, 4096, 8192, 16384, 32768),
    "layers": (2, 4, 8, 16),
}
SAMPLES = (1, 2, 4, 8, 16)


def small(vocabulary: int, layers: int) -> Any:
    """A Llama of width 128."""
    return dataclasses.replace(
        shape("S"),
        vocab_size=vocabulary,
        num_layers=layers,
        hidden_size=128,
        intermediate_size=352,
        num_heads=4,
        num_kv_heads=4,
        head_dim=32,
        max_positions=4096,
    )


def training(length: int, rows: int, vocabulary: int, layers: int, *, repeats: int = 5) -> dict[str, float]:
    """Seconds of an SFT step, and bytes of its temporaries."""
    definition, params = models.split(models.create(small(vocabulary, layers), key=jax.random.key(0)))
    optimizer, _ = make_optimizer(OptimizerConfig(), 100)
    loss = sft_loss(CausalPolicy(definition), SFTLossConfig())
    update = make_update(loss, sft_counts, optimizer)
    random = np.random.default_rng(0)
    mask = np.ones((rows, length), bool)
    mask[:, 0] = False
    batch = {
        "tokens": random.integers(4, vocabulary, (rows, length)).astype(np.int32),
        "mask": mask,
        "lengths": np.full(rows, length, np.int32),
        "valid": np.ones(rows, bool),
    }
    key = jax.random.key(1)
    gradient = jax.jit(jax.grad(lambda p: loss(p, {}, batch, None, sft_counts(batch))[0]))
    temporaries = gradient.lower(params).compile().memory_analysis().temp_size_in_bytes
    state, times = create_state(params, optimizer), []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        state, metrics = update(state, {}, batch, key)
        jax.block_until_ready((state, metrics))
        times.append(time.perf_counter() - began)
    return {"seconds": statistics.median(times[1:]), "bytes": float(temporaries)}


def sampling(samples: int, *, repeats: int = 5) -> dict[str, float]:
    """Seconds for `samples` completions each of two prompts of 64 tokens, 64 new tokens."""
    sampler = Sampler(models.create(small(4096, 4), key=jax.random.key(0)))
    prompts, times = [list(range(4, 68)), list(range(5, 69))], []
    for number in range(repeats + 1):
        began = time.perf_counter()
        sampler.generate(
            prompts, max_new_tokens=64, key=jax.random.key(number), stop_tokens=(), num_samples=samples
        )
        times.append(time.perf_counter() - began)
    return {"seconds": statistics.median(times[1:])}


def plot(found: dict[str, list[dict[str, float]]], path: Path) -> None:
    """A panel a number that was doubled, both axes logarithmic, with a straight line of slope 1."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(found), figsize=(3.2 * len(found), 3.2), constrained_layout=True)
    for axis, (name, points) in zip(axes, found.items(), strict=True):
        at = [p["at"] for p in points]
        axis.loglog(at, [p["seconds"] for p in points], "o-", label="step, s")
        axis.loglog(at, [points[0]["seconds"] * a / at[0] for a in at], ":", color="gray", label="linear")
        if "bytes" in points[0]:
            axis.loglog(at, [p["bytes"] / 2**30 for p in points], "s--", label="temporaries, GiB")
        axis.set_xlabel(name)
        axis.set_xticks(at, [str(a) for a in at])
        axis.minorticks_off()
        axis.legend(fontsize=7)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measures all curves."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("runs/growth"), help="folder for the results")
    output = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[dict[str, float]]] = {}
    for name, values in CURVES.items():
        found[name] = [{"at": v, **training(**{**BASE, name: v})} for v in values]
        rows = "  ".join(
            f"{p['at']}: {p['seconds'] * 1e3:.0f} ms {p['bytes'] / 2**20:.0f} MiB" for p in found[name]
        )
        print(f"{name:12} {rows}", flush=True)
    found["samples"] = [{"at": v, **sampling(v)} for v in SAMPLES]
    print(f"{'samples':12} " + "  ".join(f"{p['at']}: {p['seconds'] * 1e3:.0f} ms" for p in found["samples"]))
    (output / "growth.json").write_text(json.dumps(found, indent=1))
    plot(found, output / "growth.png")


if __name__ == "__main__":
    main()
