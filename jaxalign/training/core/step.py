"""A loss becomes a jitted update: accumulation, clipping, the optimizer, metrics.

A loss function has the form

    loss(params, frozen, batch, key, counts) -> (loss, metrics)

where `counts` are numbers over the *whole* batch (tokens, rows), so that the losses
of micro-batches add up to the loss of the batch; and `metrics` maps a name to a pair
(sum, count), added over micro-batches and divided once at the end (a name that ends
in `_max` takes the largest instead; one that ends in `_square` is only for the spread in
evaluations, and training does not report it).
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from einops import rearrange

from jaxalign.training.core.optimizer import with_other_parts
from jaxalign.training.core.spike_guard import skipped
from jaxalign.training.core.state import TrainState

# A pytree of arrays whose axis 0 is rows: one of the dataclasses of `batch` and of the trainers.
Batch = Any
Metrics = dict[str, tuple[jax.Array, jax.Array]]
LossFunction = Callable[[Any, Any, Batch, jax.Array, Any], tuple[jax.Array, Metrics]]
CountFunction = Callable[[Batch], Any]
# Metrics of a mixture of experts: its load-balancing loss; and what the update adds to the loss, not reported.
ROUTER_LOSS, ROUTER_PENALTY = "router_loss", "router_penalty"


def mean_of(values: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A metric's (sum, count) over the counted slots; masked entries may hold anything."""
    mask = jnp.broadcast_to(mask, values.shape)
    total = jnp.sum(jnp.where(mask, values, 0).astype(jnp.float32))
    return total, jnp.sum(mask.astype(jnp.float32))


def make_update(
    loss_function: LossFunction,
    count_function: CountFunction,
    optimizer: optax.GradientTransformation,
    *,
    accumulation_steps: int = 1,
    accept: Callable[[Mapping[str, jax.Array]], jax.Array] | None = None,
    lift: Callable[[Callable], Callable] | None = None,
    learning: str = "",
) -> "Update":
    """Builds `update(state, frozen, batch, key) -> (state, metrics)`, jitted, `state` donated.

    The rows of the batch (axis 0 of every array) are split into `accumulation_steps`
    micro-batches that run one after another; the result equals one large batch.
    Where the loss or the gradient norm is not finite the old state is returned and
    `metrics["finite"]` is 0. But where the state has a loss scale above 1 such a step is skipped: the scale falls,
    `metrics["overflow"]` is 1 and `metrics["finite"]` too. Where `accept(metrics)` of the whole batch is False the old
    state is returned too, and `metrics["skipped"]` is 1. The key is folded with the step, so a resumed run
    repeats itself. `lift` makes another function of the whole update before it is compiled: an ensemble's
    maps it over members.

    With `learning`, the name of one part of the parameters (a dict of them), only that part has a gradient and learns.
    The others and what the optimizer holds for them (see `optimizer.in_parts`) stay as they are, bit for bit.

    Raises:
      ValueError: the rows are not divisible by `accumulation_steps` (when traced).
    """

    def gradient(function: LossFunction) -> Callable:
        if learning:
            return accumulated(gradient_of_part(function, learning), accumulation_steps)
        return accumulated(jax.value_and_grad(function, has_aux=True), accumulation_steps)

    def update(state: TrainState, frozen: Any, batch: Batch, key: jax.Array):
        step_key, scale = jax.random.fold_in(key, state.step), state.loss_scale
        function = penalized(loss_function, batch)
        whole = gradient(scale.apply(function) if scale else function)
        (loss, sums), grads = whole(state.params, frozen, batch, step_key, count_function(batch))
        if scale:
            loss, grads = scale.undo((loss, grads))
        norm = optax.global_norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        metrics = {
            name: total / jnp.maximum(count, 1e-9)
            for name, (total, count) in sums.items()
            if not name.endswith("_square")
        }
        keep = finite
        if accept is not None:
            accepted = accept(metrics)
            keep = finite & accepted
            metrics["skipped"] = 1.0 - accepted.astype(jnp.float32)
        passed = finite | (scale.value > 1) if scale else finite
        metrics |= {"loss": loss, "grad_norm": norm, "finite": passed.astype(jnp.float32)}
        if scale:
            metrics |= {"loss_scale": scale.value, "overflow": 1 - finite.astype(jnp.float32)}

        def stepped() -> TrainState:
            if not learning:
                changes, opt_state = optimizer.update(grads, state.opt_state, state.params)
                return TrainState(state.step + 1, optax.apply_updates(state.params, changes), opt_state)
            padded = jax.tree.map(jnp.zeros_like, dict(state.params)) | grads
            changes, opt_state = optimizer.update(padded, state.opt_state, state.params)
            learnt = optax.apply_updates(state.params[learning], dict(changes)[learning])  # type: ignore[arg-type]
            opt_state = with_other_parts(opt_state, state.opt_state, learning)
            return TrainState(state.step + 1, {**state.params, learning: learnt}, opt_state)

        # Leaf by leaf, which XLA fuses with the optimizer's update, in place. `lax.cond` would hold a second state on
        # GPUs.
        new = jax.tree.map(
            lambda new, old: jnp.where(keep, new, old), stepped(), replace(state, loss_scale=None)
        )
        if scale:
            # A batch was read also where the step was skipped.
            step = jnp.where(passed, state.step + 1, state.step)
            new = replace(new, step=step, loss_scale=scale.next(finite))
        return new, metrics | skipped(state.opt_state, new.opt_state)

    return Update(lift(update) if lift else update)


