"""n-grams of words, counted by hand; `distinct_n` is tested with the other measures of diversity."""

import pytest

from jaxalign.measures.ngrams import distinct_n, repetition


@pytest.mark.parametrize(
    ("text", "n", "expected"),
    [
        # a b a b a b: bigrams ab ba ab ba ab, two of five are new.
        ("a b a b a b", 2, 1 - 2 / 5),
        ("a b  a\nb a b", 2, 1 - 2 / 5),
        # Fourgrams: abab baba abab.
        ("a b a b a b", 4, 1 - 2 / 3),
        ("a b c d e", 4, 0.0),
        ("a a a", 1, 1 - 1 / 3),
        # Fewer words than n say nothing twice.
        ("a a a", 4, 0.0),
        ("", 4, 0.0),
    ],
)
def test_repetition_is_the_share_of_ngrams_that_were_said_before(text, n, expected):
    assert repetition(text, n) == pytest.approx(expected)


def test_repetition_is_one_texts_and_distinct_is_of_all():
    twice = "the same four words", "the same four words"
    assert [repetition(text) for text in twice] == [0.0, 0.0]
    assert distinct_n(twice, 4) == 1 / 2
    # Of one text the two add up to 1.
    assert repetition("a b a b", 2) + distinct_n(["a b a b"], 2) == pytest.approx(1)


@pytest.mark.parametrize("function", [repetition, lambda text, n: distinct_n([text], n)])
def test_an_ngram_has_a_word(function):
    with pytest.raises(ValueError, match="n must be 1 or more, got 0"):
        function("a", 0)
