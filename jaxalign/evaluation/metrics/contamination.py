"""Whether a benchmark's texts lie in the training data: n-grams of words that both have.

The benchmark's n-grams are kept, as 17 bytes each; training texts are read one by one and never held.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

# Words of an n-gram, and the fewest of a row that is looked for inside of longer texts.
WORDS, LEAST = 13, 8
_WORD = re.compile(r"[^\W_]+")
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
UNKNOWN = 0


@dataclass(frozen=True, kw_only=True)
class Contaminated:
    """A benchmark row that training data hold, in part or whole.

    Attributes:
      row: of the benchmark, from 0.
      training_row: the first training text that shares an n-gram with it, from 0.
      ngram: the first words of that text that both have, lower-cased, with a space between.
    """

    row: int
    training_row: int
    ngram: str


def words_of(text: str) -> list[str]:
    """Lower-cased words: runs of letters and digits; punctuation parts them and is left out."""
    return _WORD.findall(text.lower())


def contaminated_rows(
    benchmark: Sequence[str], training: Iterable[str], *, n: int = WORDS, least: int = LEAST
) -> list[Contaminated]:
    """The benchmark rows that share an n-gram of words with a training text.

    A row of fewer than n words is looked for whole: anywhere in a training text where it has `least` words or more, and
    else as a whole training text, since a few common words prove nothing. A row without words is never found.

    In scripts that put no space between words an n-gram is n runs of letters, hence far longer.

    Args:
      benchmark: texts; for questions with choices, say, the question alone, without instructions that all rows share.
      training: texts, in any number: an iterator is read once.
      n: words of an n-gram.
      least: see above; at most n.

    Returns:
      one for each row that was found, by row.

    Raises:
      ValueError: not 1 <= least <= n.

    Source: arXiv:2005.14165, appendix C: n-grams of 13 words at most and 8 at least, without case and punctuation.
    There n depends on the benchmark's lengths, and the text around a collision is removed from the training data.
    """
    if not 1 <= least <= n:
        raise ValueError(f"expected 1 <= least <= n, got least {least} and n {n}")
    index = _Index(benchmark, n, least)
    found: dict[int, Contaminated] = {}
    for number, text in enumerate(training):
        words = words_of(text)
        for row, start, size in index.matches(words):
            if row not in found:
                ngram = " ".join(words[start : start + size])
                found[row] = Contaminated(row=row, training_row=number, ngram=ngram)
    return [found[row] for row in sorted(found)]


class _Index:
    """The n-grams of the benchmark, by their hash and size."""

    def __init__(self, benchmark: Sequence[str], n: int, least: int) -> None:
        self._ids: dict[str, int] = {}  # from 1: 0 is for words that the benchmark has not
        self._least = least
        self._rows = [
            np.asarray([self._ids.setdefault(word, len(self._ids) + 1) for word in words_of(text)], np.int32)
            for text in benchmark
        ]
        sizes = [min(len(ids), n) for ids in self._rows]
        self._tables = {
            size: _table([(row, ids) for row, ids in enumerate(self._rows) if sizes[row] == size], size)
            for size in sorted(set(sizes) - {0})
        }

    def matches(self, words: Sequence[str]) -> Iterator[tuple[int, int, int]]:
        """(row, first word of the text, words) of each n-gram that a text is the first to share with a row."""
        ids = np.asarray([self._ids.get(word, UNKNOWN) for word in words], np.int32)
        for size, (hashes, rows, starts, unseen) in self._tables.items():
            if len(ids) < size or (size < self._least and len(ids) != size):
                continue
            own = _hashes(ids, size)
            first, end = (np.searchsorted(hashes, own, side) for side in ("left", "right"))
            for place in np.nonzero(end > first)[0]:
                among = slice(first[place], end[place])
                for entry in first[place] + np.nonzero(unseen[among])[0]:
                    row, start = int(rows[entry]), int(starts[entry])
                    # Two n-grams of one hash need not be the same.
                    if np.array_equal(self._rows[row][start : start + size], ids[place : place + size]):
                        # Or else one that many rows share would cost as much with every training text.
                        unseen[entry] = False
                        yield row, int(place), size


def _table(
    rows: Sequence[tuple[int, np.ndarray]], size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Hashes of all n-grams, sorted; the row of each, and where it starts there (int32); whether it is unseen."""
    hashes = np.concatenate([_hashes(ids, size) for _, ids in rows])
    numbers = np.concatenate([np.full(len(ids) - size + 1, row, np.int32) for row, ids in rows])
    starts = np.concatenate([np.arange(len(ids) - size + 1, dtype=np.int32) for _, ids in rows])
    order = np.argsort(hashes, kind="stable")
    return hashes[order], numbers[order], starts[order], np.ones(len(order), bool)


def _hashes(ids: np.ndarray, size: int) -> np.ndarray:
    """uint64 [T - size + 1]: a number for each n-gram, by products that wrap around."""
    count = len(ids) - size + 1
    wide, found = ids.astype(np.uint64), np.zeros(count, np.uint64)
    for place in range(size):
        found = found * _FACTOR + wide[place : place + count]
    return found
