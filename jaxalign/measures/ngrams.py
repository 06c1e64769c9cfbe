"""n-grams of words: how varied texts are, and how much one repeats itself."""

from collections.abc import Sequence


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Different n-grams of words as a share of all, over all texts together.

    distinct-n = |set of n-grams| / |n-grams|

    Words are what white space parts; no n-gram spans two texts. It falls as texts grow in number and length: compare
    only figures over equally much text.

    Args:
      texts: of one model.
      n: words of an n-gram, at least 1.

    Returns:
      in (0, 1]; NaN where no text has n words.

    Raises:
      ValueError: n is less than 1.

    Source: arXiv:1510.03055, which divides by words rather than by n-grams; n-grams, as later work has
    it, let 1 mean that none repeats.
    """
    _check(n)
    seen, total = set(), 0
    for text in texts:
        grams = _ngrams(text, n)
        seen.update(grams)
        total += len(grams)
    return len(seen) / total if total else float("nan")


def repetition(text: str, n: int = 4) -> float:
    """Share of a text's n-grams of words that it has said before.

    rep-n = 1 - |set of n-grams| / |n-grams|

    Args:
      text: of which white space parts the words.
      n: words of an n-gram, at least 1.

    Returns:
      in [0, 1); 0 where the text has fewer than n words, and so repeats nothing.

    Raises:
      ValueError: n is less than 1.

    Source: seq-rep-n of arXiv:1908.04319, there over tokens.
    """
    _check(n)
    grams = _ngrams(text, n)
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


def _check(n: int) -> None:
    if n < 1:
        raise ValueError(f"n must be 1 or more, got {n}")


def _ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    words = text.split()
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
