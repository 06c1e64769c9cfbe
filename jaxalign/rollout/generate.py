"""Generation: completions of prompts, sampled with one model.

Prompts are read, then decoded in blocks of tokens by rows that come and go (`continuous_batching`). A
row's randomness depends on the key, its row id and the position alone, so the samples are
the same however rows are batched.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Unpack

import jax
import numpy as np

from jaxalign import models
from jaxalign.errors import UserError
from jaxalign.mesh import ROLLOUT_RULES, row_shards
from jaxalign.models.composite import CausalModel
from jaxalign.models.layers import Adapter, Params
from jaxalign.rollout import continuous_batching, decode, sharding
from jaxalign.rollout.config import SamplingArguments, Storage, checked_sampling
from jaxalign.rollout.continuous_batching import OnTokens
from jaxalign.rollout.decode import RowSampling
from jaxalign.rollout.sampling import SamplerFeatures
from jaxalign.rollout.traffic import DecodeTraffic


@dataclass(frozen=True)
class Completions:
    """Generated completions as host arrays; rows in prompt order, samples of a prompt consecutive.

    Attributes:
      tokens: int32 [N, C]; undefined outside the mask.
      mask: bool [N, C], the stop token included.
      lengths: int32 [N].
      logps: float32 [N, C], under the temperature-scaled policy before truncation (greedy: temperature 1).
      sampling_logps: float32 [N, C], under the distribution that was sampled from.
      finish_reason: `stop` or `length`, N of them.
    """

    tokens: np.ndarray
    mask: np.ndarray
    lengths: np.ndarray
    logps: np.ndarray
    sampling_logps: np.ndarray
    finish_reason: list[str]

    def token_lists(self) -> list[list[int]]:
        """The token ids of each completion, with its stop token."""
        return [row[:n].tolist() for row, n in zip(self.tokens, self.lengths, strict=True)]

    def texts(self, tokenizer: Any) -> list[str]:
        """The text of each completion, without special tokens."""
        return tokenizer.batch_decode(self.token_lists(), skip_special_tokens=True)


class Sampler:
    """Generates with one model and keeps its compiled programs; `update` sets new parameters.

    Args:
      model: a causal language model.
      adapter: an attached LoRA adapter, added to the decode weights.
      max_rows: maximum number of rows decoded at once; further rows start as others end.
      block: tokens decoded between checks for rows that have ended.
      weights: int8 samples from the model with its weights rounded to 8-bit integers (see `models.quantize`), of
        which it keeps a copy; same takes them as they are.
      cache: int8 keeps keys and values as 8-bit integers; same in the dtype in which attention reads them (the
        compute dtype; in CPUs' forms of products float32).

    Log-probs of completions are those of the rounded model, which the samples are drawn from. `traffic` is what the
    last `generate` read of a device's memory.

    Raises:
      ValueError: int8 of a model in exact mode.
    """

    def __init__(
        self,
        model: CausalModel,
        *,
        adapter: Adapter | None = None,
        max_rows: int = 256,
        block: int = 64,
        weights: Storage = "same",
        cache: Storage = "same",
    ) -> None:
        self.definition, params = models.split(model)
        if self.config.exact and "int8" in (weights, cache):
            raise ValueError("a model in exact mode samples from its own weights and cache: 8 bits round")
        self.adapter = None
        self.max_rows = max_rows
        self.block = block
        self.weights = weights
        self.cache = cache
        self.traffic = DecodeTraffic()
        self.update(params, adapter=adapter)

    @property
    def config(self) -> Any:
        """The model's shape."""
        return self.definition.config

    def update(self, params: Params, *, adapter: Adapter | None = None) -> None:
        """Sets new parameters of the same shapes, and a new adapter if given; compiled programs are kept."""
        self.adapter = self.adapter if adapter is None else adapter
        int8 = self.weights == "int8"
        self.params = decode.int8_params(self.definition, params, self.adapter) if int8 else params

    def release(self) -> None:
        """Lets go of the parameters, and of what was made of them, until the next `update`."""
        self.params = self.adapter = None

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        on_tokens: OnTokens | None = None,
        **sampling: Unpack[SamplingArguments],
    ) -> Completions:
        """Samples completions.

        Args:
          prompts: token ids of each prompt, at least one each.
          on_tokens: is called after each block of tokens, with those so far [N, C] and their numbers [N]; it may
            return bool [N], completions that are to end there (with the finish reason `stop`).
          **sampling: see `SamplingArguments`.

        Raises:
          UserError: an empty prompt, or one that leaves no room in the context.
          TypeError, ValueError: see `config.checked_sampling`.
        """
        checked = checked_sampling(sampling, prompts=len(prompts), eos_ids=self.config.eos_ids)
        self._check_prompts(prompts, checked.max_new_tokens)
        stops = checked.stop_tokens
        self.traffic = DecodeTraffic()
        heat, k, p, least = (np.repeat(values, checked.num_samples) for values in checked.numbers)
        out = continuous_batching.run(
            continuous_batching.Job(
                definition=self.definition,
                params=self.params,
                # It is in the integers already.
                adapter=None if self.weights == "int8" else self.adapter,
                prompts=prompts,
                copies=checked.num_samples,
                new_tokens=checked.max_new_tokens,
                draws=RowSampling(
                    ids=checked.row_ids.astype(np.int32),
                    temperature=heat.astype(np.float32),
                    top_k=k.astype(np.int32),
                    top_p=p.astype(np.float32),
                    min_p=least.astype(np.float32),
                ),
                # Few programs, however many stop tokens there are; -1 is no token.
                stops=np.pad(
                    stops, (0, continuous_batching.power_of_two(len(stops)) - len(stops)), constant_values=-1
                ),
                key=checked.key,
                features=SamplerFeatures(
                    sampled=bool((heat > 0).any()),
                    greedy=bool((heat == 0).any()),
                    top_k=bool((k > 0).any()),
                    top_p=bool((p < 1).any()),
                    min_p=bool((least > 0).any()),
                    exact=self.config.exact,
                ),
                max_rows=self.max_rows,
                block=self.block,
                int8_cache=self.cache == "int8",
                on_tokens=on_tokens,
                traffic=self.traffic,
            )
        )
        stopped = out.pop("stopped")
        mask = np.arange(checked.max_new_tokens)[None, :] < out["lengths"][:, None]
        reasons = ["stop" if s else "length" for s in stopped]
        return Completions(mask=mask, finish_reason=reasons, **out)

    def decoding_bytes(
        self, rows: int, longest: int, *, max_new_tokens: int, num_samples: int = 1
    ) -> tuple[int, int]:
        """Bytes that `generate` needs in addition to the parameters, and frees afterwards.

        Args:
          rows: completions in all.
          longest: tokens of the longest prompt.
          max_new_tokens, num_samples: as of `generate`.

        Returns:
          Those of keys and values, at most, and those of the weights as decoding reads them, where that is a copy; on
          a mesh what one device holds of them.
        """
        mesh, limit = sharding.mesh_of(self.config), self.config.max_positions
        count = continuous_batching.slots_of(
            rows, num_samples, self.max_rows, 1 if mesh is None else row_shards(mesh, ROLLOUT_RULES)
        )
        columns = continuous_batching.most_columns(longest, max_new_tokens, self.block, limit)
        adapter = None if self.weights == "int8" else self.adapter
        model = partial(models.merge, self.definition)
        weights = jax.eval_shape(lambda p: model(p).decode_weights(adapter), self.params)
        tokens = np.zeros((count, 1), np.int32)
        options = {"cache_length": columns, "int8_cache": self.cache == "int8", "adapter": adapter}
        cache = jax.eval_shape(
            lambda p: model(p).prefill(tokens, tokens[:, 0] + 1, **options)[1], self.params
        )

        there = sharding.held(self.params, mesh, lambda tree, _: jax.tree.map(lambda x: x.sharding, tree))
        read = sharding.held(weights, mesh, sharding.weight_shardings)
        cached = sharding.held((cache.keys, cache.values), mesh, sharding.cache_shardings)
        copied = [like for path, like in read.items() if there.get(path) != like]
        sizes = [
            sum(math.prod(shape) * dtype.itemsize for shape, dtype in shapes)
            for shapes in (cached.values(), copied)
        ]
        return sizes[0], sizes[1]

    def _check_prompts(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> None:
        room = self.config.max_positions - new_tokens
        for index, prompt in enumerate(prompts):
            if not len(prompt):
                raise UserError(f"prompt {index} has no tokens")
            if min(prompt) < 0 or max(prompt) >= self.config.vocab_size:
                raise UserError(
                    f"prompt {index} has token {max(prompt)}; the model's vocabulary has {self.config.vocab_size}"
                )
            if len(prompt) > room:
                raise UserError(
                    f"prompt {index} has {len(prompt)} tokens; with {new_tokens} new tokens the model's context of "
                    f"{self.config.max_positions} leaves room for {max(room, 0)}"
                )


def generate(
    model: CausalModel,
    prompts: Sequence[Sequence[int]],
    *,
    adapter: Adapter | None = None,
    on_tokens: OnTokens | None = None,
    **sampling: Unpack[SamplingArguments],
) -> Completions:
    """`Sampler(model, adapter=adapter).generate(prompts, ...)`: for one call; keep a `Sampler` for several."""
    return Sampler(model, adapter=adapter).generate(prompts, on_tokens=on_tokens, **sampling)
