"""Decoding with a scorer, nothing trained: the best of n samples, and reward-guided search (ARGS).

Both are what guided decoding is compared with. They ask a model that scores whole texts: best-of-n once a sample,
ARGS about each of k candidates for each token.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxalign import models
from jaxalign.errors import UserError
from jaxalign.kernels.matmul import cached_dtype, matmul_implementation, product
from jaxalign.masking import NEGATIVE
from jaxalign.models import kv_cache
from jaxalign.models.attention import scaled, sinks_of
from jaxalign.models.block import block, embed, project
from jaxalign.models.composite import CausalModel, Composite, CompositeDefinition
from jaxalign.models.config import ModelConfig
from jaxalign.models.kv_cache import KVCache
from jaxalign.models.layers import Params, norm, softcap
from jaxalign.models.rotary import rope_tables
from jaxalign.models.stops import stopping
from jaxalign.models.transformer import Transformer
from jaxalign.rollout.config import SamplingArguments, UntruncatedSampling
from jaxalign.rollout.engine import Engine
from jaxalign.rollout.generate import Completions, Sampler

Scorer = Callable[[list[list[int]], list[list[int]]], Any]


def best_of_n(
    sampler: Engine,
    prompts: Sequence[Sequence[int]],
    score: Scorer,
    *,
    n: int,
    **sampling: Unpack[SamplingArguments],
) -> Completions:
    """Samples n completions a prompt and keeps the one with the highest score: naive rejection sampling.

    Against the sampler's own distribution the completion kept diverges by log n - (n - 1) / n nats at most.

    Args:
      sampler: a `Sampler`, or another engine.
      prompts: token ids of each prompt.
      score: (prompt ids, completion ids) -> numbers [N * n], both lists of N * n lists of token ids, the samples of a
        prompt consecutive and completions with their stop token; larger is better.
      n: completions a prompt.
      **sampling: see `SamplingArguments`; not `num_samples`, which n stands for here.

    Returns:
      One completion a prompt: the first of those that score highest.

    Raises:
      TypeError: `num_samples`, or an argument that `generate` does not take.
      ValueError: n below 1.
      UserError: not one score for each completion, or one that is not finite.
    """
    if "num_samples" in sampling:
        raise TypeError("best_of_n() takes n in place of num_samples")
    arguments: SamplingArguments = {**sampling, "num_samples": n}
    done = sampler.generate(prompts, **arguments)
    repeated = [list(prompt) for prompt in prompts for _ in range(n)]
    scores = np.asarray(score(repeated, done.token_lists()), np.float64)
    if scores.shape != (len(repeated),):
        raise UserError(f"best of {n}: {len(repeated)} completions got scores of shape {scores.shape}")
    if not np.isfinite(scores).all():
        row = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise UserError(f"best of {n}: the score of completion {row} is {scores[row]}")
    kept = np.arange(len(prompts)) * n + scores.reshape(-1, n).argmax(axis=1)
    return Completions(
        tokens=done.tokens[kept],
        mask=done.mask[kept],
        lengths=done.lengths[kept],
        logps=done.logps[kept],
        sampling_logps=done.sampling_logps[kept],
        finish_reason=[done.finish_reason[row] for row in kept],
    )


def args_generate(
    model: CausalModel,
    scalar_model: models.ScalarModel,
    prompts: Sequence[Sequence[int]],
    *,
    weight: float,
    top_k: int,
    **sampling: Unpack[UntruncatedSampling],
) -> Completions:
    """Alignment as reward-guided search: each token is chosen by its log-prob and what a reward model says of it.

        score(v) = log model(v | s) + weight * reward(s, v)     for the k tokens most probable under the model

    The reward model reads the text so far through a cache of its own, and each step all candidates against it.

    Args:
      model: a causal model, the base of the search.
      scalar_model: scores prompt and completion at their last token; of the model's tokenizer. It is asked about
        unfinished texts, of which its training may have shown it none.
      prompts: token ids of each prompt.
      weight: of the reward, 0 or more; 0 is the model alone. Another weight needs no other program.
      top_k: candidates a token.
      **sampling: see `SamplingArguments`; without its truncations, which `top_k` stands for here. `temperature` is 0
        by default and takes the candidate with the highest score (ARGS-greedy), else scores are divided by it and a
        candidate is drawn (ARGS-stochastic).

    Returns:
      Completions, whose log-probs are those of the candidates' scores, not of the model.

    Raises:
      ValueError: a weight or top_k out of range.
      UserError: the reward model knows fewer tokens than the model, or scores steps; an empty prompt, or one that
        leaves no room in the context of either model.

    Source: arXiv:2402.01694.
    """
    guided = reward_guided(model, scalar_model, weight=weight, top_k=top_k)
    arguments: SamplingArguments = {"temperature": 0.0, **sampling}
    return Sampler(guided).generate(prompts, **arguments)


def reward_guided(
    model: CausalModel, scalar_model: models.ScalarModel, *, weight: float, top_k: int
) -> "RewardGuided":
    """The model that `args_generate` samples from; arguments and errors as there."""
    (definition, params), (scalar, reward) = models.split(model), models.split(scalar_model)
    vocabulary = definition.config.vocab_size
    if not (np.isfinite(weight) and weight >= 0):
        raise ValueError(f"weight must be non-negative and finite, got {weight}")
    if not 1 <= top_k <= vocabulary:
        raise ValueError(f"top_k must lie in [1, {vocabulary}] (the model's vocabulary), got {top_k}")
    if scalar.steps is not None:
        raise UserError("reward model: it scores the steps of a completion, not the whole completion")
    if scalar.config.vocab_size < vocabulary:
        raise UserError(
            f"reward model: its vocabulary has {scalar.config.vocab_size} tokens, the model's {vocabulary}; "
            "they must share a tokenizer"
        )
    both = RewardGuidedDefinition(definition, scalar, top_k)
    return RewardGuided(both, {"base": params, "reward": reward, "weight": jnp.float32(weight)})


@dataclass(frozen=True)
class RewardGuidedDefinition(CompositeDefinition):
    """The static part of a `RewardGuided`: both models, and the number of candidates."""

    base: Any
    reward: models.ScalarDefinition
    top_k: int

    @cached_property
    def config(self) -> ModelConfig:
        """The base model's, with the positions that both models have."""
        positions = min(self.base.config.max_positions, self.reward.config.max_positions)
        return replace(self.base.config, max_positions=positions)

    def merge(self, params: Params) -> "RewardGuided":
        """The model with these parameters; see `models.merge`."""
        return RewardGuided(self, params)

    def with_stops(self, ids: Iterable[int]) -> "RewardGuidedDefinition":
        """Its base stops at these tokens too."""
        return replace(self, base=stopping(self.base, ids))


