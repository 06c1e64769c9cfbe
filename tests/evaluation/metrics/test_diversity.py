"""Distinct n-grams by hand; Self-BLEU against sacrebleu, text by text."""

import math
import sys

import numpy as np
import pytest

from jaxalign.errors import UserError
from jaxalign.evaluation.metrics.diversity import distinct_n, self_bleu

TEXTS = [
    "The cat sat on the mat, and the dog sat on the rug.",
    "The cat sat on the mat and purred.",
    "A dog sat on the mat, the mat, the mat!",
    "Nothing alike here at all",
    "yes",
    "",
]


def test_distinct_counts_ngrams_over_all_texts_together():
    # Words: a b a | b c -> {a, b, c} of 5; pairs: ab ba | bc -> all of 3 differ.
    assert distinct_n(["a b a", "b  c"], 1) == 3 / 5
    assert distinct_n(["a b a", "b  c"], 2) == 1
    assert distinct_n(["a b", "a b", "a"], 2) == 1 / 2
    # No n-gram spans two texts.
    assert math.isnan(distinct_n(["a", "b"], 2))


def test_ngrams_have_a_word():
    with pytest.raises(ValueError, match="n must be 1 or more"):
        distinct_n(["a"], 0)


@pytest.mark.parametrize("tokenize", ["13a", "char"])
def test_self_bleu_is_sacrebleus_with_the_others_as_references(tokenize):
    sacrebleu = pytest.importorskip("sacrebleu")
    metric = sacrebleu.metrics.BLEU(effective_order=True, tokenize=tokenize)
    texts = [text for text in TEXTS if text]
    expected = [metric.sentence_score(text, texts[:i] + texts[i + 1 :]).score for i, text in enumerate(texts)]
    assert np.ptp(expected) > 20
    found = self_bleu(texts, tokenize=tokenize)
    assert found.mean == pytest.approx(np.mean(expected), abs=1e-9)
    assert found.texts == 5


def test_self_bleu_of_texts_that_repeat_equals_sacrebleus():
    sacrebleu = pytest.importorskip("sacrebleu")
    metric = sacrebleu.metrics.BLEU(effective_order=True)
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(list("abcde"), rng.integers(1, 12))) for _ in range(30)]
    expected = [metric.sentence_score(text, texts[:i] + texts[i + 1 :]).score for i, text in enumerate(texts)]
    assert self_bleu(texts).mean == pytest.approx(np.mean(expected), abs=1e-9)


def test_equal_texts_score_100_and_different_ones_0():
    pytest.importorskip("sacrebleu")
    assert self_bleu(["one two three four five"] * 3).mean == pytest.approx(100)
    assert self_bleu(["one two three four", "five six seven eight"]).mean < 20
    assert self_bleu(["", "five six"]).mean == 0


def test_of_many_texts_a_seeded_sample_is_compared():
    pytest.importorskip("sacrebleu")
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(list("abcdefgh"), 10)) for _ in range(40)]
    found = self_bleu(texts, most=6, seed=1)
    assert found.texts == 6
    assert found == self_bleu(texts, most=6, seed=1)
    assert len({self_bleu(texts, most=6, seed=seed).mean for seed in range(5)}) > 1
    assert self_bleu(texts, most=40) == self_bleu(texts)
    assert self_bleu(texts).mean > found.mean  # more references, more that is alike


def test_one_text_is_like_nothing(monkeypatch):
    with pytest.raises(ValueError, match="at least two texts, got 1"):
        self_bleu(["a"])
    with pytest.raises(ValueError, match="at least two texts, got 1"):
        self_bleu(["a", "b"], most=1)
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(UserError, match=r"pip install 'jaxalign\[eval\]'"):
        self_bleu(["a", "b"])
