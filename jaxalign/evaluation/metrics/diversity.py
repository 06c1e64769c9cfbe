"""How varied texts are: the n-grams that differ, and how alike each text is to the others."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxalign.evaluation.metrics.overlap import sacrebleu_module
from jaxalign.measures.ngrams import distinct_n as distinct_n

ORDER = 4  # of BLEU


@dataclass(frozen=True, kw_only=True)
class SelfBleu:
    """How alike texts are to one another.

    Attributes:
      mean: mean BLEU of a text against the others, in [0, 100]; low where texts are varied.
      texts: number of texts compared with one another. More texts give a higher mean: compare equal numbers only.
    """

    mean: float
    texts: int


def self_bleu(texts: Sequence[str], *, most: int = 1000, seed: int = 0, tokenize: str = "13a") -> SelfBleu:
    """Self-BLEU: the mean over texts of BLEU-4 with all other texts as references.

    BLEU is sacrebleu's for sentences: exponential smoothing, effective order. n-grams are counted once for all texts,
    since a text's references are all texts but itself: the largest count of an n-gram among the others is the largest
    of all, or the second where the text itself has that. Time grows with the n-grams, not with pairs of texts.

    Args:
      texts: at least two; of one prompt, or of a model as a whole.
      most: of more texts, so many are drawn without replacement, and compared with one another alone.
      seed: of that draw.
      tokenize: sacrebleu's tokenizer.

    Raises:
      ValueError: fewer than two texts, or `most` below 2.
      UserError: sacrebleu is not installed.

    Source: arXiv:1802.01886.
    """
    if len(texts) < 2 or most < 2:
        raise ValueError(f"expected at least two texts, got {min(len(texts), most)}")
    bleu = sacrebleu_module().metrics.BLEU(tokenize=tokenize)
    if len(texts) > most:
        chosen = np.random.default_rng(seed).choice(len(texts), most, replace=False)
        texts = [texts[int(i)] for i in np.sort(chosen)]
    words = [bleu.tokenizer(text.rstrip()).split() for text in texts]
    counts = [_ngrams(row) for row in words]
    largest = _two_largest(counts)
    lengths = np.asarray([len(row) for row in words])
    scores = []
    for row, own in enumerate(counts):
        correct, total = [0] * ORDER, [0] * ORDER
        for gram, count in own.items():
            first, second, owner = largest[gram]
            correct[len(gram) - 1] += min(count, second if owner == row else first)
            total[len(gram) - 1] += count
        others = np.delete(lengths, row)
        # The closest length; of two that are equally close, the shorter.
        closest = min(others.tolist(), key=lambda length: (abs(length - lengths[row]), length))
        score = bleu.compute_bleu(
            correct, total, int(lengths[row]), closest, smooth_method="exp", effective_order=True
        )
        scores.append(score.score)
    return SelfBleu(mean=float(np.mean(scores)), texts=len(texts))


def _ngrams(words: Sequence[str]) -> Counter[tuple[str, ...]]:
    """Counts of all n-grams of 1 to `ORDER` words."""
    sizes = range(1, ORDER + 1)
    return Counter(tuple(words[i : i + n]) for n in sizes for i in range(len(words) - n + 1))


def _two_largest(
    counts: Sequence[Counter[tuple[str, ...]]],
) -> dict[tuple[str, ...], tuple[int, int, int]]:
    """n-gram -> (largest count in a text, second largest in another text, the text with the largest)."""
    found: dict[tuple[str, ...], tuple[int, int, int]] = {}
    for row, own in enumerate(counts):
        for gram, count in own.items():
            first, second, owner = found.get(gram, (0, 0, -1))
            if count > first:
                found[gram] = (count, first, row)
            elif count > second:
                found[gram] = (first, count, owner)
    return found
