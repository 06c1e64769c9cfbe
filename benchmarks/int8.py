"""What 8-bit weights and caches change in sampling: memory, CPU time, and the distribution that is sampled from.

usage: python benchmarks/int8.py MODEL TEXTS.jsonl[.gz] [--prompts 64] [--new 128]

MODEL is a Hugging Face folder; the first 8 tokens of each row's `text` are a prompt. Variants take turns; CPU time is
that of all threads, so that another process on the machine does not count.
"""

import argparse
import gzip
import json
import time
from pathlib import Path

import jax
import numpy as np

from jaxalign import models
from jaxalign.evaluation.sampler_gap import sampler_gap
from jaxalign.models.kv_cache import from_prompt
from jaxalign.rollout import Sampler

VARIANTS = {
    "same": {},
    "int8 weights": {"weights": "int8"},
    "int8 cache": {"cache": "int8"},
    "both": {"weights": "int8", "cache": "int8"},
}
REPETITIONS = 3


def megabytes(tree: object) -> float:
    """Of all arrays, or of their shapes."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree)) / 1e6


def cache_of(config: models.ModelConfig, rows: int, columns: int, *, int8: bool) -> object:
    """Shapes of the keys and values of `rows` rows."""
    shape = (config.num_layers, rows, columns, config.num_kv_heads, config.head_dim)
    new = jax.ShapeDtypeStruct(shape, np.dtype(config.compute_dtype))
    lengths = jax.ShapeDtypeStruct((rows,), np.int32)
    cache = jax.eval_shape(lambda k, v, n: from_prompt(k, v, n, columns, int8=int8), new, new, lengths)
    return cache.keys, cache.values


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("texts", type=Path)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--new", type=int, default=128)
    options = parser.parse_args()
    opened = gzip.open if options.texts.suffix == ".gz" else open
    with opened(options.texts, "rt", encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file][: options.prompts]
    tokenizer, model = models.load_tokenizer(options.model), models.load_pretrained(options.model)
    prompts = [tokenizer(text)["input_ids"][:8] for text in texts]
    samplers = {name: Sampler(model, **storage) for name, storage in VARIANTS.items()}
    arguments = {"max_new_tokens": options.new, "key": jax.random.key(0)}
    gaps = {name: sampler_gap(s, model, prompts, **arguments) for name, s in samplers.items()}
    seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for _ in range(REPETITIONS):
        for name, sampler in samplers.items():
            before = time.process_time()
            done = sampler.generate(prompts, stop_tokens=(), **arguments)
            seconds[name].append((time.process_time() - before) / done.mask.sum())
    plain, columns = float(np.median(seconds["same"])), 8 + options.new
    print(f"{len(prompts)} prompts, {gaps['same'].tokens} tokens of completions\n")
    print(
        "| sampler | weights, MB | cache, MB | CPU time a token | mean dlogp | largest dlogp | KL, nats a token |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name, sampler in samplers.items():
        cache = megabytes(cache_of(model.config, len(prompts), columns, int8="cache" in VARIANTS[name]))
        cost, gap = float(np.median(seconds[name])) / plain, gaps[name]
        print(f"| {name} | {megabytes(sampler.params):.2f} | {cache:.2f} | {cost:.2f} | {gap.mean:.2g} | "
              f"{gap.largest:.2g} | {gap.kl:.2g} |")  # fmt: skip


if __name__ == "__main__":
    main()
