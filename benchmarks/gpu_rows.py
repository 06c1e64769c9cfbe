"""One row of `gpu.py`: what is measured, in the process that calls it, on the first device there is.

What a training step has to compute is counted by hand, `operations`; what is computed twice is not counted. For the
1B shape: a layer's matrices are 2 x 2048^2 (queries, output) + 2 x 2048 x 512 (keys, values) + 3 x 2048 x 8192 (MLP) =
60,817,408 weights, 16 layers and the head of 128,256 x 2048 make 1,235,746,816, and norms (67,584) are all that the
number of parameters has beside them. 6 operations each are 7.41e9 a token; attention in rows of 2048 tokens adds
6 x 16 x 2048 x 2048 = 0.40e9.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
from gpu_checks import attention_checks, attention_form
from gpu_profile import kernels
from shapes import dialogue_lengths, shape
from steps import sft_steps

from jaxalign import models
from jaxalign.data import packed
from jaxalign.data.packing import MAX_SEGMENTS, best_fit_decreasing
from jaxalign.mesh import make_mesh
from jaxalign.models import LoraConfig, ModelConfig, choose_matmul
from jaxalign.rollout import Sampler, SamplingConfig
from jaxalign.rollout.continuous_batching import width_of
from jaxalign.runs import Given
from jaxalign.training.core import setup
from jaxalign.training.core.generator import Generator
from jaxalign.training.core.optimizer import OptimizerConfig, make_optimizer
from jaxalign.training.core.scoring import CausalPolicy
from jaxalign.training.core.state import create_state
from jaxalign.training.rl.grpo import Trainer
from jaxalign.training.rl.grpo_config import GRPOConfig, GRPOTrainConfig
from jaxalign.training.sft import DemonstrationBatch

# Counted steps of a training row.
STEPS = 8
# Completions of each prompt that is decoded: they read caches of their own, but few prompts are read for them.
COPIES = 8
# vocabulary, width, MLP, layers, heads, key heads, tied head
SHAPES = {
    "tiny": (512, 64, 176, 2, 4, 2, True),
    "1B": (128_256, 2048, 8192, 16, 32, 8, True),
    "3B": (128_256, 3072, 8192, 28, 24, 8, True),
    "8B": (128_256, 4096, 14_336, 32, 32, 8, False),
}


def measured(
    name: str, size: str, numbers: tuple[int, ...], remat: models.Remat, profile: Path | None = None
) -> dict[str, Any]:
    """One row, by the first word of its name.

    Args:
      name: for example sft 1B 2048.
      size: which of `SHAPES`.
      numbers: arguments of the measurement.
      remat: level of the training rows.
      profile: file for the kernels of one more step, which is not counted.
    """
    kinds: dict[str, Callable[..., dict[str, Any]]] = {
        "checks": attention_checks,
        "sft": training,
        "lora": lora_training,
        "decode": decoding,
        "grpo": grpo,
    }
    kind = name.split()[0]
    row = kinds[kind]() if kind == "checks" else kinds[kind](config_of(size, remat), *numbers)
    device = jax.devices()[0]
    # A process measures one row, so this is the row's own.
    peak = (device.memory_stats() or {}).get("peak_bytes_in_use")
    more = row.pop("profile", None)
    if profile is not None and more is not None:
        profile.write_text(kernels(more) + "\n")
    return row | {
        "device": device.device_kind,
        "platform": " ".join(str(device.client.platform_version).split()),
        "jax": jax.__version__,
        "jaxlib": version("jaxlib"),
        "peak_bytes": peak,
    }


def config_of(name: str, remat: models.Remat = "none") -> ModelConfig:
    """A Llama of one of the sizes, bfloat16 compute; nothing ends a completion."""
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
        eos_ids=(),
        compute_dtype="bfloat16",
        remat=remat,
    )


def model_of(config: ModelConfig, dtype: str) -> tuple[Any, Any]:
    """Definition and random weights in a dtype."""
    config = dataclasses.replace(config, param_dtype=dtype)
    make = jax.jit(lambda key: models.split(models.create(config, key=key))[1])
    return models.Definition(config), make(jax.random.key(0))


def forms(config: ModelConfig, rows: int, length: int, most: int) -> dict[str, str]:
    """The forms of attention, over rows of at most `most` segments, and of products."""
    shape_of_queries = (rows, length, config.num_heads, config.head_dim)
    return {
        "attention": attention_form(config, shape_of_queries, most),
        "products": choose_matmul(config, jax.default_backend()).implementation,
    }


def packed_batch(vocabulary: int, rows: int, length: int) -> DemonstrationBatch:
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
        "weights": np.ones((len(counts), length), np.float32),
    }
    return DemonstrationBatch.of(packed(batch))


def operations(config: ModelConfig, count: int, lengths: Any, *, lora: bool = False) -> float:
    """Floating-point operations of a training step over rows of these lengths.

    Each of the `count` parameters is multiplied with once a token: 2 operations forward and 4 backward, for the
    gradient of the input and its own, which a frozen weight (`lora`) has not. Causal attention has two products of
    half a square, scores and values, of 2 operations a pair and number of a head: 2 forward and 4 backward for each
    pair of positions in the whole square.
    """
    lengths = np.asarray(lengths, np.float64)
    # The input table of an untied model multiplies nothing.
    dense = count - (0 if config.tied_head else config.vocab_size * config.hidden_size)
    attention = 6 * config.num_layers * config.num_heads * config.head_dim * (lengths**2).sum()
    return (4 if lora else 6) * dense * lengths.sum() + attention


def lora_training(config: ModelConfig, rows: int, length: int) -> dict[str, Any]:
    """`training` of an adapter of rank 16 on a frozen model in bfloat16."""
    return training(config, rows, length, lora=True)


def training(config: ModelConfig, rows: int, length: int, *, lora: bool = False) -> dict[str, Any]:
    """Steps of SFT on packed rows; padding is no useful token, and counts as no work."""
    definition, params = model_of(config, "bfloat16" if lora else "float32")
    count, settings = models.params_count(params), LoraConfig(enabled=True, rank=16) if lora else None
    frozen = {}
    if settings is not None:
        frozen, params = params, models.create_adapter(config, settings, key=jax.random.key(1))
    optimizer, _ = make_optimizer(OptimizerConfig(), 1000)
    batch = packed_batch(config.vocab_size, rows, length)
    lengths, tokens = batch.lengths, int(batch.lengths.sum())
    state, batch = create_state(params, optimizer), jax.device_put(batch)
    # The state has a copy of its own.
    del params
    policy = CausalPolicy(definition, settings)
    times, (update, *arguments) = sft_steps(
        policy, optimizer, state, frozen, batch, count=STEPS, clock=time.perf_counter
    )
    seconds = statistics.median(times[1:])
    return {
        "ms": seconds * 1e3,
        "tokens_per_second": tokens / seconds,
        "operations": operations(config, count, lengths, lora=lora),
        "filled": tokens / (rows * length),
        "first_seconds": times[0],
        "remat": config.remat,
        "profile": lambda: update(*arguments),
        **forms(config, rows, length, MAX_SEGMENTS),
    }


def decoding(config: ModelConfig, rows: int, prompt: int, new: int) -> dict[str, Any]:
    """Decoding steps of `rows` completions of random prompts: of `new` tokens, less those of a quarter as many.

    That leaves out how prompts are read. `bytes` is what a step must read: the weights, and of the cache the columns
    that hold a token; a step reads all columns, of which `filled` is that share.
    """
    definition, params = model_of(config, "bfloat16")
    sampler = Sampler(models.merge(definition, params), max_rows=rows)
    random = np.random.default_rng(0)
    prompts = random.integers(4, config.vocab_size, (rows // COPIES, prompt)).tolist()

    def seconds(tokens: int) -> float:
        began = time.perf_counter()
        key = jax.random.key(0)
        sampler.generate(prompts, max_new_tokens=tokens, key=key, stop_tokens=(), num_samples=COPIES)
        return time.perf_counter() - began

    first = seconds(new // 4)
    short, whole = (min(seconds(tokens) for _ in range(2)) for tokens in (new // 4, new))
    step = (whole - short) / (new - new // 4)
    # Step i sees prompt + i columns; these are steps new // 4 to new - 1, the first token being drawn without one.
    columns = prompt + (new // 4 + new - 1) / 2
    length = width_of(prompt + min(sampler.block, new - 1))
    cache = 2 * 2 * config.num_layers * config.num_kv_heads * config.head_dim * columns
    unread = 0 if config.tied_head else config.vocab_size * config.hidden_size
    return {
        "ms": step * 1e3,
        "tokens_per_second": rows / step,
        "bytes": 2 * (models.params_count(params) - unread) + rows * cache,
        "filled": columns / length,
        "first_seconds": first,
        "profile": lambda: seconds(new // 4),
        # Attention of a decoding step has one form everywhere; this is how prompts are read, padded on the left.
        **forms(config, rows // COPIES, prompt, 2),
    }


def grpo(config: ModelConfig, prompts: int, samples: int, prompt: int, new: int) -> dict[str, Any]:
    """Updates of the trainer of `jaxalign grpo`, on random prompts, with a reward that costs nothing.

    The first one compiles, and scores what was sampled to check it; of the next two the quicker counts.
    """
    mesh = make_mesh(devices=jax.devices()[:1])
    definition, params = model_of(config, "float32")
    policy, rows = CausalPolicy(definition), prompts * samples
    settings = GRPOConfig(
        sampling=SamplingConfig(max_new_tokens=new, num_samples=samples, stop_tokens=()),
        # How far sampler and trainer are apart is told here, not judged.
        train=GRPOTrainConfig(prompts=prompts, accumulation_steps=min(8, rows), logp_tolerance=1e3),
    )
    optimizer, _ = make_optimizer(settings.optimizer, 1000)
    ids = np.random.default_rng(0).integers(4, config.vocab_size, (prompts, prompt)).tolist()
    tokenizer: Any = SimpleNamespace(batch_decode=lambda rows, **_: [""] * len(rows))
    batch = {
        "prompts": ids,
        "prompt_texts": [""] * prompts,
        "columns": {},
        "messages": [None] * prompts,
    }
    key, state = jax.random.key(1), create_state({"policy": setup.place_params(params, mesh)}, optimizer)
    # The state has a copy of its own.
    del params
    trainer = Trainer(
        config=settings,
        run=SimpleNamespace(warn=print, given=Given()),  # type: ignore[arg-type]
        mesh=mesh,
        frozen={"policy": {}},
        reward=lambda prompts, completions, *, completion_ids, columns: [
            sum(x[:4]) % 7 for x in completion_ids
        ],
        tokenizer=tokenizer,
        prompts=SimpleNamespace(next=lambda: batch),  # type: ignore[arg-type]
        held_out=(),
        state=state,
        key=key,
        generator=Generator(policy, {}, settings.sampling, tokenizer, key),
        policy=policy,
        reference_definition=definition,
        reference={},
        optimizer=optimizer,
    )
    parts, updates = ("sample", "score", "optimize"), []
    for number in (1, 2, 3):
        metrics, _ = trainer.update(number)
        metrics["seconds"] = sum(metrics[f"time/{part}_seconds"] for part in parts)
        updates.append(metrics)
    best = min(updates[1:], key=lambda metrics: metrics["seconds"])
    return {
        "ms": best["seconds"] * 1e3,
        "tokens_per_second": rows * new / best["seconds"],
        **{part: best[f"time/{part}_seconds"] / best["seconds"] for part in parts},
        "logp_gap": updates[0]["rollout/logp_gap"],
        "first_seconds": updates[0]["seconds"],
        "remat": config.remat,
        "profile": lambda: trainer.update(4),
        **forms(config, rows, prompt + new, 1),
    }
