"""The Optax chain that a configuration describes."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW, its schedule and its clipping.

    Attributes:
      learning_rate: peak learning rate.
      schedule: shape after warm-up: constant, linear (to final_ratio), cosine (to final_ratio), or
        cosine_restarts (cycles equal cosines, each from the peak).
      warmup_steps: optimizer steps of linear warm-up from 0; 0 takes warmup_ratio.
      warmup_ratio: warm-up as a fraction of all optimizer steps, where warmup_steps is 0.
      cycles: number of cosines for cosine_restarts.
      final_ratio: last learning rate divided by the peak, for linear and cosine.
      beta1: decay of the first moment.
      beta2: decay of the second moment.
      epsilon: added to the root of the second moment.
      weight_decay: decoupled weight decay, on matrices only (norms and biases are left alone).
      max_grad_norm: global-norm clip; 0 turns it off.
    """

    learning_rate: float = 1e-4
    schedule: Literal["constant", "linear", "cosine", "cosine_restarts"] = "cosine"
    warmup_steps: int = 0
    warmup_ratio: float = 0.0
    cycles: int = 1
    final_ratio: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        if self.learning_rate < 0:
            raise ValueError(f"optimizer.learning_rate must not be negative, got {self.learning_rate}")
        if not 0 <= self.warmup_ratio < 1:
            raise ValueError(f"optimizer.warmup_ratio must lie in [0, 1), got {self.warmup_ratio}")
        if self.warmup_steps < 0:
            raise ValueError(f"optimizer.warmup_steps must not be negative, got {self.warmup_steps}")
        if self.cycles < 1:
            raise ValueError(f"optimizer.cycles must be 1 or more, got {self.cycles}")
        if self.max_grad_norm < 0:
            raise ValueError(f"optimizer.max_grad_norm must not be negative, got {self.max_grad_norm}")


def make_schedule(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
    """Learning rate by optimizer step (0-based), over `total_steps` steps in all."""
    warmup = config.warmup_steps or round(config.warmup_ratio * total_steps)
    warmup = min(warmup, max(total_steps - 1, 0))
    rest = max(total_steps - warmup, 1)
    peak, last = config.learning_rate, config.learning_rate * config.final_ratio
    body: optax.Schedule
    if config.schedule == "constant":
        body = optax.constant_schedule(peak)
    elif config.schedule == "linear":
        body = optax.linear_schedule(peak, last, rest)
    elif config.schedule == "cosine":
        body = optax.cosine_decay_schedule(peak, rest, alpha=config.final_ratio)
    else:

        def restarts(count: Any) -> Any:
            fraction = (count % (rest / config.cycles)) / (rest / config.cycles)
            return last + (peak - last) * 0.5 * (1.0 + jnp.cos(jnp.pi * fraction))

        body = restarts

    if warmup == 0:
        return body
    # Step 0 already moves: the first of w warm-up steps takes peak / (w + 1).
    ramp = optax.linear_schedule(peak / (warmup + 1), peak, warmup)
    return optax.join_schedules([ramp, body], [warmup])


def make_optimizer(
    config: OptimizerConfig, total_steps: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Global-norm clip, then AdamW on the schedule.

    Returns:
      The transformation and its learning-rate schedule (for the log).
    """
    schedule = make_schedule(config, total_steps)
    return optax.chain(*clipping(config), adamw(config, schedule)), schedule


def clipping(config: OptimizerConfig) -> list[optax.GradientTransformation]:
    """The global-norm clip, where there is one."""
    return [optax.clip_by_global_norm(config.max_grad_norm)] if config.max_grad_norm else []


def adamw(config: OptimizerConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """AdamW with the configuration's numbers."""
    return optax.adamw(
        schedule,
        b1=config.beta1,
        b2=config.beta2,
        eps=config.epsilon,
        weight_decay=config.weight_decay,
        mask=_decayed,
    )


def in_parts(parts: Mapping[str, optax.GradientTransformation]) -> optax.GradientTransformation:
    """One transformation for each part of the parameters, a dict with the same names."""
    transforms: dict[Hashable, optax.GradientTransformation] = {**parts}
    return optax.partition(
        transforms,
        lambda params: {name: jax.tree.map(lambda _, n=name: n, tree) for name, tree in params.items()},
    )


def with_other_parts(new: Any, old: Any, name: str) -> Any:
    """The state `new` of an optimizer with `in_parts` in it, but for all parts other than `name` that of `old`."""
    found = False

    def mixed(after: Any, before: Any) -> Any:
        nonlocal found
        if not isinstance(after, optax.PartitionState):
            return after
        found = True
        return optax.PartitionState({**before.inner_states, name: after.inner_states[name]})

    state = jax.tree.map(mixed, new, old, is_leaf=lambda x: isinstance(x, optax.PartitionState))
    if not found:
        raise ValueError(f"the optimizer has no state of its own for {name}")
    return state


def steps_taken(state: Any, name: str) -> int:
    """Steps that an optimizer's schedule has counted, where it has `in_parts` for the part of that name."""

    def of(kind: type, tree: Any) -> list:
        return [
            x for x in jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, kind)) if isinstance(x, kind)
        ]

    for parts in of(optax.PartitionState, state):
        state = parts.inner_states[name]
    (schedule,) = of(optax.ScaleByScheduleState, state)
    return int(schedule.count)


def _decayed(params):
    """True at matrices. Stacked layers [L, ...] add one axis, so names tell a vector from a matrix."""

    def is_matrix(path, leaf) -> bool:
        name = str(getattr(path[-1], "key", path[-1]))
        return leaf.ndim >= 2 and "norm" not in jax.tree_util.keystr(path) and "bias" not in name

    return jax.tree_util.tree_map_with_path(is_matrix, params)
