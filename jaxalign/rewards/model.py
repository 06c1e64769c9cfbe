"""A reward model as a reward."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxalign import models
from jaxalign.errors import UserError
from jaxalign.host_memory import on_device, to_host
from jaxalign.rewards.base import RewardRequest, Rewards


class ModelReward:
    """Scores prompt + completion with a `ScalarModel`, [N].

    Rows are scored by the token ids that were sampled, so the model must share the
    policy's tokenizer; `vocabulary` (the policy's size) is checked where given.
    """

    def __init__(
        self, model: Any, *, batch_size: int = 32, pad_multiple: int = 32, vocabulary: int | None = None
    ) -> None:
        check_vocabulary(model, vocabulary)
        check_scores_whole(model)
        self.config = model.config
        self.batch_size, self.pad_multiple = batch_size, pad_multiple
        self._program = program_of(model)

    def score(self, request: RewardRequest) -> Rewards:
        """`Rewards` with scores [N]."""
        return Rewards(scores=self.score_rows(request_rows(request)))

    def score_rows(self, rows: Sequence[Sequence[int]]) -> np.ndarray:
        """float32 [N]: the score of each row of token ids."""
        return in_batches(self._program, rows, batch_size=self.batch_size, pad_multiple=self.pad_multiple)

    def offload(self) -> None:
        """From now on the weights wait in the host's memory between calls."""
        self._program.offload()


@dataclass
class Program:
    """A compiled function of weights, token ids [B, T] and lengths [B], with its weights.

    Attributes:
      function: weights, tokens, lengths -> [..., B].
      params: the weights, on the device or in the host's memory.
    """

    function: Callable[[Any, Any, Any], Any]
    params: Any

    def loaded(self) -> Callable[[Any, Any], Any]:
        """(tokens, lengths) -> [..., B], with the weights on the device for as long as it is there."""
        params = on_device(self.params)
        return lambda tokens, lengths: self.function(params, tokens, lengths)

    def offload(self) -> None:
        """From now on the weights wait in the host's memory between uses."""
        self.params = to_host(self.params)


def program_of(model: Any) -> Program:
    """The scores [B] of a `ScalarModel`, compiled once a shape."""
    definition, params = models.split(model)
    function = jax.jit(
        lambda params, tokens, lengths: models.merge(definition, params)(tokens, lengths=lengths)
    )
    return Program(function, params)


def check_vocabulary(model: Any, vocabulary: int | None) -> None:
    """A reward model knows every token that the policy may sample.

    Raises:
      UserError: it does not.
    """
    if vocabulary is not None and model.config.vocab_size < vocabulary:
        raise UserError(
            f"reward model: its vocabulary has {model.config.vocab_size} tokens, the policy's {vocabulary}; "
            "they must share a tokenizer"
        )


def check_scores_whole(model: Any) -> None:
    """A reward model gives one score for a prompt with its completion.

    Raises:
      UserError: it is a process reward model.
    """
    if model.steps is not None:
        raise UserError("reward model: it scores the steps of a completion, not the whole; see ProcessReward")


def request_rows(request: RewardRequest) -> list[list[int]]:
    """The token ids of each prompt with its completion."""
    return [
        [*prompt, *completion]
        for prompt, completion in zip(request.prompt_ids, request.completion_ids, strict=True)
    ]


def in_batches(
    program: Program,
    rows: Sequence[Sequence[int]],
    *,
    batch_size: int,
    pad_multiple: int,
) -> np.ndarray:
    """Scores of rows of token ids, by a program for whole batches.

    Args:
      program: gives [..., batch_size].
      rows: N rows.
      batch_size: rows at once.
      pad_multiple: T is the longest row's length, rounded up to a multiple of it.

    Returns:
      float32 [..., N].
    """
    longest = max((len(row) for row in rows), default=1)
    width = -(-longest // pad_multiple) * pad_multiple
    parts, forward = [], program.loaded()
    for start in range(0, max(len(rows), 1), batch_size):
        part = rows[start : start + batch_size]
        # Filler rows keep the shape, so that one program serves every call.
        tokens = np.zeros((batch_size, width), np.int32)
        lengths = np.ones(batch_size, np.int32)
        for index, row in enumerate(part):
            tokens[index, : len(row)] = row
            lengths[index] = max(len(row), 1)
        values = np.asarray(jax.device_get(forward(tokens, lengths)), np.float32)
        parts.append(values[..., : len(part)])
    return np.concatenate(parts, axis=-1)
