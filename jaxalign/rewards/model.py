"""Reward models as rewards: one, and an ensemble whose disagreement can count against a completion."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxalign import losses, models
from jaxalign.buckets import bucket
from jaxalign.data.packing import MAX_SEGMENTS, best_fit_decreasing, end_to_end, segments
from jaxalign.errors import UserError
from jaxalign.host_memory import on_device, to_host
from jaxalign.mesh import row_shards, shard_batch
from jaxalign.models.heads import ScalarDefinition, ScalarModel
from jaxalign.processes import fetch
from jaxalign.rewards.base import Rewards
from jaxalign.rewards.calls import RewardRequest

Aggregate = Literal["mean", "mean_minus_std", "worst"]


class ModelReward:
    """Scores prompt + completion with a `ScalarModel`, [N].

    Rows are scored by their sampled token ids, so the model must share the policy's tokenizer. They are split over the
    devices of the model's mesh (`model.config.mesh`).

    Args:
      model: a `ScalarModel` that gives one score.
      batch_size: packed rows scored at once, on a mesh rounded up to what its devices share evenly; each holds several
        short rows.
      pad_multiple: columns of a packed row are a multiple of it.
      vocabulary: size of the policy's vocabulary, which the model's must cover; None skips the check.

    Raises:
      UserError: the model knows fewer tokens than the policy, or scores steps.
    """

    def __init__(
        self,
        model: ScalarModel,
        *,
        batch_size: int = 32,
        pad_multiple: int = 32,
        vocabulary: int | None = None,
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
        scores = token_scores(self._program, rows, batch_size=self.batch_size, pad_multiple=self.pad_multiple)
        return np.asarray([row[-1] for row in scores], np.float32)

    def offload(self) -> None:
        """Keeps the weights in host memory between calls from now on."""
        self._program.offload()


class EnsembleReward:
    """Scores prompt + completion with K `ScalarModel`s and makes one score of K, [N].

    Members of one shape are scored by one vmapped program, in which a trunk that they share bit for bit
    runs once; members that differ in shape are scored one after another. See `ModelReward` for the rest.

    Args:
      members: at least one.
      aggregate: see `losses.aggregate_ensemble`.
      coefficient: lambda of mean_minus_std; not negative.
      batch_size, pad_multiple, vocabulary: as for `ModelReward`; every member must fit.

    Raises:
      ValueError: no member.
      UserError: a member whose vocabulary is smaller than the policy's, or one that scores steps.
    """

    def __init__(
        self,
        members: Sequence[Any],
        *,
        aggregate: Aggregate = "mean",
        coefficient: float = 1.0,
        batch_size: int = 32,
        pad_multiple: int = 32,
        vocabulary: int | None = None,
    ) -> None:
        if not members:
            raise ValueError("an ensemble needs at least one reward model")
        for member in members:
            check_vocabulary(member, vocabulary)
            check_scores_whole(member)
        self.size = len(members)
        self.batch_size, self.pad_multiple = batch_size, pad_multiple
        self._aggregate = lambda scores: losses.aggregate_ensemble(
            jnp.asarray(scores), mode=aggregate, coefficient=coefficient
        )
        self._program = together(members) if of_one_shape(members) else one_by_one(members)

    def score(self, request: RewardRequest) -> Rewards:
        """`Rewards` with scores [N]; metrics are the mean disagreement and each member's mean."""
        scores = self.score_members(request_rows(request))
        disagreement = losses.ensemble_disagreement(jnp.asarray(scores))
        metrics = {"disagreement": float(np.mean(disagreement))}
        metrics |= {f"member-{k}": float(mean) for k, mean in enumerate(scores.mean(axis=1))}
        return Rewards(scores=np.asarray(self._aggregate(scores)), metrics=metrics)

    def score_rows(self, rows: Sequence[Sequence[int]]) -> np.ndarray:
        """float32 [N]: the aggregated score of each row of token ids."""
        return np.asarray(self._aggregate(self.score_members(rows)))

    def score_members(self, rows: Sequence[Sequence[int]]) -> np.ndarray:
        """float32 [K, N]: each member's score of each row of token ids."""
        scores = token_scores(self._program, rows, batch_size=self.batch_size, pad_multiple=self.pad_multiple)
        last = [row[:, -1] for row in scores]
        return np.stack(last, axis=1) if last else np.zeros((self.size, 0), np.float32)

    def offload(self) -> None:
        """Keeps the weights in host memory between calls from now on."""
        self._program.offload()


@dataclass
class Program:
    """A compiled function of weights and packed rows, with its weights.

    Attributes:
      function: (weights, tokens, positions, segment_ids), int32 [R, T] -> scores [..., R, T].
      params: the weights, on their devices or in the host's memory.
      shards: R must be a multiple of it.
    """

    function: Callable[..., Any]
    params: Any
    shards: int = 1

    def loaded(self) -> Callable[..., Any]:
        """(tokens, positions, segment_ids) -> scores, with the weights on the device for as long as it is there."""
        params = on_device(self.params)
        return lambda *rows: self.function(params, *rows)

    def offload(self) -> None:
        """Keeps the weights in host memory between uses from now on."""
        self.params = to_host(self.params)


def program_of(model: ScalarModel) -> Program:
    """The program of `token_scores` for a `ScalarModel`: scores [R, T], compiled once a shape."""
    definition, params = models.split(model)
    return _split_over(definition.config.mesh, jax.jit(forward_of(definition)), params)


def _split_over(mesh: Mesh | None, function: Callable[..., Any], params: Any) -> Program:
    """The program of a function whose rows are split over the mesh; None for one device."""
    if mesh is None:
        return Program(function, params)
    return Program(
        lambda params, *rows: function(params, *shard_batch(rows, mesh)), params, shards=row_shards(mesh)
    )


def forward_of(definition: ScalarDefinition, *, mapped: bool = False) -> Callable[..., jax.Array]:
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


def of_one_shape(members: Sequence[Any]) -> bool:
    """Whether the members' parameters can be stacked and run by one program."""
    (first, like), *others = (models.split(member) for member in members)

    def signature(params: dict[str, Any]):
        return jax.tree.map(lambda x: (x.shape, x.dtype), params)

    return all(definition == first and signature(params) == signature(like) for definition, params in others)


def together(members: Sequence[Any]) -> Program:
    """The program of `token_scores`, [K, R, T], one for all members."""
    definition = models.split(members[0])[0]
    params = [models.split(member)[1] for member in members]
    shared = all(same_arrays(params[0]["trunk"], other["trunk"]) for other in params[1:])
    axes = {"trunk": None if shared else 0, "head": 0, "normalizer": 0}
    stacked = {
        name: params[0][name] if axis is None else jax.tree.map(_stacked, *(p[name] for p in params))
        for name, axis in axes.items()
    }

    function = jax.jit(jax.vmap(forward_of(definition, mapped=True), in_axes=(axes, None, None, None)))
    return _split_over(definition.config.mesh, function, stacked)


def _stacked(*arrays: jax.Array) -> jax.Array:
    """Arrays of one shape as one, [K, ...], each device with its part of every one."""
    like = arrays[0].sharding
    if not isinstance(like, NamedSharding):
        return jnp.stack(arrays)
    sharding = NamedSharding(like.mesh, PartitionSpec(None, *like.spec))
    return jax.jit(lambda *x: jnp.stack(x), out_shardings=sharding)(*arrays)


def one_by_one(members: Sequence[Any]) -> Program:
    """The program of `token_scores`, [K, R, T], by a program for each member."""
    programs = [program_of(member) for member in members]

    def forward(params: Sequence[Any], *rows: np.ndarray):
        return np.stack([fetch(p.function(own, *rows)) for p, own in zip(programs, params, strict=True)])

    shards = math.lcm(*(program.shards for program in programs))
    return Program(forward, [program.params for program in programs], shards)


def same_arrays(a: Any, b: Any) -> bool:
    """Whether two trees of one structure hold the same numbers, bit for bit."""

    def same(x: Any, y: Any) -> bool:
        if isinstance(x, jax.Array) and not x.is_fully_addressable:  # other processes hold a part
            return bool(jax.jit(jnp.array_equal)(x, y))
        return np.array_equal(x, y)

    return all(x is y or same(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def check_vocabulary(model: ScalarModel, vocabulary: int | None) -> None:
    """Checks that a reward model's vocabulary covers the policy's.

    Raises:
      UserError: it does not.
    """
    if vocabulary is not None and model.config.vocab_size < vocabulary:
        raise UserError(
            f"reward model: its vocabulary has {model.config.vocab_size} tokens, the policy's {vocabulary}; "
            "they must share a tokenizer"
        )


def check_scores_whole(model: ScalarModel) -> None:
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
      batch_size: packed rows R at most, rounded up to a multiple of the program's shards.
      pad_multiple: T is a multiple of it, R and T are of short ladders, so that few programs serve all calls.

    Returns:
      N arrays, float32 [..., length of the row].
    """
    requested = [tuple(row) or (0,) for row in rows]
    rows = list(dict.fromkeys(requested))
    lengths = [len(row) for row in rows]
    width = pad_multiple * bucket(-(-max(lengths, default=1) // pad_multiple), per_octave=4)
    bins = best_fit_decreasing(lengths, width)
    batches = max(-(-len(bins) // batch_size), 1)
    height = max(min(bucket(-(-len(bins) // batches), per_octave=4), batch_size), 1)
    # Rows that are missing are filled up.
    height = -(-height // program.shards) * program.shards
    size, forward = len(rows) * width, program.loaded()
    tokens = np.zeros(size + 1, np.int32)  # the last one stands in padding
    for index, row in enumerate(rows):
        tokens[index * width : index * width + len(row)] = row
    flat_scores = np.zeros(0, np.float32)
    for start in range(0, len(bins), height):
        places = end_to_end(lengths, bins[start : start + height], width, height)
        layout = segments(places, size, width)
        scores = fetch(forward(tokens[places], layout["positions"], layout["segment_ids"]))
        if not start:
            flat_scores = np.zeros((*scores.shape[:-2], size + 1), np.float32)
        flat_scores[..., places] = scores
    begins = {row: index * width for index, row in enumerate(rows)}
    return [flat_scores[..., begins[row] : begins[row] + len(row)] for row in requested]
