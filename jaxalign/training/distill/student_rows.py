"""Rows that the student writes itself, in place of demonstrations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool

from jaxalign.arrays import AnyArray
from jaxalign.data import Example, collate_demonstrations
from jaxalign.data.batches import Batch
from jaxalign.data.stream import Stream
from jaxalign.errors import ConfigError
from jaxalign.rollout import join_rows
from jaxalign.training.core.generator import Generator
from jaxalign.training.core.state import TrainState
from jaxalign.training.sft import DemonstrationBatch


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class DistillBatch(DemonstrationBatch):
    """Demonstrations, or prompts with completions by the student.

    Attributes:
      sampled: rows by the student.
    """

    sampled: Bool[AnyArray, " B"]


def collate_with_prompts(examples: Sequence[Example], numbers: Sequence[int], **options: Any) -> Batch:
    """`collate_demonstrations`; `sampled`, False; and `prompts`, the token ids of each."""
    batch = collate_demonstrations(examples, numbers, **options)
    prompts = [example.prompt_tokens for example in examples]
    return batch | {"sampled": np.zeros(len(prompts), bool), "prompts": prompts}


def check_prompts(examples: Sequence[Example], positions: int, new_tokens: int) -> None:
    """Checks that a completion can follow each prompt; of a stream the sampler checks it, batch by batch.

    Raises:
      ConfigError: naming the first row without a prompt, or without room in the context.
    """
    if isinstance(examples, Stream):
        return
    for example in examples:
        length = len(example.prompt_tokens)
        if not length:
            raise ConfigError(f"{example.source}: the row has no prompt to complete; set on_policy=0")
        if length + new_tokens > positions:
            raise ConfigError(
                f"{example.source}: the prompt has {length} tokens, and with sampling.max_new_tokens = {new_tokens} "
                f"does not fit the model's context of {positions}; set data.max_prompt_length to "
                f"{positions - new_tokens} or less, or lower sampling.max_new_tokens"
            )


@dataclass(frozen=True)
class StudentRows:
    """Batches of which some are completed by the student.

    Attributes:
      generator: samples from the student.
      probability: that a step's batch is.
      seed: decides which steps', so that a resumed run takes the same.
      multiple: of the rows' width.
    """

    generator: Generator
    probability: float
    seed: int
    multiple: int

    def __call__(self, state: TrainState, columns: Mapping[str, Any]) -> Mapping[str, Any]:
        """The batch of a step: as it is, or its prompts with completions of the student as it stands."""
        step = int(state.step)
        if np.random.default_rng((self.seed, step)).random() >= self.probability:
            return columns
        generator = self.generator
        done = generator.refresh(state.params).generate(
            columns["prompts"],
            key=jax.random.fold_in(generator.key, step),
            **generator.sampling.arguments(stop_tokens=generator.stop_tokens),
        )
        rows = join_rows(columns["prompts"], done, multiple=self.multiple)
        return {
            "tokens": rows.tokens,
            "lengths": rows.lengths,
            "mask": rows.mask,
            "weights": rows.mask.astype(np.float32),
            "row_ids": columns["row_ids"],
            "valid": columns["valid"],
            "sampled": np.ones(len(rows.lengths), bool),
        }
