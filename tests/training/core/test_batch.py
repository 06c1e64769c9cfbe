"""Batches on the device: the columns that they take."""

import numpy as np
import pytest

from jaxalign.training.core.batch import CompletionBatch, TokenBatch
from jaxalign.training.preference.objectives import PreferenceBatch
from tests.training.cases import rows


def test_a_batch_and_its_columns_are_inverse():
    columns = rows(8, 2) | {f"kl_{name}": x for name, x in rows(8, 2, seed=1).items() if name != "valid"}
    batch = PreferenceBatch.of(columns)
    again = PreferenceBatch.of(batch.columns())
    np.testing.assert_array_equal(again.mismatched.tokens, columns["kl_tokens"])
    np.testing.assert_array_equal(again.tokens, columns["tokens"])
    # Of a pair the first completion is the desirable one.
    assert again.desirable.tolist() == [[True, False]] * 8


def test_no_token_of_a_filler_counts():
    batch = TokenBatch.of(rows(8))
    assert not batch.valid.all()
    assert not batch.rows().mask[~batch.valid].any() and batch.rows().mask[batch.valid].any()
    pairs = CompletionBatch.of(rows(8, 2)).rows()
    assert pairs.tokens.shape == (16, 12) and not pairs.mask[10:12].any()


def test_a_missing_column_is_named():
    columns = {name: x for name, x in rows(8).items() if name != "lengths"}
    with pytest.raises(
        TypeError, match=r"^TokenBatch: missing column lengths; there are mask, tokens, valid$"
    ):
        TokenBatch.of(columns)
