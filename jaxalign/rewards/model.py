"""A reward model as a reward."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from jaxalign import models
from jaxalign.buckets import bucket
from jaxalign.data.packing import MAX_SEGMENTS, best_fit_decreasing, end_to_end, segments
from jaxalign.errors import UserError
from jaxalign.host_memory import on_device, to_host
from jaxalign.rewards.base import Rewards
from jaxalign.rewards.calls import RewardRequest


class ModelReward:
    """Scores prompt + completion with a `ScalarModel`, [N].

    Rows are scored by their sampled token ids, so the model must share the policy's tokenizer.

    Args:
      model: a `ScalarModel` that gives one score.
      batch_size: packed rows scored at once; each holds several short rows.
      pad_multiple: columns of a packed row are a multiple of it.
      vocabulary: size of the policy's vocabulary, which the model's must cover; None skips the check.

    Raises:
      UserError: the model knows fewer tokens than the policy, or scores steps.
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
        found = token_scores(self._program, rows, batch_size=self.batch_size, pad_multiple=self.pad_multiple)
        return np.asarray([scores[-1] for scores in found], np.float32)

    def offload(self) -> None:
        """Keeps the weights in host memory between calls from now on."""
        self._program.offload()


@dataclass
class Program:
    """A compiled function of weights and packed rows, with its weights.

    Attributes:
      function: (weights, tokens, positions, segment_ids), int32 [R, T] -> scores [..., R, T].
      params: the weights, on the device or in the host's memory.
    """

    function: Callable[..., Any]
    params: Any

    def loaded(self) -> Callable[..., Any]:
        """(tokens, positions, segment_ids) -> scores, with the weights on the device for as long as it is there."""
        params = on_device(self.params)
        return lambda *rows: self.function(params, *rows)

    def offload(self) -> None:
        """Keeps the weights in host memory between uses from now on."""
        self.params = to_host(self.params)


def program_of(model: Any) -> Program:
    """The program of `token_scores` for a `ScalarModel`: scores [R, T], compiled once a shape."""
    definition, params = models.split(model)
    return Program(jax.jit(forward_of(definition)), params)


def forward_of(definition: Any, *, mapped: bool = False) -> Callable[..., jax.Array]:
    """(params, tokens, positions, segment_ids) -> the score after each token of packed rows.

    Args:
      definition: of a scalar model, in whatever form of attention it was trained.
      mapped: whether the function will be mapped over several models.
    """
    config = models.attention_for(definition.config, max_segments=MAX_SEGMENTS, mapped=mapped)
    definition = replace(definition, config=config)
    return lambda params, tokens, positions, segment_ids: models.merge(definition, params).per_token(
        tokens, positions=positions, segment_ids=segment_ids, max_segments=MAX_SEGMENTS
    )


def check_vocabulary(model: Any, vocabulary: int | None) -> None:
    """Checks that a reward model's vocabulary covers the policy's.

    Raises:
      UserError: it does not.
    """
    if vocabulary is not None and model.config.vocab_size < vocabulary:
        raise UserError(
            f"reward model: its vocabulary has {model.config.vocab_size} tokens, the policy's {vocabulary}; "
            "they must share a tokenizer"
        )


def check_scores_whole(model: Any) -> None:
    """Checks that a reward model gives one score per completion.

    Raises:
      UserError: it is a process reward model.
    """
    if model.steps is not None:
        raise UserError(
            "reward model: it scores the steps of a completion, not the whole completion; see ProcessReward"
        )


def request_rows(request: RewardRequest) -> list[list[int]]:
    """The token ids of each prompt with its completion."""
    return [
        [*prompt, *completion]
        for prompt, completion in zip(request.prompt_ids, request.completion_ids, strict=True)
    ]


def token_scores(
    program: Program,
    rows: Sequence[Sequence[int]],
    *,
    batch_size: int,
    pad_multiple: int,
) -> list[np.ndarray]:
    """The scores after each token of rows of token ids, computed on packed rows.

    Equal rows are scored once: where they lie would change the last bit, and ties would be none.

    Args:
      program: gives [..., R, T].
      rows: N rows; an empty one stands for a row of token 0.
      batch_size: packed rows R at most.
      pad_multiple: T is a multiple of it, R and T are of short ladders, so that few programs serve all calls.

    Returns:
      N arrays, float32 [..., length of the row].
    """
    asked = [tuple(row) or (0,) for row in rows]
    rows = list(dict.fromkeys(asked))
    lengths = [len(row) for row in rows]
    width = pad_multiple * bucket(-(-max(lengths, default=1) // pad_multiple), per_octave=4)
    bins = best_fit_decreasing(lengths, width)
    batches = max(-(-len(bins) // batch_size), 1)
    height = max(min(bucket(-(-len(bins) // batches), per_octave=4), batch_size), 1)
    size, forward = len(rows) * width, program.loaded()
    tokens = np.zeros(size + 1, np.int32)  # the last one stands in padding
    for index, row in enumerate(rows):
        tokens[index * width : index * width + len(row)] = row
    found = np.zeros(0, np.float32)
    for start in range(0, len(bins), height):
        places = end_to_end(lengths, bins[start : start + height], width, height)
        layout = segments(places, size, width)
        scores = jax.device_get(forward(tokens[places], layout["positions"], layout["segment_ids"]))
        if not start:
            found = np.zeros((*scores.shape[:-2], size + 1), np.float32)
        found[..., places] = scores
    begins = {row: index * width for index, row in enumerate(rows)}
    return [found[..., begins[row] : begins[row] + len(row)] for row in asked]
