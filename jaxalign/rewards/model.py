"""A reward model as a reward."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxalign import models
from jaxalign.errors import UserError
from jaxalign.rewards.base import RewardRequest, Rewards


class ModelReward:
    """Scores prompt + completion with a `ScalarModel`, [N].

    Rows are scored by the token ids that were sampled, so the model must share the
    policy's tokenizer; `vocabulary` (the policy's size) is checked where given.
    """

    def __init__(
        self, model: Any, *, batch_size: int = 32, pad_multiple: int = 32, vocabulary: int | None = None
    ) -> None:
        if vocabulary is not None and model.config.vocab_size < vocabulary:
            raise UserError(
                f"reward model: its vocabulary has {model.config.vocab_size} tokens, the policy's {vocabulary}; "
                "they must share a tokenizer"
            )
        self.config = model.config
        self.batch_size, self.pad_multiple = batch_size, pad_multiple
        definition, self.params = models.split(model)

        @jax.jit
        def forward(params, tokens, lengths):
            return models.merge(definition, params)(tokens, lengths=lengths)

        self._forward = forward

    def score(self, request: RewardRequest) -> Rewards:
        """`Rewards` with scores [N]."""
        rows = [
            [*prompt, *completion]
            for prompt, completion in zip(request.prompt_ids, request.completion_ids, strict=True)
        ]
        return Rewards(scores=self.score_rows(rows))

    def score_rows(self, rows: Sequence[Sequence[int]]) -> np.ndarray:
        """float32 [N]: the score of each row of token ids."""
        longest = max((len(row) for row in rows), default=1)
        width = -(-longest // self.pad_multiple) * self.pad_multiple
        scores = np.zeros(len(rows), np.float32)
        for start in range(0, len(rows), self.batch_size):
            part = rows[start : start + self.batch_size]
            # Filler rows keep the shape, so that one program serves every call.
            tokens = np.zeros((self.batch_size, width), np.int32)
            lengths = np.ones(self.batch_size, np.int32)
            for index, row in enumerate(part):
                tokens[index, : len(row)] = row
                lengths[index] = max(len(row), 1)
            values = np.asarray(jax.device_get(self._forward(self.params, tokens, lengths)))
            scores[start : start + len(part)] = values[: len(part)]
        return scores