class Update:
    """An optimizer step, jitted; `state` is donated. The new state lies where the old one lay."""

    def __init__(self, function: Callable[..., tuple[TrainState, dict[str, jax.Array]]]) -> None:
        self._function = function
        self._compiled: Any = None

    def __call__(
        self, state: TrainState, frozen: Any, batch: Any, key: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """Takes the step."""
        if self._compiled is None:
            self._compiled = self._jitted(state)
        return self._compiled(state, frozen, batch, key)

    def lower(self, state: TrainState, frozen: Any, batch: Any, key: Any) -> jax.stages.Lowered:
        """The step traced for arguments, or for their shapes (`jax.ShapeDtypeStruct` with a sharding)."""
        return self._jitted(state).lower(state, frozen, batch, key)

    def _jitted(self, state: TrainState) -> Any:
        # Shardings of the result: else the second step would be another program.
        shardings = jax.tree.map(lambda x: x.sharding, state)
        return jax.jit(self._function, donate_argnums=0, out_shardings=(shardings, None))


def penalized(function: LossFunction, whole: Batch) -> LossFunction:
    """The loss with a router's penalty, where it is among the metrics.

    That of a micro-batch counts by its share of the tokens of the whole batch: it is of the experts' load within the
    micro-batch, so that here, as in transformers, micro-batches are not quite one large batch.
    """

    def penalized_loss(params: Any, frozen: Any, batch: Batch, key: Any, counts: Any):
        loss, sums = function(params, frozen, batch, key, counts)
        if ROUTER_PENALTY not in sums:
            return loss, sums
        total, _ = sums[ROUTER_PENALTY]
        tokens = jnp.sum(whole.lengths, dtype=jnp.float32)
        return loss + total / jnp.maximum(tokens, 1.0), {k: v for k, v in sums.items() if k != ROUTER_PENALTY}

    return penalized_loss


def accumulated(gradient: Callable, steps: int) -> Callable:
    """`value_and_grad` of a loss over a batch's micro-batches, one after another: what it is over the whole batch.

    Args:
      gradient: (params, frozen, batch, key, counts) -> ((loss, metrics), gradients).
      steps: micro-batches that a batch is split into.

    Raises:
      ValueError: `steps` below 1; rows that are not divisible by it (when traced).
    """
    if steps < 1:
        raise ValueError(f"accumulation_steps must be 1 or more, got {steps}")
    if steps == 1:
        return gradient

    def whole(params, frozen, batch, key, counts):
        micro = jax.tree.map(split_rows(steps), batch)

        def body(total, inputs):
            index, rows = inputs
            part = gradient(params, frozen, rows, jax.random.fold_in(key, index), counts)
            return _add(total, part), None

        first = jax.eval_shape(gradient, params, frozen, jax.tree.map(lambda x: x[0], micro), key, counts)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), first)
        total, _ = jax.lax.scan(body, zeros, (jnp.arange(steps), micro))
        return total

    return whole


def gradient_of_part(loss_function: LossFunction, name: str) -> Callable:
    """`value_and_grad` by one part of the parameters: the gradient is {name: ...}."""

    def value_and_gradient(params, frozen, batch, key, counts):
        def of_part(part):
            return loss_function({**params, **part}, frozen, batch, key, counts)

        return jax.value_and_grad(of_part, has_aux=True)({name: params[name]})

    return value_and_gradient


def make_evaluation(
    loss_function: LossFunction, count_function: CountFunction
) -> Callable[[Any, Any, Batch], dict[str, tuple[jax.Array, jax.Array]]]:
    """Builds `evaluate(params, frozen, batch) -> {name: (sum, count)}`, jitted, nothing donated.

    A router's penalty is no part of it. The loss itself is weighted by its count, so that means over batches of
    different sizes are means over tokens (or pairs).
    """

    def evaluate(params: Any, frozen: Any, batch: Batch):
        counts = count_function(batch)
        loss, sums = loss_function(params, frozen, batch, None, counts)  # type: ignore[arg-type]
        sums.pop(ROUTER_PENALTY, None)
        weight = jax.tree.leaves(counts)[0].astype(jnp.float32)
        return sums | {"loss": (loss * weight, weight)}

    return jax.jit(evaluate)


def _add(total, part):
    """Sums of two micro-batches; metrics named `..._max` take the larger."""
    ((loss_a, sums_a), grads_a), ((loss_b, sums_b), grads_b) = total, part
    sums = {
        name: jax.tree.map(jnp.maximum if name.endswith("_max") else jnp.add, sums_a[name], sums_b[name])
        for name in sums_a
    }
    return (loss_a + loss_b, sums), jax.tree.map(jnp.add, grads_a, grads_b)


def split_rows(num_microbatches: int):
    """A function [B, ...] -> [M, B / M, ...], by which a batch becomes micro-batches."""

    def split(x):
        if x.shape[0] % num_microbatches:
            raise ValueError(f"{x.shape[0]} rows are not divisible by {num_microbatches} accumulation steps")
        # Strided, so that each device keeps its own rows under a batch-sharded mesh.
        return rearrange(x, "(b m) ... -> m b ...", m=num_microbatches)

    return split


def joined_rows(x: jax.Array) -> jax.Array:
    """The inverse of `split_rows`: [M, B / M, ...] -> [B, ...]."""
    return rearrange(x, "m b ... -> (b m) ...")
