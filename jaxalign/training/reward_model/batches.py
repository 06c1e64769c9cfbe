"""What the losses of reward models read: pairs, or rankings."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxalign.arrays import AnyArray
from jaxalign.training.core.batch import CompletionBatch


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class PairBatch(CompletionBatch):
    """Chosen and rejected completions, G = 2.

    Attributes:
      margin: by which the labels prefer the chosen one; 0 where they give none.
    """

    margin: Float[AnyArray, " B"]

    @property
    def best(self) -> Int[Array, " B"]:
        """The index of the chosen completion."""
        return jnp.zeros(self.shape[0], jnp.int32)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class RankingBatch(CompletionBatch):
    """G candidates of each question.

    Attributes:
      best: the index of the best one.
    """

    best: Int[AnyArray, " B"]
