"""Several reward models as one reward, which holds their disagreement against a completion where asked to."""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign import losses, models
from jaxalign.rewards.base import Rewards
from jaxalign.rewards.calls import RewardRequest
from jaxalign.rewards.model import (
    Program,
    check_scores_whole,
    check_vocabulary,
    forward_of,
    program_of,
    request_rows,
    token_scores,
)

Aggregate = Literal["mean", "mean_minus_std", "worst"]


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
        found = token_scores(self._program, rows, batch_size=self.batch_size, pad_multiple=self.pad_multiple)
        last = [scores[:, -1] for scores in found]
        return np.stack(last, axis=1) if last else np.zeros((self.size, 0), np.float32)

    def offload(self) -> None:
        """From now on the weights wait in the host's memory between calls."""
        self._program.offload()


def of_one_shape(members: Sequence[Any]) -> bool:
    """Whether the members' parameters can be stacked and run by one program."""
    (first, like), *others = (models.split(member) for member in members)

    def signature(params):
        return jax.tree.map(lambda x: (x.shape, x.dtype), params)

    return all(definition == first and signature(params) == signature(like) for definition, params in others)


def together(members: Sequence[Any]) -> Program:
    """The program of `token_scores`, [K, R, T], one for all members."""
    definition = models.split(members[0])[0]
    params = [models.split(member)[1] for member in members]
    shared = all(same_arrays(params[0]["trunk"], other["trunk"]) for other in params[1:])
    axes = {"trunk": None if shared else 0, "head": 0, "normalizer": 0}
    stacked = {
        name: params[0][name]
        if axis is None
        else jax.tree.map(lambda *x: jnp.stack(x), *(p[name] for p in params))
        for name, axis in axes.items()
    }

    function = jax.jit(jax.vmap(forward_of(definition, mapped=True), in_axes=(axes, None, None, None)))
    return Program(function, stacked)


def one_by_one(members: Sequence[Any]) -> Program:
    """The program of `token_scores`, [K, R, T], by a program for each member."""
    programs = [program_of(member) for member in members]

    def forward(params, *rows):
        return np.stack([p.function(own, *rows) for p, own in zip(programs, params, strict=True)])

    return Program(forward, [program.params for program in programs])


def same_arrays(a: Any, b: Any) -> bool:
    """Whether two trees of one structure hold the same numbers, bit for bit."""
    return all(
        x is y or np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )
