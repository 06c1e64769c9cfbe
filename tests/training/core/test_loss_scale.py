"""Dynamic loss scaling: what float16 loses without it, what overflows with it, and what the run is told."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxalign.training.core.loss_scale import FIRST, INTERVAL, LossScale, of_taken_steps
from jaxalign.training.core.state import TrainState, create_state
from jaxalign.training.core.step import make_update
from tests.training.cases import KEY


def loss_of(factor):
    """A loss whose gradient by each w, `factor`, passes through float16."""

    def loss(params, frozen, batch, key, counts):
        del frozen, key, counts
        w = params["w"].astype(jnp.float16)
        return jnp.sum(w.astype(jnp.float32)) * factor * jnp.sum(batch) / 4, {}

    return loss


def state_of(value):
    state = create_state({"w": jnp.ones(4)}, optax.sgd(1.0))
    scale = LossScale(jnp.float32(value), jnp.int32(0)) if value else None
    return TrainState(state.step, state.params, state.opt_state, scale)


def stepped(value, factor, *, rate=1.0, **options):
    update = make_update(loss_of(factor), lambda batch: batch.size, optax.sgd(rate), **options)
    return update(state_of(value), None, jnp.ones(4), KEY)


@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_a_gradient_too_small_for_float16_is_lost_without_a_scale_and_right_with_one(accumulation_steps):
    # Below half of 2^-24, the smallest number of float16.
    for value, expected in ((0, 1.0), (FIRST, 0.0)):
        state, metrics = stepped(value, 1e-9, rate=1e9, accumulation_steps=accumulation_steps)
        np.testing.assert_allclose(state.params["w"], expected, atol=1e-3)
        assert metrics["loss"] == pytest.approx(4e-9)


def test_a_step_that_overflows_is_skipped_and_counted_and_halves_the_scale():
    state, metrics = stepped(FIRST, 2.0)
    np.testing.assert_array_equal(state.params["w"], 1.0)
    assert state.step == 1
    assert state.loss_scale.value == FIRST / 2
    assert (metrics["overflow"], metrics["finite"], metrics["loss_scale"]) == (1, 1, FIRST)
    state, metrics = stepped(FIRST / 4, 2.0)
    np.testing.assert_allclose(state.params["w"], -1.0)
    assert state.step == 1
    assert (metrics["overflow"], metrics["finite"], metrics["grad_norm"]) == (0, 1, 4.0)


def test_what_is_not_finite_at_the_smallest_scale_is_no_step():
    state, metrics = stepped(1.0, jnp.inf)
    assert metrics["finite"] == 0
    assert state.step == 0
    np.testing.assert_array_equal(state.params["w"], 1.0)


def test_the_scale_doubles_after_so_many_finite_steps_and_never_falls_below_1():
    def after(value, steps, finite):
        scale = LossScale(jnp.float32(value), jnp.int32(steps)).next(jnp.array(finite))
        return float(scale.value), int(scale.steps)

    assert after(8, INTERVAL - 2, True) == (8, INTERVAL - 1)
    assert after(8, INTERVAL - 1, True) == (16, 0)
    assert after(8, INTERVAL - 1, False) == (4, 0)
    assert after(1, 5, False) == (1, 0)


def test_means_leave_out_what_is_infinite_in_a_skipped_step_alone():
    skipped = {"loss": 2.0, "grad_norm": np.inf, "overflow": 1.0, "loss_scale": 4.0}
    assert of_taken_steps(skipped) == {"loss": 2.0, "overflow": 1.0, "loss_scale": 4.0}
    taken = {"loss": 2.0, "grad_norm": np.inf, "overflow": 0.0}
    assert of_taken_steps(taken) == taken
