"""How GRPO and its relatives make advantages of a rollout's rewards: the table of `loss.advantages`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp

from jaxalign import losses


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class RewardedRows:
    """A whole rollout of N completions, those of a prompt together.

    Attributes:
      scores: float32 [N], the reward of each completion.
      valid: bool [N], rows to which a reward applies.
      mask: bool [N, T], completion tokens.
      logps: float32 [N, T], under the policy that sampled, nats; None where nothing reads it.
      ref_logps: the same under the reference; None likewise.
      step_rewards: float32 [N, T], read where a step ends.
      steps: bool [N, T], where a step of a solution ends.
      group: completions a prompt.
      beta: weight of the KL that advantages take off the rewards themselves (see `Advantages.takes_kl`).
    """

    scores: jax.Array
    valid: jax.Array
    mask: jax.Array
    logps: jax.Array | None = None
    ref_logps: jax.Array | None = None
    step_rewards: jax.Array | None = None
    steps: jax.Array | None = None
    group: int = field(metadata={"static": True})
    beta: float = field(default=0.0, metadata={"static": True})


AdvantageFn = Callable[[RewardedRows], jax.Array]
"""Advantages [N, T] of a rollout; 0 where masked."""


def of_rows(function: Callable[..., jax.Array]) -> AdvantageFn:
    """The `AdvantageFn` of a function of (rewards[N], completions a prompt, mask[N]) -> [N]: one a completion."""

    def advantages(rows: RewardedRows) -> jax.Array:
        return jnp.where(rows.mask, function(rows.scores, rows.group, rows.valid)[:, None], 0.0)

    return advantages


def _global(rewards: jax.Array, group_size: int, mask: jax.Array) -> jax.Array:
    del group_size
    return losses.global_batch_advantages(rewards, mask)


def _reinforce_plus_plus(rows: RewardedRows) -> jax.Array:
    logps, ref_logps = rows.logps, rows.ref_logps
    if not rows.beta or logps is None or ref_logps is None:
        logps = ref_logps = jnp.zeros(rows.mask.shape)
    return losses.reinforce_plus_plus_advantages(rows.scores, logps, ref_logps, rows.mask, beta=rows.beta)


def _process(rows: RewardedRows) -> jax.Array:
    assert rows.step_rewards is not None and rows.steps is not None
    return losses.process_group_advantages(rows.step_rewards, rows.steps, rows.group, rows.mask)


@dataclass(frozen=True)
class Advantages:
    """One way to make advantages, and what it needs.

    Attributes:
      function: makes them.
      meaning: for `--help`.
      groups: it compares the completions of a prompt, so that there must be 2 or more.
      steps: it reads token rewards where steps end, and differs from token to token.
      takes_kl: it takes beta's KL off the rewards itself.
    """

    function: AdvantageFn
    meaning: str
    groups: bool = True
    steps: bool = False
    takes_kl: bool = False


ADVANTAGES: Mapping[str, Advantages] = {
    "group": Advantages(
        of_rows(losses.group_advantages), "minus the group's mean, divided by its standard deviation"
    ),
    "group_mean": Advantages(
        of_rows(partial(losses.group_advantages, scale="none")), "minus the group's mean"
    ),
    "batch": Advantages(
        of_rows(partial(losses.group_advantages, scale="batch")),
        "minus the group's mean, divided by the batch's standard deviation",
    ),
    "leave_one_out": Advantages(
        of_rows(losses.leave_one_out_advantages), "minus the mean of the group's other completions"
    ),
    "global": Advantages(of_rows(_global), "normalized over the whole batch, without groups", groups=False),
    "reinforce++": Advantages(
        _reinforce_plus_plus,
        "normalized over all tokens of the batch, with the KL in the reward",
        groups=False,
        takes_kl=True,
    ),
    "reinforce++_baseline": Advantages(
        of_rows(losses.reinforce_plus_plus_baseline_advantages),
        "minus the group's mean, normalized over the whole batch",
    ),
    "process": Advantages(
        _process,
        "token rewards of steps, normalized over the group; a token's advantage is the sum of the rewards from it on, "
        "and a score is added to the last step's reward",
        steps=True,
    ),
}
