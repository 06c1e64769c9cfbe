"""Several models trained by one program, `jax.vmap` of an update: their batches and leaves, stacked [K, ...]."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from jaxalign.data import packed_alike, with_loss_positions_alike
from jaxalign.errors import DataError
from jaxalign.training.core import setup
from jaxalign.training.core.loop import Batches
from jaxalign.training.core.state import TrainState, create_state


class MemberBatches:
    """One batch for each member, stacked [K, ...]: the protocol of `BatchIterator`.

    Args:
      members: of each.
      options: of `stack_batches`.
    """

    def __init__(self, members: Sequence[Batches], **options: Any) -> None:
        self._members, self._options = list(members), options

    @property
    def per_epoch(self) -> float:
        """Batches of an epoch, the same number for each."""
        return self._members[0].per_epoch

    def next(self) -> dict[str, Any]:
        """The next batch of every member."""
        return stack_batches([member.next() for member in self._members], **self._options)

    def state(self) -> dict[str, Any]:
        """The positions of all members."""
        return {"members": [dict(member.state()) for member in self._members]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes to saved positions.

        Raises:
          DataError: they were saved on other data or with other seeds.
        """
        for member, saved in zip(self._members, state["members"], strict=True):
            member.restore(saved)


def stack_batches(
    batches: Sequence[Mapping[str, Any]],
    *,
    packing: bool = False,
    num_microbatches: int = 1,
    shards: int = 1,
    length_shards: int = 1,
    loss_positions: bool = False,
) -> dict[str, np.ndarray]:
    """The numeric arrays of K batches as [K, ...]; rows of tokens are filled up to one width.

    Args:
      batches: one of each member.
      packing: lay out each member's rows in fewer ones, as many for all.
      num_microbatches, shards, length_shards: see `data.packed`.
      loss_positions: whether a vocabulary head reads them; it will read what predicts counted tokens, as many for all.

    Raises:
      DataError: questions with different numbers of candidates.
    """
    layout = {"num_microbatches": num_microbatches, "shards": shards, "length_shards": length_shards}
    found = [setup.device_part(batch) for batch in batches]
    shapes = [batch["tokens"].shape for batch in found]
    if len({shape[:-1] for shape in shapes}) > 1:
        raise DataError(
            "all rankings of a data set need the same number of candidates; found "
            + " and ".join(sorted({str(shape[1]) for shape in shapes}))
        )
    width = max(shape[-1] for shape in shapes)

    def filled(array: np.ndarray) -> np.ndarray:
        if array.ndim < len(shapes[0]):  # one number a row, or a question
            return array
        return np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, width - array.shape[-1])])

    found = [{name: filled(array) for name, array in batch.items()} for batch in found]
    if packing:
        found = packed_alike(found, loss_positions=loss_positions, **layout)
    elif loss_positions:
        whole = [{**batch, **arrays} for batch, arrays in zip(batches, found, strict=True)]
        found = [setup.device_part(batch) for batch in with_loss_positions_alike(whole, **layout)]
    return {name: np.stack([batch[name] for batch in found]) for name in found[0]}


def stacked(trees: Sequence[Any]) -> Any:
    """One tree of all members' leaves, [K, ...], each laid out as a member's is and whole along the new axis."""
    return jax.tree.map(lambda *leaves: _stacked(leaves), *trees)


def _stacked(leaves: Sequence[jax.Array]) -> jax.Array:
    sharding = leaves[0].sharding
    assert isinstance(sharding, NamedSharding)
    spec = PartitionSpec(None, *sharding.spec)
    return jax.device_put(jnp.stack(leaves), NamedSharding(sharding.mesh, spec))


def member_of(tree: Any, index: int) -> Any:
    """One member's leaves."""
    return jax.tree.map(lambda x: x[index], tree)


def create_member_states(trained: Any, optimizer: optax.GradientTransformation, size: int) -> TrainState:
    """Fresh states of all members, every leaf [K, ...]."""
    # The optimizer looks at the rank of a leaf, so it must see a member's.
    state = create_state(trained, optimizer._replace(init=jax.vmap(optimizer.init)))
    return replace(state, step=jax.device_put(jnp.zeros(size, jnp.int32), state.step.sharding))
