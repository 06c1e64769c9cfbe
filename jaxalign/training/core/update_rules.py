"""Optax's update rules by name, from a clipped gradient to a parameter update."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import optax
from optax import contrib

from jaxalign.errors import ConfigError

Name = Literal["adamw", "adam", "lion", "adafactor", "muon", "sgd", "schedule_free_adamw"]


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """The numbers of a rule; None for those it does not use.

    Attributes:
      beta1, beta2, epsilon, weight_decay: see `OptimizerConfig`.
      dtype: of the first moment; None for that of the parameters.
    """

    beta1: Any
    beta2: Any
    epsilon: Any
    weight_decay: float
    dtype: Any


@dataclass(frozen=True)
class UpdateRule:
    """One rule.

    Attributes:
      make: numbers, schedule -> the transformation, learning rate and sign included.
      defaults: of the numbers it reads, by the name of the key.
      decays: whether it has a weight decay.
      moment: whether its first moment may have a dtype of its own.
      in_8_bits: whether its moments may be kept in 8 bits.
    """

    make: Callable[[Numbers, optax.Schedule], optax.GradientTransformation]
    defaults: Mapping[str, float]
    decays: bool = True
    moment: bool = True
    in_8_bits: bool = True


def _adamw(n: Numbers, schedule: optax.Schedule) -> optax.GradientTransformation:
    return optax.adamw(
        schedule, n.beta1, n.beta2, n.epsilon, mu_dtype=n.dtype, weight_decay=n.weight_decay, mask=is_matrix
    )


def _adam(n: Numbers, schedule: optax.Schedule) -> optax.GradientTransformation:
    return optax.adam(schedule, n.beta1, n.beta2, n.epsilon, mu_dtype=n.dtype)


def _lion(n: Numbers, schedule: optax.Schedule) -> optax.GradientTransformation:
    return optax.lion(
        schedule, n.beta1, n.beta2, mu_dtype=n.dtype, weight_decay=n.weight_decay, mask=is_matrix
    )


def _adafactor(n: Numbers, schedule: optax.Schedule) -> optax.GradientTransformation:
    # Not optax.adafactor: its weight decay does not follow the learning rate.
    return optax.chain(
        optax.scale_by_factored_rms(decay_rate=n.beta2, epsilon=n.epsilon),
        optax.clip_by_block_rms(1.0),
        optax.add_decayed_weights(n.weight_decay, is_matrix),
        optax.scale_by_learning_rate(schedule),
    )


def _muon(n: Numbers, schedule: optax.Schedule) -> optax.GradientTransformation:
    # Layers lie stacked, [L, inputs, outputs], with experts [L, E, inputs, outputs]; embeddings, heads and vectors have
    # fewer axes.
    def axes(params: Any) -> Any:
        return jax.tree.map(lambda x: contrib.MuonDimensionNumbers(x.ndim - 2, x.ndim - 1), params)

    matrices = contrib.muon(
        schedule,
        beta=n.beta1,
        weight_decay=n.weight_decay,
        mu_dtype=n.dtype,
        muon_weight_dimension_numbers=axes,
        consistent_rms=0.2,
    )
    # Not the Adam of contrib.muon, which looks ahead as Muon does (Nesterov).
    rest = optax.adamw(
        schedule, 0.9, n.beta2, n.epsilon, mu_dtype=n.dtype, weight_decay=n.weight_decay, mask=is_matrix
    )
    return optax.partition(
        {"muon": matrices, "adamw": rest},
        lambda params: jax.tree_util.tree_map_with_path(
            lambda path, x: "muon" if x.ndim >= 3 and not of_vectors(path) else "adamw", params
        ),
    )


def _sgd(n: Numbers, schedule: optax.Schedule) -> optax.GradientTransformation:
    return optax.chain(
        optax.trace(decay=n.beta1, accumulator_dtype=n.dtype) if n.beta1 else optax.identity(),
        optax.add_decayed_weights(n.weight_decay, is_matrix),
        optax.scale_by_learning_rate(schedule),
    )


def _schedule_free_adamw(n: Numbers, schedule: optax.Schedule) -> optax.GradientTransformation:
    # As contrib.schedule_free_adamw, which has no mask.
    base = optax.chain(
        optax.scale_by_rms(decay=n.beta2, eps=n.epsilon, eps_in_sqrt=False, bias_correction=True),
        optax.add_decayed_weights(n.weight_decay, is_matrix),
        optax.scale_by_learning_rate(schedule),
    )
    return contrib.schedule_free(base, learning_rate=schedule, b1=n.beta1)


ADAM = {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8}
RULES: Mapping[str, UpdateRule] = {
    "adamw": UpdateRule(_adamw, ADAM),
    "adam": UpdateRule(_adam, ADAM, decays=False),
    "lion": UpdateRule(_lion, {"beta1": 0.9, "beta2": 0.99}),
    "adafactor": UpdateRule(_adafactor, {"beta2": 0.8, "epsilon": 1e-30}, moment=False, in_8_bits=False),
    "muon": UpdateRule(_muon, {"beta1": 0.95, "beta2": 0.999, "epsilon": 1e-8}),
    "sgd": UpdateRule(_sgd, {"beta1": 0.0}, in_8_bits=False),
    "schedule_free_adamw": UpdateRule(_schedule_free_adamw, ADAM, moment=False, in_8_bits=False),
}


def is_matrix(params: Any) -> Any:
    """True at matrices. Stacked layers [L, ...] add one axis, so names tell a vector from a matrix."""
    return jax.tree_util.tree_map_with_path(lambda path, x: x.ndim >= 2 and not of_vectors(path), params)


def of_vectors(path: Any) -> bool:
    """Whether a path names norms, biases, attention's sinks or DoRA's magnitudes."""
    name = str(getattr(path[-1], "key", path[-1]))
    return "norm" in jax.tree_util.keystr(path) or "bias" in name or "magnitude" in name or name == "sinks"


def averaged_params(params: Any, opt_state: Any) -> Any:
    """The parameters to evaluate and save: the average of a schedule-free optimizer, else `params` themselves.

    Where the optimizer is schedule-free it takes all of the parameters; see `refuse_schedule_free`.
    """
    states = schedule_free_states(opt_state)
    return contrib.schedule_free_eval_params(states[0], params) if states else params


def refuse_schedule_free(opt_state: Any, reason: str) -> None:
    """Refuses a schedule-free optimizer where the average that it keeps could not be evaluated.

    Raises:
      ConfigError: with the reason.
    """
    if schedule_free_states(opt_state):
        raise ConfigError(
            f"optimizer: a schedule-free optimizer cannot be combined with {reason}; choose another"
        )


def schedule_free_states(opt_state: Any) -> list[contrib.ScheduleFreeState]:
    """The states of schedule-free optimizers in that of a whole chain."""

    def is_state(x: Any) -> bool:
        return isinstance(x, contrib.ScheduleFreeState)

    return [x for x in jax.tree.leaves(opt_state, is_leaf=is_state) if is_state(x)]
