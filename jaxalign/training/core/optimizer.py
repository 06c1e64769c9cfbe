"""Builds the Optax chain of a configuration."""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from jaxalign.errors import ConfigError
from jaxalign.training.core.moments_8bit import in_8_bits
from jaxalign.training.core.spike_guard import without_spikes
from jaxalign.training.core.update_rules import RULES, Name, Numbers


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The optimizer, its learning-rate schedule and gradient clipping.

    Attributes:
      name: optimizer: adamw; adam; lion (arXiv:2302.06675); adafactor (arXiv:1804.04235; learning_rate is absolute,
        not relative to the weights); muon for the layers' matrices, scaled to the size of AdamW's updates
        (arXiv:2502.16982), with adamw for all other parameters; sgd; or schedule_free_adamw (arXiv:2405.15682), which
        needs schedule=constant and supports only training on a fixed data set.
      learning_rate: peak learning rate.
      schedule: learning-rate schedule after warm-up: constant, linear (down to final_ratio), cosine (down to
        final_ratio) or cosine_restarts (`cycles` equal cosines, each from the peak).
      warmup_steps: optimizer steps of linear warm-up; 0 uses warmup_ratio.
      warmup_ratio: warm-up as a fraction of all optimizer steps, used when warmup_steps is 0.
      cycles: number of cosine cycles for cosine_restarts.
      final_ratio: final learning rate as a fraction of the peak.
      beta1: decay rate of the first moment (momentum of muon and sgd); null uses the optimizer's default: 0.9, 0.95
        for muon, 0 for sgd.
      beta2: decay rate of the second moment; null uses 0.999, 0.99 for lion, 0.8 for adafactor (the exponent of its
        rising decay rate).
      epsilon: constant added to the root of the second moment; null uses 1e-8, or 1e-30 for adafactor (added to the
        squared gradient).
      moment_dtype: dtype of the first moment: the parameters' own, float32 or bfloat16; or 8bit: both moments of
        matrices (not embeddings) in blocks of 8-bit codes (arXiv:2110.02861), for adamw, adam, lion and muon.
      weight_decay: decoupled weight decay, applied to matrices only (not to norms and biases).
      max_grad_norm: maximum global norm of the gradient, which is clipped to it; 0 disables clipping.
      spike_zscore: skip a step whose gradient norm lies more than this many standard deviations above the moving mean
        of the norms before (statistics of arXiv:2504.02507; none is skipped in the first 25 steps); 0 skips none. 6 is
        a cautious start.
    """

    name: Name = "adamw"
    learning_rate: float = 1e-4
    schedule: Literal["constant", "linear", "cosine", "cosine_restarts"] = "cosine"
    warmup_steps: int = 0
    warmup_ratio: float = 0.0
    cycles: int = 1
    final_ratio: float = 0.0
    beta1: float | None = None
    beta2: float | None = None
    epsilon: float | None = None
    moment_dtype: Literal["parameters", "float32", "bfloat16", "8bit"] = "parameters"
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    spike_zscore: float = 0.0

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
        if not 0 <= self.spike_zscore < float("inf"):
            raise ValueError(f"optimizer.spike_zscore must be 0 or more, got {self.spike_zscore}")
        rule = RULES[self.name]
        for key in ("beta1", "beta2", "epsilon"):
            if getattr(self, key) is not None and key not in rule.defaults:
                raise ValueError(f"optimizer.{key} is not used by optimizer.name={self.name}; set it to null")
        if self.weight_decay and not rule.decays:
            raise ValueError(
                f"optimizer.weight_decay: optimizer.name={self.name} does not support it; adamw does"
            )
        if self.moment_dtype != "parameters" and not rule.moment:
            raise ValueError(
                f"optimizer.moment_dtype: optimizer.name={self.name} has no first moment; set it to parameters"
            )
        if self.moment_dtype == "8bit" and not rule.in_8_bits:
            raise ValueError(
                f"optimizer.moment_dtype=8bit is for {', '.join(n for n, r in RULES.items() if r.in_8_bits)}, not for "
                f"optimizer.name={self.name}"
            )
        if self.name == "schedule_free_adamw" and self.schedule != "constant":
            raise ValueError(
                "optimizer.name=schedule_free_adamw averages weights instead of decaying the learning rate: it "
                f"needs optimizer.schedule=constant, got {self.schedule}"
            )

    def numbers(self) -> Numbers:
        """The numbers of the update rule, with its defaults where the configuration has none."""
        given = {key: getattr(self, key) for key in ("beta1", "beta2", "epsilon")}
        own = RULES[self.name].defaults
        dtypes = {"parameters": None, "8bit": "float32"}
        dtype = dtypes.get(self.moment_dtype, self.moment_dtype)
        read = {key: own.get(key) if value is None else value for key, value in given.items()}
        return Numbers(**read, weight_decay=self.weight_decay, dtype=dtype)


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
    config: OptimizerConfig, total_steps: int, given: Any = None
) -> tuple[optax.GradientTransformation, optax.Schedule | None]:
    """Global-norm clip, then the update rule on the schedule.

    Args:
      config: which.
      total_steps: of the schedule.
      given: an Optax transformation in place of all that, or a schedule in place of the configuration's; or None.

    Returns:
      The transformation and its learning-rate schedule for the log, None where it is not known.

    Raises:
      ConfigError: `given` is neither.
    """
    if isinstance(given, optax.GradientTransformation):
        return guarded(given, config), None
    if given is not None and not callable(given):
        raise ConfigError(
            f"optimizer: expected an Optax transformation or a schedule (step -> learning rate), got {given!r:.60}"
        )
    schedule: Any = given or make_schedule(config, total_steps)
    return guarded(optax.chain(*clipping(config), update_rule(config, schedule)), config), schedule


def guarded(rule: optax.GradientTransformation, config: OptimizerConfig) -> optax.GradientTransformation:
    """The transformation, which skips spikes where the configuration says so."""
    return without_spikes(rule, config.spike_zscore) if config.spike_zscore else rule


def clipping(config: OptimizerConfig) -> list[optax.GradientTransformation]:
    """The global-norm clip, where there is one."""
    return [optax.clip_by_global_norm(config.max_grad_norm)] if config.max_grad_norm else []


def update_rule(config: OptimizerConfig, schedule: Callable[[Any], Any]) -> optax.GradientTransformation:
    """The configuration's update rule, without the clip."""
    rule = RULES[config.name].make(config.numbers(), schedule)
    return in_8_bits(rule) if config.moment_dtype == "8bit" else rule


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
        raise ValueError(f"the optimizer has no separate state for {name}")
    return state


def steps_taken(state: Any, name: str) -> int:
    """Steps that an optimizer's schedule has counted, where it has `in_parts` for the part of that name."""

    def of(kind: type, tree: Any) -> list:
        return [
            x for x in jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, kind)) if isinstance(x, kind)
        ]

    for parts in of(optax.PartitionState, state):
        state = parts.inner_states.get(name, parts)
    # Muon has a second one, for what it leaves to Adam.
    return int(of(optax.ScaleByScheduleState, state)[0].count)
