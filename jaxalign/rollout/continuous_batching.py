"""Who is decoded where: prompts take free slots, rows that end give them back, the cache follows.

The host sees the rows after each block of tokens. While prompts wait, slots that fall free
get the next ones; when none waits, the rows that are left move into half as many slots.
A row's tokens depend on none of it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxalign.buckets import width_bucket
from jaxalign.mesh import DEFAULT_RULES, row_shards
from jaxalign.models.kv_cache import KVCache
from jaxalign.rollout import decode
from jaxalign.rollout.decode import RowSampling
from jaxalign.rollout.sampling import SamplerFeatures

# Prompt tokens read by one program, padding included: bounds its memory.
PREFILL_TOKENS = 16_384
# The share of slots that must be free before prompts are read into them: reading few at a time is slow.
REFILL = 4
# Takes the tokens so far [N, C] and how many there are of each completion [N].
OnTokens = Callable[[np.ndarray, np.ndarray], None]


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is to be generated.

    Attributes:
      definition, params, adapter: the model.
      prompts: token ids of each prompt.
      copies: completions per prompt.
      new_tokens: longest completion.
      draws: how each completion is drawn; host arrays.
      stops: int32, ids that end a completion; -1 is none.
      key: source of all randomness.
      features: what sampling must provide for.
      max_rows: slots, at most; one prompt's completions always fit.
      block: tokens decoded between two looks at which rows have ended.
      int8_cache: keep keys and values as 8-bit integers.
      on_tokens: is called with `tokens` [N, C] and `lengths` [N] as they are after each block.
    """

    definition: Any
    params: Any
    adapter: Any
    prompts: Sequence[Sequence[int]]
    copies: int
    new_tokens: int
    draws: RowSampling
    stops: np.ndarray
    key: jax.Array
    features: SamplerFeatures
    max_rows: int
    block: int
    int8_cache: bool = False
    on_tokens: OnTokens | None = None


def run(job: Job) -> dict[str, np.ndarray]:
    """Generates all completions.

    Returns:
      [N, C] `tokens`, `logps` and `sampling_logps`, 0 beyond the completion, and [N] `lengths`
      and `stopped` (ended by a stop token).
    """
    slots = _Slots(job)
    while slots.waiting or slots.alive.any():
        slots.admit()
        if slots.alive.any():
            slots.fit()
            slots.decode()
        if job.on_tokens is not None:
            job.on_tokens(slots.out["tokens"], slots.out["lengths"])
    return slots.out


