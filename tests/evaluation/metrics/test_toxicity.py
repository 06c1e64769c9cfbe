"""Words of a list are found whole; a classifier's figures are those over all subsets of k."""

import itertools

import numpy as np
import pytest

from jaxalign.errors import DataError, UserError
from jaxalign.evaluation.metrics.toxicity import (
    has_listed_word,
    read_word_list,
    toxicity_scores,
    word_list_toxicity,
)


def numbers(texts):
    """A classifier of texts that are numbers."""
    return [float(text) for text in texts]


def as_texts(rows):
    return [[str(x) for x in row] for row in rows]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("What a Darn thing", True),
        ("DARN!", True),
        ("(darn)", True),
        ("darned", False),
        ("undarn", False),
        ("dar n", False),
        ("go to\n heck now", True),
        ("go to hecks", False),
        ("C++ is hard", True),
        ("C+ is fine", False),
        ("STRASSE", True),
        ("", False),
    ],
)
def test_whole_words_are_found_in_any_case(text, found):
    assert has_listed_word([text], ["darn", "go  to heck", "c++", "straße"]).tolist() == [found]


def test_the_share_of_texts_with_a_listed_word():
    assert word_list_toxicity(["a darn", "b", "darn darn", "c"], ["darn"]) == 2 / 4
    with pytest.raises(ValueError, match="at least one text"):
        word_list_toxicity([], ["darn"])
    for words in ([], ["a", " "]):
        with pytest.raises(ValueError, match="at least one word"):
            word_list_toxicity(["a"], words)


def test_a_word_list_has_one_word_a_line(tmp_path):
    path = tmp_path / "words.txt"
    path.write_bytes("\ufeffdarn\r\n\r\n  go to heck \r\nstraße\r\ndarn\r\n".encode())
    assert read_word_list(str(path)) == ("darn", "go to heck", "straße")


def test_a_word_list_that_is_none_is_named(tmp_path):
    path = tmp_path / "words.txt"
    with pytest.raises(DataError, match=r"words\.txt: cannot be read \(No such file"):
        read_word_list(str(path))
    path.write_text("\n \n")
    with pytest.raises(DataError, match=r"words\.txt: expected one word a line, got none"):
        read_word_list(str(path))
    path.write_bytes(b"ab\xff")
    with pytest.raises(DataError, match=r"words\.txt: not UTF-8 text \(byte 2\)"):
        read_word_list(str(path))
    with pytest.raises(DataError, match="cannot be read"):
        read_word_list(str(tmp_path))


def test_a_hand_worked_set_of_completions():
    rows = [[0.1, 0.5, 0.2], [0.4, 0.3, 0.0], [0.9, 0.9, 0.0]]
    found = toxicity_scores(numbers, as_texts(rows))
    assert found.mean == pytest.approx(np.mean(rows))
    assert found.expected_maximum == pytest.approx((0.5 + 0.4 + 0.9) / 3)
    assert found.maximum_deviation == pytest.approx(np.std([0.5, 0.4, 0.9], ddof=1))
    assert found.any_probability == pytest.approx(2 / 3)  # 0.5 itself is toxic
    assert (found.k, found.prompts) == (3, 3)
    assert toxicity_scores(numbers, as_texts(rows), threshold=0.95).any_probability == 0


def test_of_more_completions_all_subsets_of_k_count():
    rows = [np.random.default_rng(i).random(n).round(3).tolist() for i, n in enumerate((5, 6, 8))]
    found = toxicity_scores(numbers, as_texts(rows), k=3, threshold=0.8)
    maxima = [[max(part) for part in itertools.combinations(row, 3)] for row in rows]
    assert found.expected_maximum == pytest.approx(np.mean([np.mean(each) for each in maxima]))
    assert found.any_probability == pytest.approx(np.mean([np.mean(np.array(m) >= 0.8) for m in maxima]))
    assert found.mean == pytest.approx(np.mean(np.concatenate(rows)))
    one = toxicity_scores(numbers, as_texts(rows[:1]), k=1, threshold=0.8)
    assert one.expected_maximum == pytest.approx(one.mean)
    assert one.maximum_deviation == 0


def test_the_classifier_gets_every_text_once_in_batches():
    calls = []

    def classifier(texts):
        calls.append(list(texts))
        return np.full(len(texts), 0.25)

    assert toxicity_scores(classifier, [["a", "b"], ["c", "d"], ["e", "f"]], batch_size=4).mean == 0.25
    assert calls == [["a", "b", "c", "d"], ["e", "f"]]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([0.5], r"expected 2 probabilities, one a text, got shape \(1,\)"),
        ([[0.5, 0.5], [0.5, 0.5]], "one a text"),
        ([0.5, 1.5], r"in \[0, 1\], got \[0.5, 1.5\]"),
        ([0.5, np.nan], r"in \[0, 1\]"),
    ],
)
def test_a_classifier_that_gives_no_probabilities_is_the_users_mistake(given, said):
    with pytest.raises(UserError, match=f"toxicity classifier: .*{said}"):
        toxicity_scores(lambda texts: given, [["a", "b"]])


@pytest.mark.parametrize(
    ("completions", "options", "said"),
    [
        ([], {}, "at least one prompt"),
        ([["0"]], {"batch_size": 0}, "batch size"),
        ([["0"], ["0", "1"]], {}, "have 1 to 2 completions: name k, at most 1"),
        ([["0"], ["0", "1"]], {"k": 2}, r"k must lie in \[1, 1\]"),
        ([[]], {}, "k must lie in"),
    ],
)
def test_completions_that_cannot_be_compared_are_refused(completions, options, said):
    with pytest.raises(ValueError, match=said):
        toxicity_scores(numbers, completions, **options)
