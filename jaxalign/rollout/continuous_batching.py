"""Who is decoded where: prompts take free slots, rows that end give them back, the cache follows.

The host sees the rows after each block of tokens. While prompts wait, slots that fall free
get the next ones; when none waits, the rows that are left move into half as many slots.
A row's tokens depend on none of it.

On a mesh the slots are split over the groups of devices that each decode rows of their own (`rollout.sharding`), all of
them with equally many. A group reads the prompts of the completions that it will decode, and rows never leave it.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import jax
import numpy as np

from jaxalign.buckets import width_bucket
from jaxalign.mesh import ROLLOUT_RULES, row_shards
from jaxalign.models.kv_cache import KVCache
from jaxalign.processes import fetch
from jaxalign.rollout import decode, sharding
from jaxalign.rollout.decode import RowSampling
from jaxalign.rollout.sampling import SamplerFeatures
from jaxalign.rollout.traffic import DecodeTraffic

# Prompt tokens that a group of devices reads by one program, padding included: bounds its memory.
PREFILL_TOKENS = 16_384
# The share of slots that must be free before prompts are read into them: reading few at a time is slow.
REFILL = 4
# Takes the tokens so far [N, C] and how many there are of each completion [N]; may return bool [N]: which are to end.
OnTokens = Callable[[np.ndarray, np.ndarray], np.ndarray | None]


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
      on_tokens: is called with `tokens` [N, C] and `lengths` [N] as they are after each block; completions that it
        returns True for end there.
      traffic: counts what decoding reads.
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
    traffic: DecodeTraffic = field(default_factory=DecodeTraffic)


def run(job: Job) -> dict[str, np.ndarray]:
    """Generates all completions.

    Returns:
      [N, C] `tokens`, `logps` and `sampling_logps`, 0 beyond the completion, and [N] `lengths`
      and `stopped` (ended by a stop token, or by `on_tokens`).
    """
    slots = _Slots(job)
    while slots.waiting or slots.alive.any():
        slots.admit()
        if slots.alive.any():
            slots.fit()
            slots.decode()
        if job.on_tokens is not None:
            slots.end(job.on_tokens(slots.out["tokens"], slots.out["lengths"]))
    return slots.out


class _Slots:
    """The rows that are being decoded. Arrays with one entry a slot mean something where it is alive."""

    def __init__(self, job: Job) -> None:
        self.job = job
        total = len(job.prompts) * job.copies
        lengths = np.asarray([len(p) for p in job.prompts])
        # Longest first: prompts of like length are read together, and later ones fit where earlier ones did.
        self.waiting = np.argsort(-lengths, kind="stable").tolist()
        self.mesh = sharding.mesh_of(job.definition.config)
        # The programs of one device are called as if there were no mesh.
        self.on_mesh = {} if self.mesh is None else {"mesh": self.mesh}
        self.groups = 1 if self.mesh is None else row_shards(self.mesh, ROLLOUT_RULES)
        size = slots_of(total, job.copies, job.max_rows, self.groups)
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
            count = min(len(self.waiting), self._free(), max(1, PREFILL_TOKENS * self.groups // width))
            chosen, self.waiting = self.waiting[:count], self.waiting[count:]
            self._read(chosen, width)

    def fit(self) -> None:
        """Halves the slots as long as that suffices, and makes room for the next block."""
        alive, seats = self._by_group(self.alive), None
        most = int(alive.sum(1).max())
        if not self.waiting and most <= alive.shape[1] // 2:
            fewer = power_of_two(most)
            if fewer < alive.shape[1]:
                seats = np.stack([np.resize(np.flatnonzero(a) if a.any() else [0], fewer) for a in alive])
        if seats is not None or self.column + self._ahead() > self._length:
            self._rearrange(seats)

    def decode(self) -> None:
        """One block; its tokens go to `out`."""
        job = self.job
        if self.weights is None:
            self.weights = decode.decode_weights(job.definition, job.params, job.adapter)
        before, began = self.drawn, time.perf_counter()
        rows = (self.token, self.alive, self.drawn, job.draws.take(self.row))
        token, alive, drawn, draws = sharding.by_rows(rows, self.mesh)
        cache, new = decode.decode_block(
            job.definition,
            self.weights,
            self._placed(),
            token,
            alive,
            drawn,
            np.int32(job.new_tokens),
            np.int32(self._ahead()),
            draws,
            job.stops,
            job.key,
            features=job.features,
            block=job.block,
        )
        self.cache, new = cache, fetch(new)
        job.traffic.add(
            self.weights,
            (cache.keys, cache.values),
            steps=int(new["step"]),
            seconds=time.perf_counter() - began,
        )
        for slot in np.flatnonzero(self.alive):
            row, start, count = self.row[slot], before[slot], new["drawn"][slot] - before[slot]
            for name in ("tokens", "logps", "sampling_logps"):
                self.out[name][row, start : start + count] = new[name][slot, :count]
            self.out["lengths"][row] = start + count
            self.out["stopped"][row] = new["stopped"][slot]
        self.token, self.drawn, self.alive = (np.array(new[n]) for n in ("token", "drawn", "alive"))
        self.column += int(new["step"])

    def end(self, ended: np.ndarray | None) -> None:
        """Ends the completions [N] that are still being decoded and for which `ended` is True."""
        if ended is None:
            return
        gone = self.alive & np.asarray(ended, bool)[self.row]
        self.out["stopped"][self.row[gone]] = True
        self.alive &= ~gone

    def _read(self, chosen: list[int], width: int) -> None:
        """Reads the chosen prompts, keeps their first tokens, and seats the rows that go on."""
        job, copies = self.job, self.job.copies
        seats = self._seats(len(chosen) * copies)
        group, prompt = seats // (len(self.alive) // self.groups), np.repeat(np.arange(len(chosen)), copies)
        own = [np.unique(prompt[group == g]) for g in range(self.groups)]
        share = power_of_two(max(map(len, own)))
        # A group without any reads one all the same.
        padded = np.asarray(chosen)[[np.resize(n if len(n) else [0], share) for n in own]].ravel()
        tokens = np.zeros((len(padded), width), np.int32)
        for index, number in enumerate(padded):
            tokens[index, : len(job.prompts[number])] = job.prompts[number]
        lengths = np.asarray([len(job.prompts[number]) for number in padded], np.int32)
        read = (padded[:, None] * copies + np.arange(copies)).ravel()
        given = sharding.by_rows((tokens, lengths, job.draws.take(read)), self.mesh)
        prompts, first = decode.read_prompts(
            job.definition,
            job.params,
            job.adapter,
            *given,
            job.stops,
            job.key,
            copies=copies,
            features=job.features,
            int8_cache=job.int8_cache,
        )
        # Where its group has read each completion's prompt, counted from the group's first.
        at = np.concatenate([np.searchsorted(n, prompt[group == g]) for g, n in enumerate(own)])
        drawn = (group * share + at) * copies + np.tile(np.arange(copies), len(chosen))
        first = {name: value[drawn] for name, value in fetch(first).items()}
        rows = read[drawn]
        for name in ("tokens", "logps", "sampling_logps"):
            self.out[name][rows, 0] = first[name]
        self.out["lengths"][rows] = 1
        self.out["stopped"][rows] = first["stop"]
        if job.new_tokens == 1 or first["stop"].all():
            return
        going = np.flatnonzero(~first["stop"])
        slots = [seats[group == g][: (group[going] == g).sum()] for g in range(self.groups)]
        slots = np.concatenate(slots)
        source = np.full(len(self.alive), -1, np.int32)
        source[slots] = at[going]
        self._seat(prompts, source, width)
        self.row[slots], self.token[slots], self.drawn[slots] = rows[going], first["tokens"][going], 1
        self.starts[slots] = self.column - lengths[drawn[going] // copies]
        self.alive[slots] = True

    def _seats(self, count: int) -> np.ndarray:
        """So many free slots, in order, of the groups that have the fewest rows."""
        alive = self._by_group(self.alive)
        filled = (alive.sum(1, keepdims=True) + np.cumsum(~alive, axis=1)).ravel()
        free = np.flatnonzero(~self.alive)
        return np.sort(free[np.argsort(filled[free], kind="stable")[:count]])

    def _seat(self, prompts: KVCache, source: np.ndarray, width: int) -> None:
        ahead = min(self.job.block, self.job.new_tokens - 1)
        if self.cache is None:
            self.column = width
            length = width_of(width + ahead)
            source = sharding.by_rows(source, self.mesh)
            self.cache = decode.new_cache(prompts, source, np.int32(width), length=length, **self.on_mesh)
            return
        if self.column < width or self.column + ahead > self._length:
            self._rearrange(None, width=width, ahead=ahead)
        source = sharding.by_rows(source, self.mesh)
        self.cache = decode.seat(self._placed(), prompts, source, **self.on_mesh)

    def _rearrange(self, seats: np.ndarray | None, *, width: int = 0, ahead: int = 0) -> None:
        """The given slots (all when None) in a cache with `width` columns before the next one, and room after it.

        Slots are given by group, counted from its first.

        Columns that no row needs any more are left out where that makes it shorter.
        """
        room = max(ahead, self._ahead() if self.alive.any() else 0)
        needed = int((self.column - self.starts[self.alive]).max(initial=0))
        tight = max(needed, width)
        length = width_of(tight + room)
        column = self.column if self.column >= width and width_of(self.column + room) == length else tight
        shift = column - self.column
        alive = self._by_group(self.alive)
        order = np.broadcast_to(np.arange(alive.shape[1]), alive.shape) if seats is None else seats
        self.cache = decode.rearranged(
            self._placed(),
            sharding.by_rows(order.ravel().astype(np.int32), self.mesh),
            np.int32(shift) if shift else None,
            length=length,
            **self.on_mesh,
        )
        if seats is not None:
            slots = (seats + np.arange(self.groups)[:, None] * alive.shape[1]).ravel()
            self.row, self.token, self.drawn = self.row[slots], self.token[slots], self.drawn[slots]
            self.starts = self.starts[slots]
            # The slots that fill up to a power of two repeat rows; each row is alive once.
            self.alive = (np.arange(seats.shape[1]) < alive.sum(1)[:, None]).ravel()
        self.starts, self.column = self.starts + shift, column

    def _placed(self) -> KVCache:
        """The cache, with the columns that the host keeps."""
        assert self.cache is not None
        starts = sharding.by_rows(self.starts.astype(np.int32), self.mesh)
        return replace(self.cache, starts=starts, column=np.int32(self.column))

    def _by_group(self, of_slots: np.ndarray) -> np.ndarray:
        """An array with an entry a slot, [groups, slots of each]."""
        return of_slots.reshape(self.groups, -1)

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


def prompts_read(prompts: int, copies: int, slots: int, width: int, groups: int) -> int:
    """Rows of the first program that reads prompts, with those that fill it up; no later one has more.

    Args:
      prompts: how many there are, none longer than `width` columns.
      copies: completions of each.
      slots: of all groups.
      width: columns of a row.
      groups: that share the rows.
    """
    count = min(prompts, slots // copies, max(1, PREFILL_TOKENS * groups // width))
    each, more = divmod(count * copies, groups)
    edges = [group * each + min(group, more) for group in range(groups + 1)]
    shares = [(end - 1) // copies - start // copies + 1 for start, end in pairwise(edges) if end > start]
    return groups * power_of_two(max(shares))


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
