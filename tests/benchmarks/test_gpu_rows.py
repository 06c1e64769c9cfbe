"""What the rows of `benchmarks/gpu.py` count, and that they do what is counted."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import models
from jaxalign.models import LoraConfig
from jaxalign.rollout import continuous_batching, decode


def test_packed_rows_are_as_many_as_asked_for_and_nearly_full(benchmark):
    batch = benchmark("gpu_rows").packed_batch(512, 4, 1024)
    places = batch.packing.flat_indices
    assert places.shape == (4, 1024)
    filled = (places < batch.tokens.size).sum()
    assert filled == batch.lengths.sum() and 0.9 * 4 * 1024 < filled <= 4 * 1024
    assert (batch.lengths == 1024).sum() == 2 and len(batch.lengths) > 6
    assert batch.mask.sum() == filled - len(batch.lengths)
    short = benchmark("gpu_rows").packed_batch(512, 2, 64)  # dialogues longer than a row are cut
    assert short.packing.flat_indices.shape == (2, 64) and short.lengths.max() == 64


def test_operations_are_those_of_the_products(benchmark):
    rows = benchmark("gpu_rows")
    config, lengths = rows.config_of("tiny"), np.array([5, 3])
    # Tied: every parameter multiplies; vocabulary 512, width 64: norms are counted too, which are few.
    matrices = 6 * 1000 * 8
    attention = 3 * 4 * config.num_layers * config.hidden_size * (25 / 2 + 9 / 2)
    assert rows.operations(config, 1000, lengths) == pytest.approx(matrices + attention)
    frozen = rows.operations(config, 1000, lengths, lora=True)
    assert frozen == pytest.approx(matrices * 4 / 6 + attention)


def test_the_shape_of_1B_has_the_parameters_and_operations_that_are_derived_by_hand(benchmark):
    rows = benchmark("gpu_rows")
    config = rows.config_of("1B")
    params = jax.eval_shape(lambda: models.split(models.create(config, key=jax.random.key(0)))[1])
    count = models.params_count(params)
    layer = 2 * 2048 * 2048 + 2 * 2048 * 512 + 3 * 2048 * 8192
    assert count == 16 * layer + 128_256 * 2048 + 33 * 2048 == 1_235_814_400
    row = 6 * count * 2048 + 6 * 16 * 2048 * 2048 * 2048
    assert rows.operations(config, count, [2048]) == pytest.approx(row)


@pytest.mark.long
@pytest.mark.parametrize("lora", [False, True])
def test_operations_are_within_a_tenth_of_those_that_xla_counts(benchmark, lora):
    rows = benchmark("gpu_rows")
    config = dataclasses.replace(
        rows.config_of("tiny"),
        hidden_size=128,
        intermediate_size=384,
        head_dim=32,
        num_layers=6,
        compute_dtype="float32",
        attention="plain",
    )
    definition, params = rows.model_of(config, "float32")
    settings = LoraConfig(enabled=True, rank=1)
    trained = models.create_adapter(config, settings, key=jax.random.key(1)) if lora else params
    tokens = jnp.zeros((2, 96), jnp.int32)

    def loss(trained, params):
        adapter = models.attach(trained, settings) if lora else None
        model = models.merge(definition, params if lora else trained)
        return jax.nn.logsumexp(model(tokens, adapter=adapter), axis=-1).sum()

    found = jax.jit(jax.grad(loss)).lower(trained, params).compile().cost_analysis()["flops"]
    lengths = [96, 96]
    counted = rows.operations(config, models.params_count(params), lengths, lora=lora)
    # The plain form computes whole squares.
    attention = counted - rows.operations(config, models.params_count(params), [1] * 192, lora=lora)
    assert found == pytest.approx(counted + attention, rel=0.1)


@pytest.mark.slow
def test_decoding_times_the_steps_it_says_and_moves_no_cache(benchmark, monkeypatch):
    rows, blocks, block = benchmark("gpu_rows"), [], decode.decode_block

    def recorded(definition, weights, cache, *arguments, **options):
        column, length = int(cache.column), cache.length
        cache, new = block(definition, weights, cache, *arguments, **options)
        # The columns that each step saw filled.
        blocks.append([column + 1 + step for step in range(int(new["step"]))])
        assert length == 64
        return cache, new

    def moved(*_, **__):
        raise AssertionError("the cache was moved")

    monkeypatch.setattr(decode, "decode_block", recorded)
    monkeypatch.setattr(continuous_batching._Slots, "_rearrange", moved)
    row = rows.decoding(rows.config_of("tiny"), 8, 48, 16)
    first, *_, short, whole, last = blocks
    assert first == short == [49, 50, 51] and whole == last == list(range(49, 64))
    assert row["filled"] == pytest.approx(np.mean(whole[len(short) :]) / 64)


def test_all_rows_decode_without_moving_the_cache(benchmark):
    found = [row for name, (_, row) in benchmark("gpu").ROWS.items() if name.startswith("decode")]
    assert len(found) == 7
    for rows, prompt, new in found:
        lengths = {continuous_batching.width_of(prompt + min(64, tokens - 1)) for tokens in (new // 4, new)}
        assert continuous_batching.width_of(prompt) == prompt and lengths == {prompt + new}
        assert rows % benchmark("gpu_rows").COPIES == 0


@pytest.mark.slow
def test_grpo_scores_what_was_sampled_in_its_first_update_only(benchmark, monkeypatch):
    rows, asked = benchmark("gpu_rows"), []
    real = rows.Trainer.score_completions

    def recorded(self, number, batch, completions):
        asked.append(number)
        assert completions.lengths.tolist() == [16] * 8
        return real(self, number, batch, completions)

    monkeypatch.setattr(rows.Trainer, "score_completions", recorded)
    row = rows.grpo(rows.config_of("tiny"), 2, 4, 16, 16)
    assert asked == [1]
    assert row["sample"] + row["score"] + row["optimize"] == pytest.approx(1)
    assert row["logp_gap"] < 0.1
