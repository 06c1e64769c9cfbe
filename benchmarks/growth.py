"""How step time and memory grow with the length of rows, their number, the vocabulary, layers and samples.

usage: python benchmarks/growth.py [--output runs/growth] [--minutes 3] [--again] [--docs]: goes on where it stopped;
writes growth.json, growth.md and growth.png; --docs puts table and picture into docs/performance_appendix.md

Each point of a curve doubles one number of a small Llama and leaves the others. Memory is what the compiled step needs
for its state, batch and temporaries, which XLA states exactly; of sampling, what its arrays (weights, caches) take.
"""

import argparse
import dataclasses
import inspect
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import machine
import numpy as np
from pages import APPENDIX, Part, fill
from plots import growth, slope
from shapes import shape
from steps import sft_steps
from storage import read_json, write_json

import jaxalign
from jaxalign import models
from jaxalign.rollout import Sampler
from jaxalign.training.core.optimizer import OptimizerConfig, make_optimizer
from jaxalign.training.core.scoring import CausalPolicy
from jaxalign.training.core.state import create_state
from jaxalign.training.sft import DemonstrationBatch

BASE = {"length": 256, "rows": 4, "vocabulary": 4096, "layers": 4}
CURVES = {
    "length": (128, 256, 512, 1024, 2048),
    "rows": (1, 2, 4, 8, 16),
    "vocabulary": (2048, 4096, 8192, 16384, 32768),
    "layers": (2, 4, 8, 16),
    "samples": (2, 4, 8, 16, 32),
}
# Both axes of each curve; what does not depend on the number (the head, the optimizer) comes on top.
THEORY = {
    "length": "memory linear,\ntime linear + attention's square",
    "rows": "linear",
    "vocabulary": "linear",
    "layers": "linear",
    "samples": "linear, but each decoding\nstep reads the weights once",
}
REPEATS = 7


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


def training(length: int, rows: int, vocabulary: int, layers: int) -> dict[str, float]:
    """Seconds of an SFT step, and bytes it needs."""
    definition, params = models.split(models.create(small(vocabulary, layers), key=jax.random.key(0)))
    optimizer, _ = make_optimizer(OptimizerConfig(), 100)
    random = np.random.default_rng(0)
    mask = np.ones((rows, length), bool)
    mask[:, 0] = False
    batch = DemonstrationBatch(
        tokens=random.integers(4, vocabulary, (rows, length)).astype(np.int32),
        mask=mask,
        lengths=np.full(rows, length, np.int32),
        valid=np.ones(rows, bool),
        weights=np.ones((rows, length), np.float32),
    )
    policy, state = CausalPolicy(definition), create_state(params, optimizer)
    times, (update, *arguments) = sft_steps(policy, optimizer, state, {}, batch, count=REPEATS, clock=clock)
    # The program that ran, compiled already.
    program = inspect.getclosurevars(update).nonlocals["compiled"].lower(*arguments).compile()
    sizes = program.memory_analysis()
    needed = sizes.argument_size_in_bytes + sizes.temp_size_in_bytes
    needed += sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    return {**quickest(times[1:]), "bytes": float(needed)}


def clock() -> np.ndarray:
    """Seconds of wall time, and of CPU time of all threads."""
    return np.array([time.perf_counter(), time.process_time()])


def quickest(times: list[np.ndarray]) -> dict[str, float]:
    """The least of several, each by itself: other processes only add."""
    seconds, cpu = np.min(times, axis=0).tolist()
    return {"seconds": seconds, "cpu": cpu}


def sampling(samples: int) -> dict[str, float]:
    """Seconds for `samples` completions each of two prompts of 64 tokens, 64 new tokens; bytes its arrays take."""
    sampler = Sampler(models.create(small(4096, 4), key=jax.random.key(0)))
    prompts, times = [list(range(4, 68)), list(range(5, 69))], []

    def sample(number: int) -> None:
        key = jax.random.key(number)
        sampler.generate(prompts, max_new_tokens=64, key=key, stop_tokens=(), num_samples=samples)

    needed = held_at_most(lambda: sample(0))
    for number in range(1, REPEATS + 1):
        began = clock()
        sample(number)
        times.append(clock() - began)
    return {**quickest(times), "bytes": float(needed)}


