"""Perplexity is one mean over counted tokens, however they are batched."""

import math

import numpy as np
import pytest

from jaxalign.evaluation import perplexity


def batch(logps, mask, **more):
    return {"logps": np.asarray(logps, np.float32), "mask": np.asarray(mask, bool), **more}


def score(b):
    return b["logps"]


def test_perplexity_is_exp_of_the_mean_over_counted_tokens():
    found = perplexity(score, [batch([[-1.0, -2.0], [-3.0, -9.0]], [[1, 1], [1, 0]])])
    assert found.tokens == 3
    assert found.nats_per_token == pytest.approx((1 + 2 + 3) / 3)
    assert found.value == pytest.approx(math.exp(2.0))


def test_how_rows_are_batched_does_not_matter():
    logps = np.array([[-1.0, -2.0], [-3.0, -4.0], [-0.5, -0.1]])
    mask = np.array([[1, 1], [1, 0], [0, 1]])
    whole = perplexity(score, [batch(logps, mask)])
    split = perplexity(score, [batch(logps[:1], mask[:1]), batch(logps[1:], mask[1:])])
    assert split.value == pytest.approx(whole.value)


def test_filler_rows_and_masked_nan_do_not_count():
    rows = batch([[-1.0, np.nan], [-50.0, -50.0]], [[1, 0], [1, 1]], valid=np.array([True, False]))
    assert perplexity(score, [rows]).value == pytest.approx(math.e)


def test_no_counted_token_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        perplexity(score, [batch([[-1.0]], [[0]])])
