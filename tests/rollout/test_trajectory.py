"""Prompts and completions as rows."""

import numpy as np

from jaxalign.rollout.trajectory import Rows


def test_a_batch_that_rows_do_not_fill_has_fillers_that_are_not_valid():
    tokens = np.arange(15).reshape(5, 3)
    rows = Rows(tokens, np.asarray([1, 2, 3, 2, 1]), tokens % 2 == 1, np.ones(5, np.int32))
    whole, part = rows.batch(0, 3), rows.batch(3, 3)
    np.testing.assert_array_equal(whole["tokens"], tokens[:3])
    assert whole["valid"].tolist() == [True] * 3
    np.testing.assert_array_equal(part["tokens"][:2], tokens[3:])
    np.testing.assert_array_equal(part["mask"][:2], tokens[3:] % 2 == 1)
    assert part["lengths"][:2].tolist() == [2, 1]
    assert part["valid"].tolist() == [True, True, False]
    assert {name: len(x) for name, x in part.items()} == dict.fromkeys(
        ("tokens", "lengths", "mask", "valid"), 3
    )