class RewardGuided(Composite[RewardGuidedDefinition]):
    """A base model and a reward model, to be decoded as one model.

    Its cache is one cache: the base model's layers, then those of the reward model.

    Attributes:
      definition: the static part.
      params: `base`, `reward` and `weight`.
    """

    def prefill(
        self,
        tokens: Int[Array, "B P"],
        lengths: Int[Array, " B"],
        *,
        cache_length: int,
        adapter: None = None,
        int8_cache: bool = False,
    ) -> tuple[Float[Array, "B V"], KVCache]:
        """Reads right-padded prompts; see `Transformer.prefill`. The hidden states are the logits already."""
        del adapter, int8_cache  # `args_generate` asks for neither
        states, mine = self._base.prefill(tokens, lengths, cache_length=cache_length)
        reward = self.params["reward"]
        _, theirs = self._trunk(reward).prefill(tokens, lengths, cache_length=cache_length)
        reward = {**reward, "trunk": self._trunk(reward).decode_weights()}
        return self._scored(self._base.logits(states), reward, theirs), kv_cache.joined([mine, theirs])

    def decode_weights(self, adapter: None = None) -> dict[str, Any]:
        """Weights for `decode`: of both models as `Transformer.decode_weights` makes them."""
        del adapter
        reward = self.params["reward"]
        reward = {**reward, "trunk": self._trunk(reward).decode_weights()}
        return {**self.params, "base": self._base.decode_weights(), "reward": reward}

    def decode(
        self, weights: dict[str, Any], tokens: Int[Array, " B"], cache: KVCache
    ) -> tuple[Float[Array, "B V"], KVCache]:
        """One token a row, read by both models; see `Transformer.decode`."""
        first = len(cache.keys) - self.definition.reward.config.num_layers
        mine = kv_cache.take_layers(cache, 0, first)
        theirs = kv_cache.take_layers(cache, first, len(cache.keys) - first)
        states, mine = self._base.decode(weights["base"], tokens, mine)
        reward = weights["reward"]
        _, theirs = self._trunk(reward).decode(reward["trunk"], tokens, theirs)
        return self._scored(self._base.logits(states), reward, theirs), kv_cache.joined([mine, theirs])

    def logits(self, hidden: Float[Array, "*B V"]) -> Float[Array, "*B V"]:
        """What `prefill` and `decode` give: scores of the candidates, -1e30 at all other tokens."""
        return hidden

    @property
    def _base(self) -> Any:
        return models.merge(self.definition.base, self.params["base"])

    def _trunk(self, reward: dict[str, Any]) -> Transformer:
        return Transformer(self.definition.reward.config, reward["trunk"])

    def _scored(self, logits: jax.Array, reward: dict[str, Any], cache: KVCache) -> jax.Array:
        """[B, V]: the base model's logits with the weighted rewards of the k best of them; -1e30 elsewhere.

        Logits are log-probs but for a constant a row, which chooses no token.
        """
        scalar = self.definition.reward
        best, candidates = jax.lax.top_k(logits, self.definition.top_k)
        states = states_after(self._trunk(reward), reward["trunk"], candidates, cache)
        raw = models.apply_head(
            scalar.head_config, reward["head"], states, products=matmul_implementation(scalar.config)
        )
        rewards = reward["normalizer"]["gain"] * raw + reward["normalizer"]["bias"]
        rows = jnp.arange(logits.shape[0])[:, None]
        empty = jnp.full(logits.shape, NEGATIVE, jnp.float32)
        return empty.at[rows, candidates].set(best + self.params["weight"] * rewards)


