"""Generates completions with the policy in training, for rollouts and samples."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax

from jaxalign import models
from jaxalign.rollout import Engine, Sampler, SamplingConfig, ServerEngine
from jaxalign.runs import Run
from jaxalign.training.core.scoring import CausalPolicy


@dataclass
class Generator:
    """Samples from the policy in training: with one compiled program for all updates, or by the engine given.

    Attributes:
      policy: how the policy's leaves make a model.
      frozen: its leaves that are not trained.
      sampling: how completions are drawn.
      tokenizer: the policy's.
      key: source of the randomness of `samples`.
      engine: who samples; None makes a `Sampler`.
      merged: whether the engine gets an adapter merged into the weights, or apart.
      storage: `weights` and `cache` of the `Sampler`.
    """

    policy: CausalPolicy
    frozen: Any
    sampling: SamplingConfig
    tokenizer: Any
    key: jax.Array
    engine: Engine | None = None
    merged: bool = True
    storage: Mapping[str, Any] = field(default_factory=dict)

    @property
    def stop_tokens(self) -> Sequence[int]:
        """The ids that end a completion: those asked for, else the policy's; an engine may know of fewer."""
        chosen = self.sampling.stop_tokens
        return self.eos_ids if chosen is None else chosen

    @property
    def eos_ids(self) -> Sequence[int]:
        """The policy's own ids that end a completion."""
        return self.policy.definition.config.eos_ids

    def refresh(self, trained: Any) -> Engine:
        """The engine, with the newest parameters."""
        model, adapter = self.policy.parts(trained, self.frozen)
        if adapter is not None and self.merged:
            model, adapter = models.merge_adapter(model, adapter), None
        if self.engine is None:
            self.engine = Sampler(model, adapter=adapter, **self.storage)
        else:
            self.engine.update(models.split(model)[1], adapter=adapter)
        return self.engine

    def release(self) -> None:
        """Lets go of the weights until the next `refresh`: merged ones are a copy."""
        if isinstance(self.engine, Sampler):
            self.engine.release()

    def close(self) -> None:
        """Gives back what a server's engine holds."""
        if isinstance(self.engine, ServerEngine):
            self.engine.close()

    def samples(self, trained: Any, prompts: list[list[int]], step: int) -> list[dict[str, Any]]:
        """One completion a prompt, as rows for samples.jsonl."""
        if not prompts:
            return []
        done = self.refresh(trained).generate(
            prompts,
            key=jax.random.fold_in(self.key, step),
            **self.sampling.arguments(num_samples=1, stop_tokens=self.stop_tokens),
        )
        return [
            {"prompt": self.tokenizer.decode(p), "completion": text}
            for p, text in zip(prompts, done.texts(self.tokenizer), strict=True)
        ]


def samples_of(
    sampling: SamplingConfig, examples: Iterable[Any], positions: int, run: Run
) -> tuple[SamplingConfig, list[list[int]]]:
    """How the samples that a run shows are drawn, and their prompts: no longer than the context allows.

    Args:
      sampling: as it was asked for.
      examples: rows with `prompt_tokens`; those that fill the context alone, or hold nothing, are left out.
      positions: the model's context.
      run: is told where samples are shorter than asked for.
    """
    asked = [list(example.prompt_tokens) for example in examples]
    prompts = [prompt for prompt in asked if 0 < len(prompt) < positions]
    room = positions - max(map(len, prompts), default=0)
    if len(prompts) < len(asked):
        run.info(f"samples: {len(asked) - len(prompts)} of {len(asked)} prompts leave no room in the context")
    if room >= sampling.max_new_tokens:
        return sampling, prompts
    run.warn(
        f"samples have at most {room} new tokens instead of sampling.max_new_tokens={sampling.max_new_tokens}: the "
        f"model's context is {positions}"
    )
    return replace(sampling, max_new_tokens=room), prompts
