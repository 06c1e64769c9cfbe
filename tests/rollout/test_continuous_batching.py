"""Blocks, smaller batches and refilled slots give what one loop over all rows gives, in few programs."""

from pathlib import Path

import jax
import numpy as np
import pytest

from jaxalign import models
from jaxalign.buckets import WIDTHS
from jaxalign.mesh import MeshConfig, make_mesh, row_shards
from jaxalign.models.kv_cache import KVCache
from jaxalign.rollout import Sampler, continuous_batching, decode
from tests.rollout.oracle import one_loop

GOLDEN = Path(__file__).parents[1] / "golden" / "models"
KEY = jax.random.key(0)
LENGTHS = (3, 15, 5, 9, 1, 12, 16, 2, 8, 4)
STOPS = (7, 11, 20)
NEW = 20


def prompts_of(lengths, vocabulary=48, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, vocabulary, n).tolist() for n in lengths]


PROMPTS = prompts_of(LENGTHS)


@pytest.fixture(scope="module")
def model():
    return models.load_pretrained(GOLDEN / "llama")


@pytest.fixture(scope="module")
def expected(model):
    return one_loop(model, PROMPTS, key=KEY, new_tokens=NEW, stops=STOPS)


@pytest.fixture
def programs(monkeypatch):
    """Every block decoded from here on, as (rows, columns, tokens drawn)."""
    seen, block = [], decode.decode_block

    def watched(definition, weights, cache, *rest, **options):
        shape = (len(cache.starts), cache.length)
        cache, out = block(definition, weights, cache, *rest, **options)
        seen.append((*shape, int(out["step"])))
        return cache, out

    monkeypatch.setattr(decode, "decode_block", watched)
    return seen


def check(done, expected):
    tokens, logps, sampling_logps, reasons = expected
    assert done.token_lists() == tokens
    assert done.finish_reason == reasons
    # Products of other shapes round otherwise: 6e-6 of -3.9 was seen on six devices of a CPU with AVX2 alone.
    within = {"atol": 5e-6, "rtol": 2e-6}
    for row, length in enumerate(done.lengths):
        np.testing.assert_allclose(done.logps[row, :length], logps[row], **within)
        np.testing.assert_allclose(done.sampling_logps[row, :length], sampling_logps[row], **within)


def sampled(model, prompts=PROMPTS, new=NEW, stops=STOPS, block=64, max_rows=256, **arguments):
    sampler = Sampler(model, block=block, max_rows=max_rows)
    return sampler.generate(prompts, max_new_tokens=new, key=KEY, stop_tokens=stops, **arguments)


def test_the_rows_of_the_oracle_end_at_many_lengths(expected):
    lengths = [len(tokens) for tokens in expected[0]]
    assert len(set(lengths)) >= 5
    assert min(lengths) < 4
    assert max(lengths) == NEW


def test_one_block_gives_the_samples_of_one_loop(model, expected, programs):
    check(sampled(model), expected)
    assert [rows for rows, _, _ in programs] == [16]


@pytest.mark.long
@pytest.mark.parametrize("axes", [{"data": 8}, {"data": 3, "fsdp": 2}], ids=str)
def test_on_a_mesh_each_device_has_as_many_slots_while_rows_come_and_go(axes, expected, programs, devices):
    mesh = make_mesh(MeshConfig(**axes), devices)
    model = models.load_pretrained(GOLDEN / "llama", mesh=mesh)
    check(sampled(model, block=4, max_rows=4), expected)
    assert {rows % row_shards(mesh) for rows, _, _ in programs} == {0}
    assert min(rows for rows, _, _ in programs) < len(LENGTHS)


@pytest.mark.long
def test_short_blocks_give_them_and_the_batch_shrinks_as_rows_end(model, expected, programs):
    check(sampled(model, block=5), expected)
    rows, columns, _ = zip(*programs, strict=True)
    assert rows[0] == 16
    assert list(rows) == sorted(rows, reverse=True)
    assert rows[-1] <= 4
    assert len(set(columns)) >= 2
    # Never the length at which everything would fit.
    assert columns[0] < 16 + NEW


