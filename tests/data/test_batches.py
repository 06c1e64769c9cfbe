"""Order, position and shape of batches."""

import json
from collections import Counter
from functools import partial

import numpy as np
import pytest

from jaxalign.data import (
    BatchIterator,
    Example,
    collate_comparisons,
    collate_demonstrations,
    collate_labels,
    collate_prompts,
    collate_rankings,
    collate_steps,
    eval_batches,
)
from jaxalign.errors import DataError


def example(*lengths, best=0, margin=0.0, **columns):
    """Rows of the given lengths, the first two tokens given and the rest counted."""
    rows = tuple(tuple(range(1, n + 1)) for n in lengths)
    masks = tuple((False, False) + (True,) * (n - 2) for n in lengths)
    return Example(rows, masks, (1, 2), "p", best, margin, columns=columns)


EXAMPLES = [example(3 + i) for i in range(7)]


def iterator(examples=EXAMPLES, seed=5, size=3):
    return BatchIterator(examples, batch_size=size, seed=seed, collate=collate_demonstrations)


def row_ids(batches, count):
    return [batches.next()["row_ids"].tolist() for _ in range(count)]


def test_each_epoch_holds_every_row_once_in_a_new_order():
    drawn = [row for batch in row_ids(iterator(), 7) for row in batch]  # 21 rows: three epochs
    epochs = [drawn[:7], drawn[7:14], drawn[14:]]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_order_follows_the_seed():
    assert row_ids(iterator(), 5) == row_ids(iterator(), 5)
    assert row_ids(iterator(seed=6), 5) != row_ids(iterator(), 5)


@pytest.mark.parametrize("before", [0, 1, 4, 9])
def test_restored_iterator_goes_on_as_if_never_stopped(before):
    whole, stopped = iterator(), iterator()
    row_ids(whole, before)
    row_ids(stopped, before)
    state = json.loads(json.dumps(stopped.state()))
    fresh = iterator()
    row_ids(fresh, 2)
    fresh.restore(state)
    for _ in range(6):
        ours, theirs = fresh.next(), whole.next()
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[k], theirs[k]) for k in ours)


def test_position_of_other_data_is_refused():
    state = iterator().state()
    for other in (iterator(EXAMPLES[:6]), iterator(seed=1)):
        with pytest.raises(DataError, match="saved with other data"):
            other.restore(state)


def test_batch_larger_than_the_data_spans_epochs():
    counts = Counter(row_ids(iterator(size=20), 1)[0])
    assert set(counts) == set(range(7))
    assert sum(counts.values()) == 20
    assert max(counts.values()) == 3


def test_demonstrations_are_padded_on_the_right_to_a_ladder_width():
    batch = collate_demonstrations([example(4), example(17)], [8, 9])
    assert batch["tokens"].shape == batch["mask"].shape == (2, 32)
    assert (batch["tokens"].dtype, batch["mask"].dtype, batch["lengths"].dtype) == (np.int32, bool, np.int32)
    assert batch["tokens"][0, :5].tolist() == [1, 2, 3, 4, 0]
    assert batch["mask"].sum(1).tolist() == [2, 15]
    assert batch["lengths"].tolist() == [4, 17]
    assert batch["row_ids"].tolist() == [8, 9]
    assert batch["valid"].all()


def test_comparisons_hold_chosen_rows_then_rejected_rows():
    batch = collate_comparisons([example(3, 5, margin=0.5), example(4, 6)], [0, 1])
    assert batch["tokens"].shape == (4, 16)
    assert batch["lengths"].tolist() == [3, 4, 5, 6]
    assert batch["margin"].tolist() == [0.5, 0.0]
    assert batch["valid"].shape == batch["row_ids"].shape == (2,)


def test_rankings_keep_the_candidates_of_a_question_together():
    batch = collate_rankings([example(3, 4, 5, best=2), example(6, 7, 8, best=1)], [0, 1])
    assert batch["lengths"].tolist() == [3, 4, 5, 6, 7, 8]
    assert batch["best"].tolist() == [2, 1]
    with pytest.raises(DataError, match="same number of candidates"):
        collate_rankings([example(3, 4), example(3, 4, 5)], [0, 1])


def test_prompts_carry_their_columns():
    batch = collate_prompts([example(answer="x"), example(level=2)], [3, 4])
    assert batch["prompts"] == [[1, 2], [1, 2]]
    assert batch["columns"] == {"answer": ["x", None], "level": [None, 2]}


def labelled(first):
    """A completion of two tokens, `first` and the one after it, to a prompt of two."""
    return Example(((1, 2, first, first + 1),), ((False, False, True, True),), (1, 2), "p", labels=(True,))


def completions_beside(batch):
    return batch["kl_tokens"][:, 2].tolist()


def test_a_prompt_is_mismatched_with_the_completion_of_the_next_other_example():
    rows = {number: labelled(10 * number) for number in (1, 2, 3)}

    def beside(*numbers):
        return completions_beside(collate_labels([rows[n] for n in numbers], numbers, mismatched=True))

    assert beside(1, 2, 3) == [20, 30, 10]
    assert beside(3, 3, 1) == [10, 10, 30]
    assert beside(2, 1, 2) == [10, 20, 10]
    assert beside(2, 2) == [20, 20]


def test_a_row_that_is_left_alone_in_an_evaluation_is_mismatched_with_another():
    collate = partial(collate_labels, mismatched=True)
    *_, last = eval_batches([labelled(10 * n) for n in range(1, 6)], 2, collate)
    assert last["valid"].tolist() == [True, False]
    assert completions_beside(last) == [10, 50]


@pytest.mark.parametrize("size", [1, 3, 7, 10])
def test_evaluation_covers_every_row_once(size):
    batches = list(eval_batches(EXAMPLES, size, collate_demonstrations))
    assert all(len(b["lengths"]) == size for b in batches)
    seen = [r for b in batches for r, valid in zip(b["row_ids"].tolist(), b["valid"], strict=True) if valid]
    assert seen == list(range(7))


def test_no_example_is_an_error():
    with pytest.raises(ValueError, match="at least one example"):
        iterator([])


def test_labels_lie_where_steps_end():
    row = Example(((1, 2, 3, 4, 5),), ((False, False, True, False, True),), (1,), "p", labels=(0.25, 1.0))
    short = Example(((1, 2),), ((False, True),), (1,), "p", labels=(1.0,))
    batch = collate_steps([row, short], [0, 1])
    assert batch["labels"].dtype == np.float32
    np.testing.assert_array_equal(batch["labels"][:, :6], [[0, 0, 0.25, 0, 1, 0], [0, 1, 0, 0, 0, 0]])
    np.testing.assert_array_equal(batch["mask"].sum(1), [2, 1])
