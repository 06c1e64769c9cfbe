"""Timed steps of supervised fine-tuning on one batch: what `growth.py` and `gpu_rows.py` share."""

from collections.abc import Callable
from typing import Any

import jax

from jaxalign.training.core.scoring import CausalPolicy
from jaxalign.training.core.state import TrainState
from jaxalign.training.core.step import make_update
from jaxalign.training.sft import SFTLossConfig, make_sft_loss, sft_counts


def sft_steps(
    policy: CausalPolicy,
    optimizer: Any,
    state: TrainState,
    frozen: Any,
    batch: Any,
    *,
    count: int,
    clock: Callable[[], Any],
) -> tuple[list[Any], tuple[Any, ...]]:
    """A first step, which compiles, and `count` more.

    Args:
      policy: what is trained; its frozen leaves are `frozen`.
      optimizer: made `state`, which is given away.
      batch: rows as `make_sft_loss` reads them.
      clock: gives what can be subtracted, read before and after each step.

    Returns:
      What passed on the clock in each of the 1 + `count` steps, and the update with its last arguments.
    """
    update = make_update(make_sft_loss(policy, SFTLossConfig()), sft_counts, optimizer)
    times, key = [], jax.random.key(1)
    for _ in range(count + 1):
        began = clock()
        state, metrics = update(state, frozen, batch, key)
        jax.block_until_ready((state, metrics))
        times.append(clock() - began)
    return times, (update, state, frozen, batch, key)
