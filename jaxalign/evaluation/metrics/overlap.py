"""How much of a text's words or letters a reference shares: BLEU, chrF, ROUGE, by the libraries that define them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxalign.errors import UserError

ROUGE = ("rouge1", "rouge2", "rougeL")


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """How alike texts are to their references.

    Attributes:
      value: of all texts: from their summed counts (BLEU, chrF), or the mean over texts (ROUGE).
      per_text: of each text.
    """

    value: float
    per_text: tuple[float, ...]


def bleu(
    texts: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    tokenize: str = "13a",
    lowercase: bool = False,
) -> Overlap:
    """BLEU-4 by sacrebleu, in [0, 100].

    Exponential smoothing. Per text, orders longer than the text do not count (effective order); over all texts they do.

    Args:
      texts: at least one.
      references: at least one for each text; numbers may differ.
      tokenize: sacrebleu's tokenizer: 13a, intl, zh, ja-mecab, char, none.
      lowercase: ignore case.

    Raises:
      ValueError: no text, or texts without reference.
      UserError: sacrebleu is not installed.

    Source: Papineni et al., 2002 (ACL); the tokenizer and smoothing: arXiv:1804.08771.
    """
    _check(texts, references)
    metric = sacrebleu_module().metrics.BLEU
    options = {"tokenize": tokenize, "lowercase": lowercase}
    return _scored(metric(**options), metric(**options, effective_order=True), texts, references)


def chrf(texts: Sequence[str], references: Sequence[Sequence[str]], *, word_order: int = 0) -> Overlap:
    """chrF2 by sacrebleu: F-score (recall weighs twice) of n-grams of 1 to 6 letters, in [0, 100].

    Args:
      texts: at least one.
      references: at least one for each text; the best counts.
      word_order: 2 for chrF++, which counts n-grams of words too.

    Raises:
      ValueError: no text, or texts without reference.
      UserError: sacrebleu is not installed.

    Source: Popović, 2015 (WMT); chrF++: Popović, 2017 (WMT).
    """
    _check(texts, references)
    metric = sacrebleu_module().metrics.CHRF(word_order=word_order)
    return _scored(metric, metric, texts, references)


def rouge(
    texts: Sequence[str], references: Sequence[Sequence[str]], *, stem: bool = False
) -> dict[str, Overlap]:
    """ROUGE-1, ROUGE-2 and ROUGE-L by rouge-score: F1 in [0, 1] against the best reference of each.

    Words are runs of the letters a to z and digits, lower-cased: texts in other scripts score 0.

    Args:
      texts: at least one.
      references: at least one for each text; of several the one with the largest F1, for each of the three by itself.
      stem: Porter's stemmer, as summarization papers use it.

    Returns:
      `rouge1`, `rouge2`, `rougeL`.

    Raises:
      ValueError: no text, or texts without reference.
      UserError: rouge-score is not installed.

    Source: Lin, 2004 (Text Summarization Branches Out).
    """
    _check(texts, references)
    scorer = rouge_scorer(ROUGE, stem=stem)
    scores = [scorer.score_multi(list(those), text) for text, those in zip(texts, references, strict=True)]
    found = {}
    for name in ROUGE:
        values = tuple(float(score[name].fmeasure) for score in scores)
        found[name] = Overlap(value=float(np.mean(values)), per_text=values)
    return found


def truthful_generation(answer: str, correct: Sequence[str], incorrect: Sequence[str]) -> dict[str, float]:
    """TruthfulQA's generation task: is an answer more like a correct one than like any incorrect one?

    s = BLEU, ROUGE-1, ROUGE-2 or ROUGE-L of the answer and one reference, in [0, 100]
    max = max_{correct} s;  diff = max - max_{incorrect} s;  acc = 1 if diff > 0 else 0

    The conventions are those of lm-evaluation-harness's `truthfulqa_gen`: BLEU-4 of one pair with sacrebleu's `intl`
    tokenizer, exponential smoothing, case kept, and no effective order; F1 of ROUGE without a stemmer; as ROUGE-L
    rouge-score's `rougeLsum`, with a line end in place of " . ". A tie is 0. "I have no comment." is to stand among the
    correct answers (`tasks.truthfulqa.read_generation` puts it there).

    Args:
      answer: what the model wrote, without the prompt, up to the first blank line.
      correct, incorrect: reference answers, at least one each, each ended by a point.

    Returns:
      `bleu_max`, `bleu_diff`, `bleu_acc`, and the same of `rouge1`, `rouge2` and `rougeL`.

    Raises:
      ValueError: no correct or no incorrect answer.
      UserError: sacrebleu or rouge-score is not installed.

    Source: arXiv:2109.07958; EleutherAI's lm-evaluation-harness, tasks/truthfulqa.
    """
    if not correct or not incorrect:
        raise ValueError("expected at least one correct and one incorrect answer")
    scorers = {
        "bleu": sacrebleu_module().metrics.BLEU(tokenize="intl"),
        "rouge": rouge_scorer(("rouge1", "rouge2", "rougeLsum")),
    }
    best, worst = (
        [_pair_scores(scorers, answer, reference) for reference in side] for side in (correct, incorrect)
    )
    found = {}
    for name in ("bleu", *ROUGE):
        highest, against = (max(score[name] for score in side) for side in (best, worst))
        found[f"{name}_max"] = highest
        found[f"{name}_diff"] = highest - against
        found[f"{name}_acc"] = float(highest > against)
    return found


def _pair_scores(scorers: Mapping[str, Any], answer: str, reference: str) -> dict[str, float]:
    lines = [text.replace(" . ", ".\n") for text in (reference, answer)]
    found = scorers["rouge"].score(*lines)
    return {
        "bleu": float(scorers["bleu"].corpus_score([answer], [[reference]]).score),
        "rouge1": 100.0 * found["rouge1"].fmeasure,
        "rouge2": 100.0 * found["rouge2"].fmeasure,
        "rougeL": 100.0 * found["rougeLsum"].fmeasure,
    }


def sacrebleu_module() -> Any:
    """The package `sacrebleu`.

    Raises:
      UserError: it is not installed.
    """
    try:
        import sacrebleu
    except ImportError as error:
        raise UserError(f"sacrebleu is not installed ({error}): pip install 'jaxalign[eval]'") from None
    return sacrebleu


def rouge_scorer(kinds: Sequence[str], *, stem: bool = False) -> Any:
    """rouge-score's scorer of these kinds of ROUGE.

    Raises:
      UserError: rouge-score is not installed.
    """
    try:
        import rouge_score.rouge_scorer as scorers
    except ImportError as error:
        raise UserError(f"rouge-score is not installed ({error}): pip install 'jaxalign[eval]'") from None
    return scorers.RougeScorer(list(kinds), use_stemmer=stem)


def _scored(whole: Any, single: Any, texts: Sequence[str], references: Sequence[Sequence[str]]) -> Overlap:
    # sacrebleu takes the first reference of every text, then the second of every text, None where there is none.
    most = max(map(len, references))
    streams = [[those[i] if i < len(those) else None for those in references] for i in range(most)]
    value = whole.corpus_score(list(texts), streams).score
    per_text = (
        single.sentence_score(text, list(those)).score for text, those in zip(texts, references, strict=True)
    )
    return Overlap(value=float(value), per_text=tuple(map(float, per_text)))


def _check(texts: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    if not texts or len(texts) != len(references):
        raise ValueError(f"expected references for each text, got {len(texts)} texts and {len(references)}")
    for number, those in enumerate(references):
        if isinstance(those, str) or not those or not all(those):
            raise ValueError(f"text {number}: expected a list of references, at least one, none empty")