@pytest.mark.long
def test_refilled_slots_give_them_in_fewer_steps_than_batches_would_take(model, expected, programs):
    check(sampled(model, block=5, max_rows=4), expected)
    assert {rows for rows, _, _ in programs} <= {4, 2, 1}
    longest_first = np.argsort([-n for n in LENGTHS], kind="stable")
    ends = np.asarray([len(expected[0][i]) for i in longest_first])
    batches = sum(ends[start : start + 4].max() - 1 for start in range(0, len(ends), 4))
    assert sum(steps for _, _, steps in programs) < batches


@pytest.mark.long
def test_samples_of_a_prompt_find_slots_together(model):
    arguments = {"temperature": 0.8, "top_k": 20, "top_p": 0.9}
    expected = one_loop(model, PROMPTS[:4], key=KEY, new_tokens=8, stops=STOPS, copies=3, **arguments)
    check(sampled(model, PROMPTS[:4], 8, block=3, max_rows=4, num_samples=3, **arguments), expected)
    # Fewer slots than samples a prompt: one prompt at a time.
    check(sampled(model, PROMPTS[:4], 8, block=3, max_rows=2, num_samples=3, **arguments), expected)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "gemma2", "gemma3_text", "gpt_neox"])
def test_learned_positions_and_windows_survive_moved_columns(family):
    other = models.load_pretrained(GOLDEN / family)
    prompts = prompts_of((9, 3, 12, 2, 5, 1), other.config.vocab_size)
    expected = one_loop(other, prompts, key=KEY, new_tokens=12, stops=STOPS)
    check(sampled(other, prompts, 12, block=3, max_rows=2), expected)


def test_a_single_token_needs_no_cache(model, programs):
    done = sampled(model, new=1)
    check(done, one_loop(model, PROMPTS, key=KEY, new_tokens=1, stops=STOPS))
    assert programs == []


def test_rows_that_all_stop_at_once_decode_nothing_more(model, programs):
    done = sampled(model, stops=range(48))
    assert done.lengths.tolist() == [1] * len(PROMPTS)
    assert set(done.finish_reason) == {"stop"}
    assert programs == []


@pytest.mark.long
def test_the_same_sizes_compile_nothing_again(model, compiled):
    sampler = Sampler(model, block=5, max_rows=4)

    def once(prompts, seed, heat):
        sampler.generate(
            prompts, max_new_tokens=NEW, key=jax.random.key(seed), stop_tokens=(), temperature=heat
        )

    once(PROMPTS, 0, 1.0)
    compiled.clear()
    once(prompts_of(LENGTHS, seed=1), 1, 0.7)
    assert compiled == []
    sampler.update(jax.tree.map(lambda x: -x, sampler.params))
    compiled.clear()
    once(prompts_of(LENGTHS, seed=2), 2, 1.3)
    assert compiled == []
    once(PROMPTS[:3], 3, 0.0)  # greedy alone is a program of its own: it is heard
    assert compiled


