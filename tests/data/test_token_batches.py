"""Batches of about as many tokens each: who is in them, in which shapes, in what order."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxalign.data import (
    Example,
    TokenBatches,
    collate_comparisons,
    collate_demonstrations,
    with_loss_positions,
)
from jaxalign.data.token_batches import bucket_widths
from jaxalign.errors import ConfigError, DataError

LENGTHS = np.clip(np.random.default_rng(0).lognormal(4.3, 0.7, 500), 6, 400).astype(int)


def example(*lengths):
    """Rows of the given lengths, of which the first two thirds are a prompt."""
    rows = tuple(tuple(range(1, n + 1)) for n in lengths)
    return Example(
        rows, tuple((False,) * (2 * n // 3) + (True,) * (n - 2 * n // 3) for n in lengths), (1,), ""
    )


EXAMPLES = [example(n) for n in LENGTHS]


def batches(examples=EXAMPLES, *, tokens=4096, multiple=1, seed=5, collate=collate_demonstrations, **more):
    return TokenBatches(examples, tokens=tokens, multiple=multiple, seed=seed, collate=collate, **more)


def epoch(found):
    return [found.next() for _ in range(found.per_epoch)]


def numbers(found):
    return [batch["row_ids"][batch["valid"]].tolist() for batch in found]


@pytest.mark.parametrize("multiple", [1, 4])
def test_each_epoch_has_every_example_once_in_an_order_of_its_own(multiple):
    found = batches(multiple=multiple)
    first, second = numbers(epoch(found)), numbers(epoch(found))
    for drawn in (first, second):
        assert sorted(itertools.chain(*drawn)) == list(range(500))
    assert sorted(map(sorted, first)) != sorted(map(sorted, second))
    assert numbers(epoch(batches(multiple=multiple))) == first
    assert numbers(epoch(batches(multiple=multiple, seed=6))) != first


def test_batches_have_few_shapes_of_about_as_many_tokens_and_little_padding():
    found = batches()
    drawn = epoch(found) + epoch(found)
    shapes = {batch["tokens"].shape for batch in drawn}
    assert len(shapes) <= 8
    assert all(4096 * 0.8 < rows * width <= 4096 for rows, width in shapes)
    assert sum(batch["tokens"].size for batch in drawn) < 1.35 * 2 * LENGTHS.sum()
    assert {rows for rows, _ in shapes} >= {4096 // max(width for _, width in shapes)}


def test_the_examples_of_a_batch_are_a_multiple():
    for batch in epoch(batches(multiple=4)):
        rows = len(batch["valid"])
        assert rows % 4 == 0
        assert batch["valid"].sum() > rows / 2
        assert batch["filler_tokens"] == (~batch["valid"]).sum() * batch["lengths"][0]


def test_what_does_not_fill_the_last_batches_is_missing_in_each():
    found = epoch(batches([example(16)] * 17, tokens=256, multiple=4))
    assert [batch["valid"].tolist() for batch in found] == [[True] * n + [False] * (12 - n) for n in (9, 8)]


def test_few_examples_make_one_batch_without_waste():
    (batch,) = epoch(batches([example(n) for n in (20, 30, 7, 28, 9)], tokens=100_000, multiple=2))
    assert batch["tokens"].shape == (6, 32)
    assert batch["valid"].tolist() == [True] * 5 + [False]


def test_both_rows_of_a_comparison_count():
    pairs = [example(n, n // 2) for n in LENGTHS]
    drawn = epoch(batches(pairs, collate=collate_comparisons))
    assert sorted(itertools.chain(*numbers(drawn))) == list(range(500))
    assert max(batch["tokens"].size for batch in drawn) <= 4096
    assert {batch["tokens"].shape[0] / len(batch["valid"]) for batch in drawn} == {2}


def test_the_first_epoch_begins_with_each_width_the_widest_first():
    found = batches()
    widths = [batch["tokens"].shape[1] for batch in epoch(found)]
    assert widths[: len(found.shapes)] == sorted(set(widths), reverse=True)
    again = [batch["tokens"].shape[1] for batch in epoch(found)]
    assert sorted(again) == sorted(widths)
    assert again != widths


def test_after_them_nearly_no_batch_has_another_shape_with_its_heads():
    found, seen = batches(), []
    for batch in epoch(found) + epoch(found) + epoch(found):
        heads = with_loss_positions(batch)
        seen.append((heads["tokens"].shape, heads.get("loss_positions", heads["tokens"]).size))
    begun = set(seen[: len(found.shapes)])
    assert sum(shape not in begun for shape in seen) <= 0.02 * len(seen)
    # Not by applying the head to everything: a third of the tokens count.
    assert sum(heads for _, heads in seen) < 2 * 3 * (LENGTHS - 2 * LENGTHS // 3).sum()


@pytest.mark.parametrize("before", [0, 1, 7, 40])
def test_restored_they_go_on_as_if_never_stopped(before):
    whole, stopped = batches(), batches()
    for found in (whole, stopped):
        for _ in range(before):
            found.next()
    state = json.loads(json.dumps(stopped.state()))
    fresh = batches()
    fresh.next()
    fresh.restore(state)
    for _ in range(30):
        ours, theirs = fresh.next(), whole.next()
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[k], theirs[k]) for k in ours)


def test_a_position_among_other_batches_is_refused():
    state = batches().state()
    for other in (batches(EXAMPLES[:-1]), batches(seed=1), batches(tokens=8192), batches(multiple=3)):
        with pytest.raises(DataError, match="saved with other data"):
            other.restore(state)


def test_a_budget_that_does_not_hold_the_longest_examples_is_refused_with_what_would():
    rows = [example(n, 5) for n in (20, 70)]
    with pytest.raises(
        ConfigError, match=r"batch_tokens must be at least 480, for 6 rows of 80 tokens, got 479"
    ):
        batches(rows, tokens=479, multiple=3, collate=collate_comparisons)
    assert batches(rows, tokens=480, multiple=3, collate=collate_comparisons).per_epoch == 1


@settings(deadline=None, max_examples=150)
@given(
    st.lists(st.integers(1, 100), min_size=2, max_size=60),
    st.integers(1, 4),
    st.integers(0, 200),
    st.booleans(),
)
def test_no_batch_has_fewer_examples_than_the_least(lengths, multiple, more, least_of_three):
    least = 3 if least_of_three and len(lengths) > 2 else 2
    room = -(-(2 * least - 1) // multiple) * multiple * -(-max(lengths) // 16) * 16
    found = batches([example(n) for n in lengths], tokens=room + more, multiple=multiple, least=least)
    drawn = epoch(found)
    assert min(batch["valid"].sum() for batch in drawn) >= least
    assert sorted(itertools.chain(*numbers(drawn))) == list(range(len(lengths)))
    assert all(batch["tokens"].size <= room + more and len(batch["valid"]) % multiple == 0 for batch in drawn)


def test_one_row_of_a_width_of_its_own_goes_with_others_where_a_batch_must_have_two():
    rows = [example(n) for n in (*[10] * 48, 100)]
    alone = epoch(batches(rows, tokens=384))
    assert sorted(batch["valid"].sum() for batch in alone) == [1, 24, 24]
    together = epoch(batches(rows, tokens=384, least=2))
    assert sorted(batch["valid"].sum() for batch in together) == [2, 2, *[3] * 7, 24]


def test_a_budget_that_would_leave_one_of_three_examples_alone_is_refused():
    with pytest.raises(ConfigError, match=r"must be at least 48, for 3 rows of 16 tokens, got 47"):
        batches([example(10)] * 3, tokens=47, least=2)


def test_rows_that_the_collate_function_adds_count():
    assert batches(tokens=4096, copies=2).shapes == batches(tokens=2048).shapes
    with pytest.raises(ConfigError, match=r"must be at least 160, for 2 rows of 80 tokens, got 159"):
        batches([example(70)], tokens=159, copies=2)


def test_no_example_is_an_error():
    with pytest.raises(ValueError, match="at least one example"):
        batches([])


def test_widths_hold_all_lengths_with_nearly_the_least_padding():
    for seed in range(20):
        lengths = np.clip(np.random.default_rng(seed).lognormal(4, 0.8, 60), 1, 200).astype(int)
        steps = sorted({-(-n // 16) * 16 for n in lengths.tolist()})

        def columns(widths, lengths=lengths):
            return sum(min(w for w in widths if w >= n) for n in lengths)

        found = bucket_widths(lengths, 4)
        assert len(found) == 4
        best = min(columns([*c, steps[-1]]) for c in itertools.combinations(steps[:-1], 3))
        assert columns(found) <= 1.1 * best