class _Slots:
    """The rows that are being decoded. Arrays with one entry a slot mean something where it is alive."""

    def __init__(self, job: Job) -> None:
        self.job = job
        total = len(job.prompts) * job.copies
        lengths = np.asarray([len(p) for p in job.prompts])
        # Longest first: prompts of like length are read together, and later ones fit where earlier ones did.
        self.waiting = np.argsort(-lengths, kind="stable").tolist()
        self.mesh = job.definition.config.mesh
        self.shards = 1 if self.mesh is None else row_shards(self.mesh)
        size = slots_of(total, job.copies, job.max_rows, self.shards)
        self.row = np.zeros(size, np.int32)
        self.token = np.zeros(size, np.int32)
        self.drawn = np.zeros(size, np.int32)
        self.starts = np.zeros(size, np.int32)
        self.alive = np.zeros(size, bool)
        self.column = 0
        self.cache: KVCache | None = None
        self.weights: Any = None
        self.out = {
            "tokens": np.zeros((total, job.new_tokens), np.int32),
            "logps": np.zeros((total, job.new_tokens), np.float32),
            "sampling_logps": np.zeros((total, job.new_tokens), np.float32),
            "lengths": np.zeros(total, np.int32),
            "stopped": np.zeros(total, bool),
        }

    def admit(self) -> None:
        """Reads waiting prompts into free slots, once enough of those are free."""
        copies, size = self.job.copies, len(self.alive)
        enough = min(len(self.waiting), max(1, size // (REFILL * copies)))
        if self.alive.any() and self._free() < enough:
            return
        while self.waiting and self._free():
            width = width_of(len(self.job.prompts[self.waiting[0]]), self.job.definition.config.max_positions)
            count = min(len(self.waiting), self._free(), max(1, PREFILL_TOKENS // width))
            chosen, self.waiting = self.waiting[:count], self.waiting[count:]
            self._read(chosen, width)

    def fit(self) -> None:
        """Halves the slots as long as that suffices, and makes room for the next block."""
        size, seats = len(self.alive), None
        if not self.waiting and self.alive.sum() <= size // 2:
            kept = np.flatnonzero(self.alive)
            fewer = multiple(power_of_two(len(kept)), self.shards)
            seats = np.resize(kept, fewer) if fewer < size else None
        if seats is not None or self.column + self._ahead() > self._length:
            self._rearrange(seats)

    def decode(self) -> None:
        """One block; its tokens go to `out`."""
        job = self.job
        if self.weights is None:
            self.weights = decode.decode_weights(job.definition, job.params, job.adapter)
        before = self.drawn
        self.cache, new = decode.decode_block(
            job.definition,
            self.weights,
            self._placed(),
            *self._by_rows((self.token, self.alive, self.drawn)),
            np.int32(job.new_tokens),
            np.int32(self._ahead()),
            self._by_rows(job.draws.take(self.row)),
            job.stops,
            job.key,
            features=job.features,
            block=job.block,
        )
        new = jax.device_get(new)
        for slot in np.flatnonzero(self.alive):
            row, start, count = self.row[slot], before[slot], new["drawn"][slot] - before[slot]
            for name in ("tokens", "logps", "sampling_logps"):
                self.out[name][row, start : start + count] = new[name][slot, :count]
            self.out["lengths"][row] = start + count
            self.out["stopped"][row] = new["stopped"][slot]
        self.token, self.drawn, self.alive = (np.array(new[n]) for n in ("token", "drawn", "alive"))
        self.column += int(new["step"])

    def _read(self, chosen: list[int], width: int) -> None:
        """Reads the chosen prompts, keeps their first tokens, and seats the rows that go on."""
        job, count = self.job, len(chosen)
        padded = np.resize(chosen, multiple(power_of_two(count), self.shards))
        tokens = np.zeros((len(padded), width), np.int32)
        for index, prompt in enumerate(padded):
            tokens[index, : len(job.prompts[prompt])] = job.prompts[prompt]
        lengths = np.asarray([len(job.prompts[prompt]) for prompt in padded], np.int32)
        rows = (padded[:, None] * job.copies + np.arange(job.copies)).ravel()
        prompts, first = decode.read_prompts(
            job.definition,
            job.params,
            job.adapter,
            *self._by_rows((tokens, lengths)),
            self._by_rows(job.draws.take(rows)),
            job.stops,
            job.key,
            copies=job.copies,
            features=job.features,
            int8_cache=job.int8_cache,
        )
        first = {name: value[: count * job.copies] for name, value in jax.device_get(first).items()}
        rows = rows[: count * job.copies]
        for name in ("tokens", "logps", "sampling_logps"):
            self.out[name][rows, 0] = first[name]
        self.out["lengths"][rows] = 1
        self.out["stopped"][rows] = first["stop"]
        if job.new_tokens == 1 or first["stop"].all():
            return
        going = np.flatnonzero(~first["stop"])
        slots = np.flatnonzero(~self.alive)[: len(going)]
        source = np.full(len(self.alive), -1, np.int32)
        source[slots] = going // job.copies
        self._seat(prompts, source, width)
        self.row[slots], self.token[slots], self.drawn[slots] = rows[going], first["tokens"][going], 1
        self.starts[slots] = self.column - lengths[going // job.copies]
        self.alive[slots] = True

    def _seat(self, prompts: KVCache, source: np.ndarray, width: int) -> None:
        ahead = min(self.job.block, self.job.new_tokens - 1)
        if self.cache is None:
            self.column = width
            length = width_of(width + ahead)
            self.cache = decode.new_cache(prompts, source, np.int32(width), length=length)
            return
        if self.column < width or self.column + ahead > self._length:
            self._rearrange(None, width=width, ahead=ahead)
        self.cache = decode.seat(self._placed(), prompts, source)

    def _rearrange(self, seats: np.ndarray | None, *, width: int = 0, ahead: int = 0) -> None:
        """The given slots (all when None) in a cache with `width` columns before the next one, and room after it.

        Columns that no row needs any more are left out where that makes it shorter.
        """
        room = max(ahead, self._ahead() if self.alive.any() else 0)
        needed = int((self.column - self.starts[self.alive]).max(initial=0))
        tight = max(needed, width)
        length = width_of(tight + room)
        column = self.column if self.column >= width and width_of(self.column + room) == length else tight
        shift = column - self.column
        order = np.arange(len(self.alive)) if seats is None else seats
        self.cache = decode.rearranged(
            self._placed(), order.astype(np.int32), np.int32(shift) if shift else None, length=length
        )
        if seats is not None:
            self.row, self.token, self.drawn = self.row[seats], self.token[seats], self.drawn[seats]
            self.starts, self.alive = self.starts[seats], self.alive[seats]
            # The slots that fill up to a power of two repeat rows; each row is alive once.
            self.alive &= np.arange(len(seats)) < len(np.unique(seats))
        self.starts, self.column = self.starts + shift, column

    def _placed(self) -> KVCache:
        """The cache, with the columns that the host keeps."""
        assert self.cache is not None
        keys, values = self._by_rows((self.cache.keys, self.cache.values))
        starts = self.starts.astype(np.int32)
        return replace(self.cache, keys=keys, values=values, starts=starts, column=np.int32(self.column))

    def _by_rows(self, tree: Any) -> Any:
        """Arrays, on a mesh split by rows over the devices that share them."""
        if self.mesh is None:
            return tree
        rows = NamedSharding(self.mesh, PartitionSpec(DEFAULT_RULES["batch"]))
        return jax.device_put(tree, rows)

    def _ahead(self) -> int:
        """Tokens of the next block."""
        return min(self.job.block, self.job.new_tokens - int(self.drawn[self.alive].min()))

    def _free(self) -> int:
        """Prompts whose completions find a slot each."""
        return int((~self.alive).sum()) // self.job.copies

    @property
    def _length(self) -> int:
        return 0 if self.cache is None else self.cache.length


def width_of(length: int, limit: int | None = None) -> int:
    """`length` rounded up to a bucket, but not beyond `limit` where that has room for it."""
    width = width_bucket(length)
    return width if limit is None else min(width, max(limit, length))


def slots_of(rows: int, copies: int, max_rows: int, shards: int) -> int:
    """Slots for so many completions; devices that share the rows of a batch have equally many."""
    return multiple(min(power_of_two(rows), max(max_rows, copies)), shards)


def most_columns(prompt: int, new_tokens: int, block: int, limit: int) -> int:
    """Columns that the cache grows to, at most, for prompts of that length and less."""
    return max(
        width_of(width_of(prompt, limit) + min(block, new_tokens - 1)), width_of(prompt + new_tokens - 1)
    )


def multiple(count: int, of: int) -> int:
    """`count` rounded up to a multiple."""
    return -(-count // of) * of


def power_of_two(count: int) -> int:
    """The smallest that is `count` or more."""
    return 1 << max(count - 1, 0).bit_length()
