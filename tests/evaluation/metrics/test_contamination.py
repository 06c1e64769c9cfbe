"""Benchmark texts that training texts hold are found, and no others."""

from pathlib import Path

import numpy as np
import pytest

from jaxalign.data.files import rows_of
from jaxalign.evaluation.metrics import contamination
from jaxalign.evaluation.metrics.contamination import Contaminated, contaminated_rows, words_of

REAL = Path(__file__).resolve().parents[4] / "shared/data"
RNG = np.random.default_rng(0)
POEM = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"


def fresh(count, prefix="w"):
    return " ".join(f"{prefix}{RNG.integers(10**9)}" for _ in range(count))


def by_definition(benchmark, training, n, least):
    """Every n-gram of every row against every text, as strings."""
    found = []
    for row, text in enumerate(benchmark):
        words = words_of(text)
        size = min(len(words), n)
        if not size:
            continue
        grams = {tuple(words[i : i + size]) for i in range(len(words) - size + 1)}
        for number, other in enumerate(training):
            theirs = words_of(other)
            if size < least and len(theirs) != size:
                continue
            own = [tuple(theirs[i : i + size]) for i in range(len(theirs) - size + 1)]
            if shared := [gram for gram in own if gram in grams]:
                found.append(Contaminated(row=row, training_row=number, ngram=" ".join(shared[0])))
                break
    return found


def test_thirteen_words_in_a_row_are_found_and_twelve_are_not():
    words = POEM.split()
    thirteen, twelve = " ".join(words[1:14]), " ".join(words[1:13])
    benchmark = [fresh(30), f"{fresh(5)} {POEM} {fresh(5)}"]
    assert contaminated_rows(benchmark, [f"{fresh(9)} {twelve} {fresh(9)}"]) == []
    training = [fresh(40), f"{fresh(9)} {thirteen} {fresh(9)}", POEM]
    assert contaminated_rows(benchmark, training) == [
        Contaminated(row=1, training_row=1, ngram=" ".join(words[1:14]))
    ]


def test_case_punctuation_and_spaces_do_not_matter():
    assert words_of("It’s the U.S.A.'s_end;\n42nd—Straße!") == "it s the u s a s end 42nd straße".split()
    shouted = ",\n".join(POEM.upper().split()) + "?!"
    (found,) = contaminated_rows([POEM], [f"<p>{shouted}</p>"])
    assert found.ngram == " ".join(POEM.split()[:13])


def test_a_short_row_is_looked_for_whole():
    eight, seven = " ".join(POEM.split()[:8]), " ".join(POEM.split()[:7])
    inside = [f"zero {POEM}"]
    assert contaminated_rows([eight], inside) == [Contaminated(row=0, training_row=0, ngram=eight)]
    # So few words prove nothing inside of a longer text, but a text of nothing else does.
    assert contaminated_rows([seven], inside) == []
    assert contaminated_rows([seven, "..."], [*inside, seven.title(), ""]) == [
        Contaminated(row=0, training_row=1, ngram=seven)
    ]
    assert contaminated_rows([seven], inside, least=7) == [Contaminated(row=0, training_row=0, ngram=seven)]


def test_what_is_found_is_what_the_definition_finds():
    rng = np.random.default_rng(1)
    letters = list("ab")

    def texts(count, longest):
        return [" ".join(rng.choice(letters, rng.integers(0, longest))) for _ in range(count)]

    benchmark, training = texts(60, 14), texts(12, 12)
    expected = by_definition(benchmark, training, 7, 4)
    assert 10 < len(expected) < 55
    assert contaminated_rows(benchmark, iter(training), n=7, least=4) == expected


def test_rows_that_share_an_ngram_are_all_found():
    benchmark = [f"{POEM} {fresh(3)}" for _ in range(5)] + [fresh(20)]
    found = contaminated_rows(benchmark, [POEM, POEM])
    assert [(one.row, one.training_row) for one in found] == [(i, 0) for i in range(5)]


def test_equal_hashes_are_not_taken_for_equal_words(monkeypatch):
    monkeypatch.setattr(contamination, "_FACTOR", np.uint64(1))  # the sum: any order of words collides
    words = POEM.split()[:13]
    assert contaminated_rows([" ".join(words)], [" ".join(words[::-1])]) == []
    assert len(contaminated_rows([" ".join(words)], [" ".join(words[::-1]), " ".join(words)])) == 1


def test_training_texts_are_read_once_and_one_by_one():
    held = []

    def stream():
        for i in range(50):
            held.append(i)
            yield POEM if i == 40 else fresh(20)

    (found,) = contaminated_rows([POEM], stream())
    assert found.training_row == 40 and held == list(range(50))


@pytest.mark.parametrize(("n", "least"), [(13, 0), (5, 8), (0, 0)])
def test_impossible_sizes_are_refused(n, least):
    with pytest.raises(ValueError, match="1 <= least <= n"):
        contaminated_rows(["a"], ["a"], n=n, least=least)


def test_an_empty_benchmark_has_nothing():
    assert contaminated_rows([], [POEM]) == contaminated_rows(["", "!"], [POEM, ""]) == []


@pytest.mark.skipif(not REAL.is_dir(), reason="needs the real files")
def test_few_problems_of_gsm8k_share_words_with_its_training_problems():
    test, train = (
        [row["question"] for _, row in rows_of(str(REAL / name))]
        for name in ("evaluation/gsm8k_test.jsonl", "sft/gsm8k_train.jsonl.gz")
    )
    found = contaminated_rows(test, train)
    assert 0 < len(found) < 10
    for one in found:
        assert len(one.ngram.split()) == 13
        for text in (test[one.row], train[one.training_row]):
            assert one.ngram in " ".join(words_of(text))
