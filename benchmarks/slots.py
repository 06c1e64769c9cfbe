"""How much work shrinking batches and refilled slots save, counted: no model runs.

usage: python benchmarks/slots.py

256 completions whose lengths are those of real dialogues (lengths.json), cut at 512 tokens, after prompts of 64, are
decoded in 64 or 256 slots. Counted for each token that is kept: row-steps (a slot times a step), and cache columns read
against those that hold a token; 1 would be no waste. One loop is what a plain batched decoder does: each batch until
its longest row has ended.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import jax
import numpy as np

from jaxalign.models.kv_cache import KVCache
from jaxalign.rollout import continuous_batching, decode
from jaxalign.rollout.decode import RowSampling
from jaxalign.rollout.sampling import SamplerFeatures

ROWS, PROMPT, NEW = 256, 64, 512
BLOCKS = (16, 32, 64, 128, 512)


@dataclass
class Counter:
    """Stands in for the programs of `jaxalign.rollout.decode`: rows end where `lengths` says, work is added up."""

    lengths: np.ndarray
    row_steps: int = 0
    columns: int = 0
    looks: int = 0

    def __post_init__(self) -> None:
        self.shapes: set[tuple[int, ...]] = set()

    def in_place(self) -> Any:
        """A context in which it stands for the programs."""
        names = ("decode_weights", "read_prompts", "new_cache", "seat", "rearranged", "decode_block")
        return mock.patch.multiple(decode, **{name: getattr(self, name) for name in names})

    @staticmethod
    def cache(rows: int, length: int) -> KVCache:
        """One of the right shape that takes no memory."""
        values = np.broadcast_to(np.zeros(()), (rows, 1, length, 1))
        return KVCache((values,), (values,), None, None)  # type: ignore[arg-type]

    def decode_weights(self, *_: Any) -> None:
        """None."""

    def read_prompts(self, definition: Any, params: Any, adapter: Any, tokens: Any, lengths: Any, draws: RowSampling,
                     *_: Any, **__: Any) -> Any:  # fmt: skip
        """Prompts cost the same either way."""
        rows = len(draws.ids)
        blank = {name: np.zeros(rows) for name in ("tokens", "logps", "sampling_logps")}
        return self.cache(len(tokens), tokens.shape[1]), {**blank, "stop": self.lengths[draws.ids] == 1}

    def new_cache(self, prompts: KVCache, source: np.ndarray, column: Any, *, length: int) -> KVCache:
        """Empty."""
        return self.cache(len(source), length)

    def seat(self, cache: KVCache, *_: Any) -> KVCache:
        """As it is."""
        return cache

    def rearranged(self, cache: KVCache, rows: np.ndarray, shift: Any, *, length: int) -> KVCache:
        """Of another size."""
        return self.cache(len(rows), length)

    def decode_block(self, definition: Any, weights: Any, cache: KVCache, token: Any, alive: np.ndarray, drawn: Any,
                     limit: Any, steps: Any, draws: Any, *_: Any, features: Any, block: int) -> Any:  # fmt: skip
        """Rows go on until their length, at most `steps` tokens."""
        left = (self.lengths[draws.ids] - drawn) * alive
        new = np.minimum(left, steps)
        taken = int(new.max())
        self.row_steps += taken * len(token)
        self.columns += taken * len(token) * cache.length
        self.looks += 1
        self.shapes.add((len(token), cache.length))
        blank = np.zeros((len(token), block))
        out = {"tokens": blank, "logps": blank, "sampling_logps": blank, "token": token, "step": taken}
        return cache, {
            **out,
            "drawn": drawn + new,
            "alive": alive & (left > new),
            "stopped": alive & (left <= new),
        }


def counted(lengths: np.ndarray, rows: int, block: int) -> Counter:
    """The work of all completions in `rows` slots."""
    counter, zeros = Counter(lengths), np.zeros(len(lengths))
    job = continuous_batching.Job(
        definition=SimpleNamespace(config=SimpleNamespace(max_positions=PROMPT + NEW, mesh=None)),
        params=None,
        adapter=None,
        prompts=[[0] * PROMPT] * len(lengths),
        copies=1,
        new_tokens=NEW,
        draws=RowSampling(np.arange(len(lengths)), zeros, zeros, zeros, zeros),
        stops=np.asarray([-1]),
        key=jax.random.key(0),
        features=SamplerFeatures(),
        max_rows=rows,
        block=block,
    )
    with counter.in_place():
        out = continuous_batching.run(job)
    assert (out["lengths"] == lengths).all()
    return counter


def main() -> None:
    """Prints the table."""
    known = json.loads(Path(__file__).with_name("lengths.json").read_text())["tokens"]
    lengths = np.minimum(np.random.default_rng(0).permutation(np.resize(known, ROWS)), NEW)
    tokens, ideal = lengths.sum() - ROWS, sum((PROMPT + np.arange(1, n)).sum() for n in lengths)
    print(f"{ROWS} completions of {lengths.min()} to {lengths.max()} tokens, mean {lengths.mean():.0f}\n")
    print("| slots | block | row-steps a token | columns read, against those filled | looks | programs |")
    print("|---:|---:|---:|---:|---:|---:|")
    for rows in (64, 256):
        batches = lengths.reshape(-1, rows).max(1)
        plain = (batches - 1).sum() * rows
        wide = plain * (PROMPT + NEW)
        print(f"| {rows} | one loop | {plain / tokens:.2f} | {wide / ideal:.2f} | {ROWS // rows} | 1 |")
        for block in BLOCKS:
            c = counted(lengths, rows, block)
            row = (c.row_steps / tokens, c.columns / ideal, c.looks, len(c.shapes))
            print("| {} | {} | {:.2f} | {:.2f} | {} | {} |".format(rows, block, *row))


if __name__ == "__main__":
    main()
