"""The gap between a sampler and its model, as caused by 8-bit weights or another engine."""

from collections.abc import Sequence

import jax

from jaxalign import models
from jaxalign.evaluation.policy import make_scorer, token_logps
from jaxalign.models.composite import Model
from jaxalign.rollout import Engine, join_rows
from jaxalign.rollout.logp_gap import LogpGap as SamplerGap
from jaxalign.rollout.logp_gap import logp_gap


def sampler_gap(
    sampler: Engine,
    model: Model,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    key: jax.Array,
    num_samples: int = 1,
) -> SamplerGap:
    """Samples at temperature 1 without truncation, and scores the same tokens with the model's plain forward.

    Args:
      sampler: for example `Sampler(model, weights="int8", cache="int8")`.
      model: the causal language model that it should sample from.
      prompts: token ids of each prompt.
      max_new_tokens: longest completion.
      key: source of all randomness.
      num_samples: completions per prompt.

    Raises:
      UserError: an empty prompt, or one that leaves no room in the context.
    """
    done = sampler.generate(prompts, max_new_tokens=max_new_tokens, key=key, num_samples=num_samples)
    rows = join_rows([p for p in prompts for _ in range(num_samples)], done)
    definition, params = models.split(model)
    scored = rows.to_completion(token_logps(make_scorer(definition), params, rows), max_new_tokens)
    return logp_gap(scored, done.sampling_logps, done.mask)