class Machine:
    """The programs without a model: rows end at random, and what the host asks for is checked."""

    def __init__(self, monkeypatch, prompts, seed):
        self.rng = np.random.default_rng(seed)
        self.prompts = prompts
        self.programs = set()
        for name in ("decode_weights", "read_prompts", "new_cache", "seat", "rearranged", "decode_block"):
            monkeypatch.setattr(decode, name, getattr(self, name))

    def cache(self, rows, length):
        return KVCache((np.zeros((rows, 1, 1, length)),), (np.zeros((rows, 1, length, 1)),), None, None)

    def decode_weights(self, *_):
        return None

    def read_prompts(
        self, definition, params, adapter, tokens, lengths, draws, *_, copies, features, int8_cache
    ):
        assert not int8_cache
        self.programs.add(("read", tokens.shape, copies))
        rows = len(tokens) * copies
        assert len(draws.ids) == rows
        new = {name: np.zeros(rows) for name in ("tokens", "logps", "sampling_logps")}
        return self.cache(len(tokens), tokens.shape[1]), {**new, "stop": self.rng.random(rows) < 0.1}

    def new_cache(self, prompts, source, column, *, length):
        self.programs.add(("new", prompts.length, len(source), length))
        assert prompts.length <= column
        return self.cache(len(source), length)

    def seat(self, cache, prompts, source):
        self.programs.add(("seat", prompts.length, len(source), cache.length))
        assert prompts.length <= cache.column
        return cache

    def rearranged(self, cache, rows, shift, *, length):
        self.programs.add(("move", len(cache.starts), cache.length, len(rows), length, shift is None))
        return self.cache(len(rows), length)

    def decode_block(
        self, definition, weights, cache, token, alive, drawn, limit, steps, draws, *_, features, block
    ):
        rows = len(token)
        self.programs.add(("block", rows, cache.length))
        assert alive.any()
        assert 0 < steps <= block
        assert cache.column + steps <= cache.length
        sizes = np.asarray([len(self.prompts[i]) for i in draws.ids[alive]])
        # A row begins where its tokens say, and no two slots hold the same row.
        np.testing.assert_array_equal(cache.column - cache.starts[alive], sizes + drawn[alive] - 1)
        assert (cache.starts[alive] >= 0).all()
        assert len(set(draws.ids[alive])) == alive.sum()
        ends = np.minimum(self.rng.geometric(0.05, rows), np.minimum(steps, limit - drawn)) * alive
        step = int(ends.max())
        stopped = alive & (ends < np.minimum(steps, limit - drawn))
        blank = np.zeros((rows, block))
        out = {"tokens": blank, "logps": blank, "sampling_logps": blank, "token": token, "step": step}
        going = alive & ~stopped & (drawn + ends < limit)
        return cache, {**out, "drawn": drawn + ends, "alive": going, "stopped": stopped}


def test_random_lengths_take_a_bounded_number_of_programs(model, monkeypatch):
    programs, rng = set(), np.random.default_rng(0)
    for seed in range(200):
        lengths = rng.integers(1, 150, rng.integers(1, 33))
        prompts = [[0] * n for n in lengths]
        machine = Machine(monkeypatch, prompts, seed)
        done = sampled(model, prompts, 100, max_rows=16)
        assert (done.lengths > 0).all()
        assert all(n == 100 for n, r in zip(done.lengths, done.finish_reason, strict=True) if r == "length")
        programs |= machine.programs
    blocks = {p[1:] for p in programs if p[0] == "block"}
    # Rows: 1 to 16. Columns: what is between one block and 149 + 100 tokens, rounded up.
    assert {rows for rows, _ in blocks} <= {1, 2, 4, 8, 16}
    assert {columns for _, columns in blocks} <= set(WIDTHS)
    assert max(columns for _, columns in blocks) <= 384
    assert len(blocks) <= 40
    assert len({p for p in programs if p[0] == "read"}) <= 40


def test_a_prompt_finds_room_where_younger_rows_left_the_cache_narrow(model, monkeypatch):
    # 33 tokens are read as 48; rows that have just begun need 34 columns and what they drew.
    for seed in range(60):
        prompts = [[0] * 33] * 20
        machine = Machine(monkeypatch, prompts, seed)
        sampled(model, prompts, 100, block=4, max_rows=2)
        assert ("read", (1, 48), 1) in machine.programs


def test_widths_end_in_steps_of_2048():
    assert [continuous_batching.width_of(n) for n in (1, 8, 9, 8192, 8193, 10241)] == [
        8,
        8,
        16,
        8192,
        10240,
        12288,
    ]
    assert continuous_batching.width_of(90, limit=92) == 92
    assert continuous_batching.width_of(95, limit=92) == 95