def states_after(
    model: Transformer, weights: dict[str, Any], tokens: Int[Array, "B C"], cache: KVCache
) -> Float[Array, "B C D"]:
    """The hidden state after each of C tokens that might come next in a row.

    It is what `Transformer.decode` gives for each of them alone, but the cache stays as it is: a candidate attends to
    the row's columns and to itself.

    Args:
      model, weights: as for `Transformer.decode`.
      tokens: candidates, each for the column that is written next.
      cache: of floats.
    """
    config = model.config
    positions = jnp.broadcast_to((cache.column - cache.starts)[:, None], tokens.shape)
    x = embed(weights, tokens, positions, config)
    tables = {r: rope_tables(positions, config, r) for r in config.rotations}
    columns = jnp.arange(cache.length)[None, :]
    there = (columns >= cache.starts[:, None]) & (columns < cache.column)
    for layer, params in enumerate(weights["layers"]):
        window = kv_cache.window_of(config, layer)
        bias = jnp.where(there & ((cache.column - columns < window) | (window == 0)), 0.0, NEGATIVE)

        def attention(
            h: Float[Array, "B C D"],
            params: Params = params,
            layer: int = layer,
            bias: Float[Array, "B S"] = bias,
        ):
            q, k, v = project(h, params, config, tables[config.layer_rotations[layer]], None, None)
            cached = (cache.keys[layer], cache.values[layer])
            return _attend_beside(q, k, v, *cached, bias, config, params.get("sinks"))

        x = block(x, params, config, attention, None, None)
    return norm(x, weights["final_norm"], "weight", config)


def _attend_beside(
    q: Float[Array, "B C N H"],
    k: Float[Array, "B C K H"],
    v: Float[Array, "B C K H"],
    keys: Float[Array, "B K H S"],
    values: Float[Array, "B K S H"],
    bias: Float[Array, "B S"],
    config: ModelConfig,
    sinks: Float[Array, " N"] | None = None,
) -> Float[Array, "B C NH"]:
    """Queries that each see the cached columns and their own key, none of the others'."""
    rows, count, heads, size = q.shape
    kv_heads, dtype = k.shape[2], cached_dtype(config)
    groups = scaled(q, config).reshape(rows, count, kv_heads, heads // kv_heads, size)
    past = product("bckgd,bkds->bckgs", groups, keys, dtype=dtype)
    own = product("bckgd,bckd->bckg", groups, k, dtype=dtype)[..., None]
    cap = config.attention_softcap
    past, own = softcap(past, cap) + bias[:, None, None, None, :], softcap(own, cap)
    scores = jnp.concatenate([past, own], axis=-1)
    scores_of_sinks = sinks_of(sinks, kv_heads, 1)
    if scores_of_sinks is not None:
        beside = jnp.broadcast_to(scores_of_sinks, own.shape)
        shares = jax.nn.softmax(jnp.concatenate([scores, beside], axis=-1), axis=-1)[..., :-1]
    else:
        shares = jax.nn.softmax(scores, axis=-1)
    out = product("bckgs,bksd->bckgd", shares[..., :-1], values, dtype=dtype)
    out = out + product("bckg,bckd->bckgd", shares[..., -1], v, dtype=dtype)
    return out.astype(q.dtype).reshape(rows, count, heads * size)
