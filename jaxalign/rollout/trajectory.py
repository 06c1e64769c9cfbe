"""Prompts and completions joined into right-padded rows for training."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxalign.buckets import bucket
from jaxalign.rollout.generate import Completions


@dataclass(frozen=True)
class Rows:
    """Rows of prompt + completion, contiguous, right-padded.

    Attributes:
      tokens: int32 [N, T].
      lengths: int32 [N], prompt and completion together.
      mask: bool [N, T], True at completion tokens (stop token included).
      prompt_lengths: int32 [N].
    """

    tokens: np.ndarray
    lengths: np.ndarray
    mask: np.ndarray
    prompt_lengths: np.ndarray

    def batch(self, start: int, size: int) -> dict[str, np.ndarray]:
        """tokens, lengths, mask of `size` rows from `start` on; valid [size], False in fillers (a row again)."""
        names, count = ("tokens", "lengths", "mask"), min(size, len(self.lengths) - start)
        picked = np.minimum(np.arange(start, start + size), start + count - 1)
        return {name: getattr(self, name)[picked] for name in names} | {"valid": np.arange(size) < count}

    def from_completion(self, values: np.ndarray) -> np.ndarray:
        """[N, C] in completion columns -> [N, T] in row columns, 0 outside the mask."""
        values = np.asarray(values)
        result = np.zeros(self.tokens.shape, values.dtype)
        rows, columns = np.nonzero(self.mask)
        result[rows, columns] = values[rows, columns - self.prompt_lengths[rows]]
        return result

    def to_completion(self, values: np.ndarray, width: int) -> np.ndarray:
        """[N, T] in row columns -> [N, C] in completion columns, 0 outside the mask."""
        values = np.asarray(values)
        result = np.zeros((len(values), width), values.dtype)
        rows, columns = np.nonzero(self.mask)
        result[rows, columns - self.prompt_lengths[rows]] = values[rows, columns]
        return result


def join_rows(prompts: Sequence[Sequence[int]], completions: Completions, *, multiple: int = 32) -> Rows:
    """Joins prompt i with completion i.

    Args:
      prompts: N prompts (repeat a prompt for each of its samples).
      completions: N completions.
      multiple: T is a multiple of it that depends on C and the longest prompt only, whose length is
        rounded up to one of four buckets an octave, so that few programs serve all updates.
    """
    width = completions.tokens.shape[1]
    longest = max(len(p) for p in prompts)
    total = -(-(bucket(-(-longest // multiple), per_octave=4) * multiple + width) // multiple) * multiple
    count = len(prompts)
    tokens = np.zeros((count, total), np.int32)
    mask = np.zeros((count, total), bool)
    prompt_lengths = np.asarray([len(p) for p in prompts], np.int32)
    for i, prompt in enumerate(prompts):
        start, end = len(prompt), len(prompt) + int(completions.lengths[i])
        tokens[i, :start] = prompt
        tokens[i, start:end] = completions.tokens[i, : end - start]
        mask[i, start:end] = True
    return Rows(tokens, prompt_lengths + completions.lengths.astype(np.int32), mask, prompt_lengths)


def sampler_logps(rows: Rows, completions: Completions) -> np.ndarray:
    """The sampler's log-probs of the rows' completions, float32 [N, T], nats; 0 outside the mask."""
    return rows.from_completion(np.where(completions.mask, completions.logps, 0.0))
