"""Generation: prefill, then a cached decode loop, in one program per prompt width.

The host groups prompts by padded width and splits them into batches; a row's
randomness depends on the key, its row id and the position alone, so the samples are
the same however rows are batched.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign import models
from jaxalign.errors import UserError
from jaxalign.models import kv_cache
from jaxalign.rollout.config import check_sampling
from jaxalign.rollout.sampling import next_token, row_uniforms

WIDTHS = (8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192)


@dataclass(frozen=True)
class Completions:
    """What was generated, as host arrays; rows in prompt order, samples of a prompt consecutive.

    Attributes:
      tokens: int32 [N, C]; what lies outside the mask is undefined.
      mask: bool [N, C], the stop token included.
      lengths: int32 [N].
      logps: float32 [N, C], under the temperature-scaled policy before truncation (greedy: temperature 1).
      sampling_logps: float32 [N, C], under the distribution really sampled from.
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
    """Generates with one model, keeping its compiled programs; `update` gives it new parameters.

    Args:
      model: a causal language model.
      adapter: an attached LoRA adapter, added to the decode weights.
      max_rows: rows decoded at once; more are split into batches.
    """

    def __init__(self, model: Any, *, adapter: Any = None, max_rows: int = 256) -> None:
        self.definition, self.params = models.split(model)
        self.adapter = adapter
        self.max_rows = max_rows

    @property
    def config(self) -> Any:
        """The model's shape."""
        return self.definition.config

    def update(self, params: Any, *, adapter: Any = None) -> None:
        """New parameters of the same shapes, and a new adapter where given; programs are kept."""
        self.params = params
        self.adapter = self.adapter if adapter is None else adapter

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        key: jax.Array,
        temperature: float | np.ndarray = 1.0,
        top_k: int | np.ndarray = 0,
        top_p: float | np.ndarray = 1.0,
        min_p: float | np.ndarray = 0.0,
        stop_tokens: Sequence[int] | None = None,
        num_samples: int = 1,
        row_ids: Sequence[int] | None = None,
    ) -> Completions:
        """Samples completions.

        Args:
          prompts: token ids of each prompt, at least one each.
          max_new_tokens: longest completion, C.
          key: source of all randomness.
          temperature, top_k, top_p, min_p: numbers, or arrays with one a prompt.
          stop_tokens: ids that end a completion; None takes the model's, () none.
          num_samples: completions a prompt.
          row_ids: the randomness of each completion, N of them; 0..N-1 when None.

        Raises:
          UserError: an empty prompt, or one that leaves no room in the context.
          ValueError: a sampling number out of range.
        """
        count = len(prompts)
        settings = [
            _per_prompt(v, count, n)
            for v, n in ((temperature, "temperature"), (top_k, "top_k"), (top_p, "top_p"), (min_p, "min_p"))
        ]
        for values in zip(*settings, strict=True):
            check_sampling(*values)
        if max_new_tokens < 1 or num_samples < 1:
            raise ValueError(
                f"max_new_tokens and num_samples must be 1 or more, got {max_new_tokens}, {num_samples}"
            )
        self._check_prompts(prompts, max_new_tokens)
        stops = tuple(self.config.eos_ids) if stop_tokens is None else tuple(int(t) for t in stop_tokens)
        truncated = bool((settings[1] > 0).any() or (settings[2] < 1).any() or (settings[3] > 0).any())
        total = count * num_samples
        ids = np.arange(total) if row_ids is None else np.asarray(row_ids)
        out = {
            "tokens": np.zeros((total, max_new_tokens), np.int32),
            "logps": np.zeros((total, max_new_tokens), np.float32),
            "sampling_logps": np.zeros((total, max_new_tokens), np.float32),
            "lengths": np.zeros(total, np.int32),
            "stopped": np.zeros(total, bool),
        }
        for width, rows in self._groups(prompts):
            size = _batch_size(len(rows), max(1, self.max_rows // num_samples))
            for start in range(0, len(rows), size):
                chosen = rows[start : start + size]
                padded = np.concatenate([chosen, np.full(size - len(chosen), chosen[0])])
                tokens = np.zeros((size, width), np.int32)
                for index, row in enumerate(padded):
                    tokens[index, : len(prompts[row])] = prompts[row]
                lengths = np.asarray([len(prompts[row]) for row in padded], np.int32)
                places = (padded[:, None] * num_samples + np.arange(num_samples)).ravel()
                result = _run(
                    self.definition,
                    self.params,
                    self.adapter,
                    tokens,
                    lengths,
                    ids[places].astype(np.int32),
                    key,
                    settings[0][padded].astype(np.float32),
                    settings[1][padded].astype(np.int32),
                    settings[2][padded].astype(np.float32),
                    settings[3][padded].astype(np.float32),
                    copies=num_samples,
                    new_tokens=max_new_tokens,
                    truncated=truncated,
                    stops=stops,
                )
                result = jax.device_get(result)
                valid = len(chosen) * num_samples
                for name, values in result.items():
                    out[name][places[:valid]] = values[:valid]
        stopped = out.pop("stopped")
        mask = np.arange(max_new_tokens)[None, :] < out["lengths"][:, None]
        reasons = ["stop" if s else "length" for s in stopped]
        return Completions(mask=mask, finish_reason=reasons, **out)

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

    def _groups(self, prompts: Sequence[Sequence[int]]):
        """(width, prompt indices) by padded width."""
        widths = np.asarray([_width(len(p), self.config.max_positions) for p in prompts])
        for width in np.unique(widths):
            yield int(width), np.flatnonzero(widths == width)


def _program(
    definition, params, adapter, tokens, lengths, row_ids, key, temperature, top_k, top_p, min_p,
    *, copies: int, new_tokens: int, truncated: bool, stops: tuple[int, ...],
):  # fmt: skip
    model = models.merge(definition, params)
    width = tokens.shape[1]
    hidden, cache = model.prefill(tokens, lengths, cache_length=width + new_tokens, adapter=adapter)
    weights = model.decode_weights(adapter)
    if copies > 1:  # the prompt is read once, whatever the number of samples
        repeat = jnp.repeat(jnp.arange(tokens.shape[0]), copies)
        cache, hidden = kv_cache.take_rows(cache, repeat), hidden[repeat]
        temperature, top_k, top_p, min_p = (x[repeat] for x in (temperature, top_k, top_p, min_p))
    rows = row_ids.shape[0]

    def draw(hidden, step):
        uniforms = row_uniforms(key, row_ids, step)
        return next_token(
            model.logits(hidden), uniforms, temperature, top_k, top_p, min_p, truncated=truncated
        )

    def unfinished(carry):
        return (carry["step"] < new_tokens) & ~carry["stopped"].all()

    def step(carry):
        token, logp, sampling_logp = draw(carry["hidden"], carry["step"])
        at = carry["step"]
        alive = ~carry["stopped"]
        stop = jnp.isin(token, jnp.asarray(stops, jnp.int32)) if stops else jnp.zeros(rows, bool)
        write = {"tokens": token, "logps": logp, "sampling_logps": sampling_logp}
        written = {
            name: jax.lax.dynamic_update_slice_in_dim(carry[name], jnp.where(alive, value, 0)[:, None], at, 1)
            for name, value in write.items()
        }
        hidden, cache = model.decode(weights, token, carry["cache"])
        return {
            **written,
            "step": at + 1,
            "stopped": carry["stopped"] | stop,
            "lengths": carry["lengths"] + alive,
            "hidden": hidden,
            "cache": cache,
        }

    carry = {
        "tokens": jnp.zeros((rows, new_tokens), jnp.int32),
        "logps": jnp.zeros((rows, new_tokens), jnp.float32),
        "sampling_logps": jnp.zeros((rows, new_tokens), jnp.float32),
        "lengths": jnp.zeros(rows, jnp.int32),
        "stopped": jnp.zeros(rows, bool),
        "step": jnp.zeros((), jnp.int32),
        "hidden": hidden,
        "cache": cache,
    }
    carry = jax.lax.while_loop(unfinished, step, carry)
    return {name: carry[name] for name in ("tokens", "logps", "sampling_logps", "lengths", "stopped")}


# One cache of programs for all samplers: a model of the same shape compiles once.
_run = jax.jit(_program, static_argnames=("definition", "copies", "new_tokens", "truncated", "stops"))


def generate(model: Any, prompts: Sequence[Sequence[int]], **arguments: Any) -> Completions:
    """`Sampler(model).generate(prompts, ...)`: for one call; keep a `Sampler` for several."""
    adapter = arguments.pop("adapter", None)
    return Sampler(model, adapter=adapter).generate(prompts, **arguments)


def _per_prompt(value: Any, count: int, name: str) -> np.ndarray:
    array = np.asarray(value)
    if array.ndim == 0:
        return np.full(count, array)
    if array.shape != (count,):
        raise ValueError(f"{name} has shape {array.shape}; expected a number or one per prompt, ({count},)")
    return array


def _width(length: int, limit: int) -> int:
    for width in WIDTHS:
        if width >= length:
            return min(width, max(limit, length))
    return length


def _batch_size(rows: int, limit: int) -> int:
    """A power of two (or the limit), so that few programs serve all sizes."""
    if rows >= limit:
        return limit
    size = 1
    while size < rows:
        size *= 2
    return min(size, limit)