def held_at_most(run: Callable[[], None]) -> int:
    """The most bytes that all arrays took at once while something ran, seen every half millisecond."""
    done, most = threading.Event(), 0

    def watch() -> None:
        nonlocal most
        while not done.wait(0.0005):
            most = max(most, sum(array.nbytes for array in jax.live_arrays()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    run()
    done.set()
    watcher.join()
    return most


def point(curve: str, at: int) -> dict[str, float]:
    """One point of a curve."""
    found = sampling(at) if curve == "samples" else training(**{**BASE, curve: at})
    return {"at": at, **found}


def table(found: dict[str, list[dict[str, float]]]) -> str:
    """A Markdown table, a row a point, with the slopes at the end of each curve."""
    lines = [
        "| | at | step, ms | CPU time of it, ms | memory, MiB | slope at the end: time, CPU time, memory |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for name, points in found.items():
        for p in points:
            whole = p is points[-1] and len(points) == len(CURVES[name])
            ends = ", ".join(f"{slope(points, kind):.2f}" for kind in ("seconds", "cpu", "bytes") if whole)
            times = f"{p['seconds'] * 1e3:,.1f} | {p['cpu'] * 1e3:,.1f}"
            lines.append(f"| {name} | {p['at']:,} | {times} | {p['bytes'] / 2**20:,.1f} | {ends} |")
    return "\n".join(lines)


def begin(path: Path, *, again: bool) -> dict[str, Any]:
    """What is in the file where it can stand or be gone on with, else a beginning; one line says which.

    Curves that are whole stand as they are, whatever measured them; unfinished ones are gone on with on the same
    machine, versions and commit only. Both must be today's curves.
    """
    versions = {"jax": jax.__version__, "jaxalign": jaxalign.__version__}
    curves = {"base": BASE, "repeats": REPEATS, **{name: list(at) for name, at in CURVES.items()}}
    fresh = {"machine": machine.machine(), "versions": versions, "curves": curves, "points": {}}
    old = read_json(path)
    if old is None or again:
        return fresh
    if old.get("curves") != curves:
        print(f"{path}: of other curves, measured again")
        return fresh
    if all(len(old["points"].get(name, [])) == len(at) for name, at in CURVES.items()):
        print(f"{path}: there already, of commit {old['machine']['commit']} (--again measures anew)")
        return old
    same = [old["versions"] == versions]
    same += [old["machine"][name] == fresh["machine"][name] for name in ("cpu", "cores", "flags", "commit")]
    if not all(same):
        print(f"{path}: begun on another machine, version or commit, measured again")
        return fresh
    return old


def main() -> int:
    """Measures the points that are missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output", type=Path, default=Path("runs/growth"), help="folder for the results (runs/growth)"
    )
    parser.add_argument("--minutes", type=float, default=60, help="begin no point after so long (60)")
    parser.add_argument("--again", action="store_true", help="measure again what is there already")
    parser.add_argument("--docs", action="store_true", help="write the page in docs/ and its picture too")
    arguments = parser.parse_args()
    output, began = arguments.output, time.perf_counter()
    output.mkdir(parents=True, exist_ok=True)
    path = output / "growth.json"
    found = begin(path, again=arguments.again)
    for name, values in CURVES.items():
        points = found["points"].setdefault(name, [])
        for at in values[len(points) :]:
            if time.perf_counter() - began > 60 * arguments.minutes:
                print(f"stopped before {name} {at}: the same command goes on")
                return 3
            points.append(point(name, at))
            write_json(path, found)
            print(
                f"{name} {at:,}: {points[-1]['seconds'] * 1e3:,.1f} ms, {points[-1]['bytes'] / 2**20:,.1f} MiB",
                flush=True,
            )
    text = f"{machine.origin([found])}.\n\n{table(found['points'])}"
    picture = growth(found["points"], THEORY)
    print(text)
    (output / "growth.md").write_text(text + "\n")
    (output / "growth.png").write_bytes(picture)
    if arguments.docs:
        fill(Part(APPENDIX, "growth", text, picture, "Growth curves"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
