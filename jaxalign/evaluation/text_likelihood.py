"""Log-likelihoods of texts, token by token as lm-evaluation-harness takes them (its release 0.4.13).

A context and what follows are tokenized together, and parted where the tokens of the context alone end; space at the
end of a context counts as the continuation's. What has no context follows the tokenizer's beginning-of-sequence token,
or its end-of-sequence token where it has no other. A text longer than the model reads at once is parted into windows:
each of its tokens is predicted once, from the tokens of its window before it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxalign.errors import UserError
from jaxalign.evaluation.likelihood import Continuation, ContinuationScorer, Likelihoods


@dataclass(frozen=True)
class TextScorer:
    """Scores texts.

    Attributes:
      scorer: scores their tokens.
      tokenizer: makes them.
    """

    scorer: ContinuationScorer
    tokenizer: Any

    @property
    def prefix(self) -> int:
        """The token that a text without context follows.

        Raises:
          UserError: the tokenizer has neither.
        """
        for token in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id):
            if token is not None:
                return int(token)
        raise UserError("the tokenizer has no beginning- or end-of-sequence token for texts without context")

    def encode(self, text: str, *, alone: bool = True) -> list[int]:
        """Token ids; `alone`: with the tokens that the tokenizer puts at the beginning, if it is not there yet."""
        bos = self.tokenizer.bos_token
        alone = alone and not (bos and text.startswith(bos))
        return list(self.tokenizer(text, add_special_tokens=alone)["input_ids"])

    def pair(self, context: str, continuation: str) -> Continuation:
        """What follows a context, which may be empty, as tokens.

        Raises:
          UserError: the continuation adds no token to the context, or more than the model reads at once.
        """
        if not context:
            tokens = self.encode(continuation, alone=False)
            if tokens[:1] == [self.prefix]:
                before, after = tokens[:1], tokens[1:]
            else:
                before, after = [self.prefix], tokens
        else:
            end = len(context.rstrip())
            whole = self.encode(context + continuation)
            before = self.encode(context[:end])
            before, after = whole[: len(before)], whole[len(before) :]
            if not before:  # a context of nothing but space
                before = [self.prefix]
        if not after:
            raise UserError(f"{continuation!r} adds no token to {context[-40:]!r}")
        if len(after) > self.scorer.context:
            raise UserError(
                f"a continuation of {len(after)} tokens, which begins with {continuation[:40]!r}: expected at most "
                f"the {self.scorer.context} that the model reads at once"
            )
        return Continuation(tuple(before), tuple(after))

    def score(
        self,
        pairs: Sequence[tuple[str, str]],
        done: Callable[[Sequence[int], Likelihoods], None] = lambda places, found: None,
    ) -> Likelihoods:
        """Log-likelihoods of continuations after their contexts; see `ContinuationScorer.score`.

        Args:
          pairs: N pairs of (context, continuation).
          done: is told of each batch.
        """
        return self.scorer.score([self.pair(*pair) for pair in pairs], done)

    def rolling(self, texts: Sequence[str], *, alone: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """(float64 [N], int64 [N]): summed log-prob of each whole text, nats, and its tokens.

        Args:
          texts: N texts.
          alone: the tokens that the tokenizer puts at the beginning are scored too, after the first one.
        """
        windows = [self._windows(self.encode(text, alone=alone)) for text in texts]
        flat = [window for of_text in windows for window in of_text]
        logps = self.scorer.score(flat).logps
        owner = np.repeat(np.arange(len(texts)), [len(of_text) for of_text in windows])
        counts = [len(window.tokens) for window in flat]
        return (
            np.bincount(owner, weights=logps, minlength=len(texts)),
            np.bincount(owner, weights=counts, minlength=len(texts)).astype(np.int64),
        )

    def _windows(self, tokens: Sequence[int]) -> list[Continuation]:
        size, row = self.scorer.context, (self.prefix, *tokens)
        found = []
        for start in range(0, len(tokens), size):
            end = min(start + size, len(tokens))
            # The last one reads as much before it as there is room for.
            first = max(0, end - size) if start else 0
            found.append(Continuation(tuple(row[first : start + 1]), tuple(row[start + 1 : end + 1])))
        return found
