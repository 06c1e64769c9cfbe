"""The doctors of a run, one or several: how their leaves and batches lie, and what their numbers are called.

Doctors of several dimensions are LoRA adapters on one base. One update, mapped over them, trains all: adapter, head of
log-values, optimizer state and batch are stacked, [K, ...], the base and the reference are shared, and each doctor has
its own reward scale, clipping and finite guard. So each learns what a run of its dimension alone would teach it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxalign.errors import ConfigError
from jaxalign.llmdoctor.tfpo_dimension import Dimension
from jaxalign.llmdoctor.tfpo_step import TFPOBatch
from jaxalign.mesh import shard_batch
from jaxalign.training.core import setup
from jaxalign.training.core.loop import Batches
from jaxalign.training.core.members import MemberBatches, create_member_states, member_of, stacked
from jaxalign.training.core.state import TrainState, create_state

# Of what `make_tfpo_loss` reads frozen: what each doctor has for itself.
OWN = ("horizon", "reward_scale")


@dataclass(frozen=True)
class Alone:
    """One doctor, nothing stacked.

    Attributes:
      dimensions: one.
    """

    dimensions: Sequence[Dimension]
    lift = None

    @property
    def batches(self) -> Batches:
        """The training batches, on the host."""
        return self.dimensions[0]

    def place(self, columns: Mapping[str, Any]) -> TFPOBatch:
        """Such a batch on the mesh."""
        one = self.dimensions[0]
        train = one.config.train
        return setup.on_mesh(
            columns, TFPOBatch, one.mesh, packing=train.packing, num_microbatches=train.accumulation_steps
        )

    def state(self, params: Sequence[Any], rule: optax.GradientTransformation) -> TrainState:
        """A fresh state of the parameters of each."""
        return create_state(params[0], rule)

    def frozen(self, frozen: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
        """What the update reads, of what each would read alone."""
        return frozen[0]

    def of(self, params: Any, index: int) -> Any:
        """The parameters of one doctor."""
        del index
        return params

    def named(self, index: int, row: Mapping[str, Any]) -> dict[str, Any]:
        """What was measured of one doctor, by the name that the run gives it."""
        del index
        return dict(row)

    def sampled(self, index: int, row: Mapping[str, Any]) -> dict[str, Any]:
        """A row of samples.jsonl of one doctor."""
        return self.named(index, row)


@dataclass(frozen=True)
class Together:
    """Several doctors, stacked; methods as of `Alone`.

    Attributes:
      dimensions: of each doctor.
    """

    dimensions: Sequence[Dimension]

    def lift(self, update: Callable) -> Callable:
        """For `make_update(lift=...)`: metrics of each doctor under its name; `finite` is 0 where any doctor's is."""
        shared = dict.fromkeys(("base", "reference"))
        # One key for all: each draws what it would draw alone.
        mapped = jax.vmap(update, in_axes=(0, shared | dict.fromkeys(OWN, 0), 0, None))

        def lifted(state: TrainState, frozen: Any, batch: Any, key: jax.Array):
            state, metrics = mapped(state, frozen, batch, key)
            finite = metrics.pop("finite")
            whole = {"finite": jnp.min(finite)}
            whole |= {name: jnp.mean(metrics[name]) for name in ("loss", "grad_norm")}
            for index, one in enumerate(self.dimensions):
                whole |= {f"{one.name}/{name}": values[index] for name, values in metrics.items()}
            return state, whole

        return lifted

    @property
    def batches(self) -> Batches:
        one = self.dimensions[0]
        train = one.config.train
        return MemberBatches(
            self.dimensions,
            packing=train.packing,
            num_microbatches=train.accumulation_steps,
            **setup.shards_of(one.mesh),
            loss_positions=True,
        )

    def place(self, columns: Mapping[str, Any]) -> TFPOBatch:
        return shard_batch(TFPOBatch.of(columns), self.dimensions[0].mesh, axis=1)

    def state(self, params: Sequence[Any], rule: optax.GradientTransformation) -> TrainState:
        return create_member_states(stacked(params), rule, len(params))

    def frozen(self, frozen: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
        return {**frozen[0]} | {name: jnp.stack([one[name] for one in frozen]) for name in OWN}

    def of(self, params: Any, index: int) -> Any:
        return member_of(params, index)

    def named(self, index: int, row: Mapping[str, Any]) -> dict[str, Any]:
        return {f"{self.dimensions[index].name}/{name}": value for name, value in row.items()}

    def sampled(self, index: int, row: Mapping[str, Any]) -> dict[str, Any]:
        return {"dimension": self.dimensions[index].name, **row}


def common_steps(dimensions: Sequence[Dimension]) -> int:
    """Optimizer steps in all, the same for all dimensions.

    Raises:
      ConfigError: the dimensions have different numbers of pairs, so that their epochs end at other steps.
    """
    totals = {one.name: one.config.train.total_steps(one.per_epoch) for one in dimensions}
    if len(set(totals.values())) > 1:
        told = ", ".join(f"{name} {steps:,}" for name, steps in totals.items())
        raise ConfigError(
            f"train.epochs: the dimensions have different numbers of pairs, and so of steps ({told}); set "
            "train.steps"
        )
    return next(iter(totals.values()))
