"""Dynamic loss scaling, by which gradients that pass through float16 neither vanish nor overflow (arXiv:1710.03740)."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.models.flops import Pass
from jaxalign.training.core.state import TrainState

# Those of torch.amp.GradScaler.
FIRST = 2.0**16
FACTOR = 2.0
INTERVAL = 2000


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LossScale:
    """What the loss is multiplied by, and its gradient divided by.

    Attributes:
      value: float32, 1 or more; one a member where several models are trained together.
      steps: int32, the steps since it last changed.
    """

    value: jax.Array
    steps: jax.Array

    def apply(self, loss_function: Callable) -> Callable:
        """The loss function scaled: (loss, metrics) of the same arguments."""

        def scaled(*arguments: Any) -> tuple[jax.Array, Any]:
            loss, metrics = loss_function(*arguments)
            return loss * self.value, metrics

        return scaled

    def undo(self, tree: Any) -> Any:
        """The loss and gradients of `apply`'s function, unscaled."""
        return jax.tree.map(lambda x: x / self.value, tree)

    def next(self, finite: jax.Array) -> "LossScale":
        """Half of it after a step that overflowed, twice it after 2,000 that did not."""
        grown = self.steps + 1 >= INTERVAL
        up = jnp.where(grown, self.value * FACTOR, self.value)
        down = jnp.maximum(self.value / FACTOR, 1.0)
        return LossScale(jnp.where(finite, up, down), jnp.where(finite & ~grown, self.steps + 1, 0))


def with_loss_scale(state: TrainState, passes: Iterable[Pass]) -> TrainState:
    """A fresh state, with a loss scale if what learns computes in float16."""
    if not any(p.learns != "nothing" and p.config.compute_dtype == "float16" for p in passes):
        return state
    return replace(
        state, loss_scale=LossScale(jnp.full_like(state.step, FIRST, jnp.float32), jnp.zeros_like(state.step))
    )


def of_taken_steps(values: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics of a step; of one that was skipped because it overflowed only those that are finite."""
    return {k: v for k, v in values.items() if not values.get("overflow") or np.isfinite(v)}
