"""Log-likelihoods of continuations: how probable a model finds what follows a context, in token ids."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxalign import models
from jaxalign.buckets import bucket, width_bucket
from jaxalign.data import packed
from jaxalign.mesh import row_shards
from jaxalign.models import kv_cache
from jaxalign.models.composite import Composite, ModelDefinition
from jaxalign.models.layers import Params
from jaxalign.rollout.decode import decode_weights
from jaxalign.training.core.batch import TokenRows
from jaxalign.training.core.scoring import score_tokens
from jaxalign.training.core.setup import on_mesh

# Continuations up to so many tokens are read one token at a time behind a context that they share.
SHARED_TOKENS = 64
# Logits of a model made of several, which are there as a whole (float32).
WHOLE_LOGITS = 2**27


class Likelihoods(NamedTuple):
    """Of N continuations.

    Attributes:
      logps: float64 [N], summed log-probs of their tokens, nats.
      greedy: bool [N], whether each token is the likeliest after those before it.
    """

    logps: np.ndarray
    greedy: np.ndarray


@dataclass(frozen=True)
class Continuation:
    """What is scored.

    Attributes:
      context: token ids before it, at least one.
      tokens: its own, at least one.
    """

    context: tuple[int, ...]
    tokens: tuple[int, ...]


class ContinuationScorer:
    """Scores continuations, of a context that several share but once: the context's keys and values are kept for all.

    Args:
      model: a causal language model, or a patient with its doctors.
      batch_size: continuations at once.
      context: the most tokens that the model reads at once; None takes its own. Of a longer context the end is read.
    """

    def __init__(self, model: Any, *, batch_size: int = 32, context: int | None = None) -> None:
        self.definition, self.params = models.split(model)
        self.several = isinstance(model, Composite)
        self.batch_size = batch_size
        self.context = context or int(model.config.max_positions)
        mesh = model.config.mesh
        self.mesh = None if mesh is None or mesh.size == 1 else mesh

    def score(
        self,
        continuations: Sequence[Continuation],
        done: Callable[[Sequence[int], Likelihoods], None] = lambda places, found: None,
    ) -> Likelihoods:
        """Their log-likelihoods.

        Args:
          continuations: N of them.
          done: is told the places among them, and the results, of each batch when it is there.

        Raises:
          ValueError: a continuation without a token or a context, or longer than the model reads at once.
        """
        cut = [self._cut(one) for one in continuations]
        found = Likelihoods(np.zeros(len(cut)), np.zeros(len(cut), bool))
        for places, scored in self._batches(cut):
            for column, values in zip(found, scored, strict=True):
                column[places] = values
            done(places, scored)
        return found

    def _cut(self, one: Continuation) -> Continuation:
        if not one.context or not one.tokens:
            raise ValueError("expected at least one token of context and one after it")
        # The last token is predicted, not read.
        room = self.context + 1 - len(one.tokens)
        if room < 1:
            raise ValueError(
                f"a continuation of {len(one.tokens)} tokens; the model reads {self.context} at once"
            )
        return Continuation(one.context[-room:], one.tokens)

    def _batches(self, cut: Sequence[Continuation]) -> Iterator[tuple[list[int], Likelihoods]]:
        groups: dict[tuple[int, ...], list[int]] = {}
        for place, one in enumerate(cut):
            groups.setdefault(one.context, []).append(place)
        alone: list[int] = []
        shared: list[list[int]] = []
        for places in groups.values():
            longest = max(len(cut[place].tokens) for place in places)
            together = len(places) > 1 and longest <= min(SHARED_TOKENS, len(cut[places[0]].context))
            # On a mesh rows are split, which a few contexts with many continuations cannot be.
            if together and self.mesh is None:
                shared += [places[i : i + self.batch_size] for i in range(0, len(places), self.batch_size)]
            else:
                alone += places

        # The longest first: what memory does not hold shows at once.
        def length(places: Sequence[int]) -> tuple[int, int]:
            return -len(cut[places[0]].context), -max(len(cut[place].tokens) for place in places)

        for batch in _filled(sorted(shared, key=length), self.batch_size):
            places = [place for group in batch for place in group]
            yield places, self._shared([[cut[place] for place in group] for group in batch])
        alone.sort(key=lambda place: -len(cut[place].context) - len(cut[place].tokens))
        start = 0
        while start < len(alone):
            one = cut[alone[start]]
            places = alone[start : start + self._rows_alone(len(one.context) + len(one.tokens))]
            yield places, self._alone([cut[place] for place in places])
            start += len(places)

    # --- rows of their own --------------------------------------------------------------------

    def _rows_alone(self, length: int) -> int:
        if not self.several:
            return self.batch_size
        logits = width_bucket(length) * int(self.definition.config.vocab_size)
        return max(1, min(self.batch_size, WHOLE_LOGITS // logits))

    def _alone(self, batch: Sequence[Continuation]) -> Likelihoods:
        shards = 1 if self.mesh is None else row_shards(self.mesh)
        count = -(-bucket(len(batch), per_octave=2) // shards) * shards
        rows = [(*one.context, *one.tokens) for one in batch]
        width = width_bucket(max(map(len, rows)))
        tokens, mask = np.zeros((count, width), np.int32), np.zeros((count, width), bool)
        lengths = np.zeros(count, np.int32)
        for i, (row, one) in enumerate(zip(rows, batch, strict=True)):
            tokens[i, : len(row)], lengths[i] = row, len(row)
            mask[i, len(one.context) : len(row)] = True
        columns = {"tokens": tokens, "lengths": lengths, "mask": mask}
        if self.mesh is None:
            laid_out = TokenRows.of(columns if self.several else packed(columns))
        else:
            laid_out = on_mesh(columns, TokenRows, self.mesh, packing=not self.several)
        logps, top = _row_scores(self.definition, self.params, laid_out, whole=self.several)
        return _summed(logps, top, mask, len(batch))

    # --- behind a context that they share -----------------------------------------------------

    @cached_property
    def _weights(self) -> Any:
        return decode_weights(self.definition, self.params, None)

    def _shared(self, groups: Sequence[Sequence[Continuation]]) -> Likelihoods:
        ones = [one for group in groups for one in group]
        width = width_bucket(max(len(one.context) for one in ones))
        steps = bucket(max(len(one.tokens) for one in ones), per_octave=2)
        contexts = np.zeros((bucket(len(groups), per_octave=2), width), np.int32)
        lengths = np.ones(len(contexts), np.int32)
        for i, group in enumerate(groups):
            context = group[0].context
            contexts[i, : len(context)], lengths[i] = context, len(context)
        rows = bucket(len(ones), per_octave=2)
        tokens, source = np.zeros((rows, steps), np.int32), np.zeros(rows, np.int32)
        mask = np.zeros((rows, steps), bool)
        source[: len(ones)] = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
        for i, one in enumerate(ones):
            tokens[i, : len(one.tokens)] = one.tokens
            mask[i, : len(one.tokens)] = True
        logps, top = _shared_scores(
            self.definition, self.params, self._weights, contexts, lengths, tokens, source
        )
        return _summed(logps, top, mask, len(ones))


def _filled(groups: Sequence[list[int]], size: int) -> Iterator[list[list[int]]]:
    """The groups in order, in batches of up to `size` members together."""
    batch: list[list[int]] = []
    for group in groups:
        if batch and sum(map(len, batch)) + len(group) > size:
            yield batch
            batch = []
        batch.append(group)
    if batch:
        yield batch


def _summed(logps: Any, top: Any, mask: np.ndarray, count: int) -> Likelihoods:
    """Of the first rows, from those of their tokens."""
    wrong = np.where(mask, np.asarray(top) == 0, False)[:count]
    right = np.logical_not(np.asarray(wrong.any(axis=1)))
    return Likelihoods(np.where(mask, np.asarray(logps, np.float64), 0.0)[:count].sum(axis=1), right)


@partial(jax.jit, static_argnames=("definition", "whole"))
def _row_scores(
    definition: ModelDefinition, params: Params, rows: TokenRows, *, whole: bool
) -> tuple[jax.Array, jax.Array]:
    """[B, T]: log-probs of the counted tokens, and whether each is the likeliest."""
    model = models.merge(definition, params)
    if not whole:
        scores = score_tokens(model, rows)
        return scores.logps, scores.is_top1
    logits = model(rows.tokens, lengths=rows.lengths)[:, :-1]
    logps, top = _told(logits, rows.tokens[:, 1:])
    before = ((0, 0), (1, 0))
    return jnp.pad(logps, before), jnp.pad(top.astype(jnp.float32), before)


@partial(jax.jit, static_argnames=("definition",))
def _shared_scores(
    definition: ModelDefinition,
    params: Params,
    weights: Params,
    contexts: Int[Array, "G P"],
    lengths: Int[Array, " G"],
    tokens: Int[Array, "R C"],
    source: Int[Array, " R"],
) -> tuple[Float[Array, "R C"], Array]:
    """Log-probs of the rows' tokens behind the context that `source` names, and whether each is the likeliest."""
    model = models.merge(definition, params)
    states, cache = model.prefill(contexts, lengths, cache_length=contexts.shape[1] + tokens.shape[1] - 1)
    first = _told(model.logits(states)[source], tokens[:, 0])
    if tokens.shape[1] == 1:
        return first[0][:, None], first[1][:, None]
    decoder = models.merge(definition, weights)

    def step(cache: kv_cache.KVCache, pair: tuple[Array, Array]) -> tuple[kv_cache.KVCache, Any]:
        read, following = pair
        states, cache = decoder.decode(weights, read, cache)
        return cache, _told(decoder.logits(states), following)

    pairs = (tokens[:, :-1].T, tokens[:, 1:].T)
    _, (logps, top) = jax.lax.scan(step, kv_cache.take_rows(cache, source), pairs)
    return (
        jnp.concatenate([first[0][:, None], logps.T], 1),
        jnp.concatenate([first[1][:, None], top.T], 1),
    )


def _told(logits: Float[Array, "*B V"], tokens: Int[Array, "*B"]) -> tuple[Array, Array]:
    """Log-probs of tokens, and whether each is the likeliest."""
    logps = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    chosen = jnp.take_along_axis(logps, tokens[..., None], axis=-1)[..., 0]
    return chosen, jnp.argmax(logits, axis=-1) == tokens
