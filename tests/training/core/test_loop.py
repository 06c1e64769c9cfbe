"""The outer loop's own arithmetic: what an evaluation reports; and when it asks the device for results."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxalign.errors import UserError
from jaxalign.runs import RunConfig
from jaxalign.runs.callbacks import Callbacks
from jaxalign.training.core import loop as loop_module
from jaxalign.training.core.held_out import summary
from jaxalign.training.core.interval import Interval
from jaxalign.training.core.loop import Loop
from jaxalign.training.core.state import TrainState
from jaxalign.uncertainty import estimate_mean, wilson_interval


def test_margins_get_the_interval_of_their_mean():
    margins = np.array([0.5, -1.0, 2.0, 0.25, 0.0])
    found = summary(
        {"margin": np.array([margins.sum(), 5]), "margin_square": np.array([(margins**2).sum(), 5])}
    )
    wanted = estimate_mean(margins)
    assert found == pytest.approx(
        {"margin": wanted.mean, "margin_low": wanted.low, "margin_high": wanted.high}
    )


def test_accuracy_gets_a_wilson_interval_and_other_means_none():
    found = summary({"accuracy": np.array([7.5, 10.0]), "loss": np.array([3.0, 10.0])})
    low, high = wilson_interval(7.5, 10)
    assert found == pytest.approx({"accuracy": 0.75, "accuracy_low": low, "accuracy_high": high, "loss": 0.3})


def test_scores_get_the_standard_deviation_by_which_a_checkpoint_is_normalised():
    scores = np.array([0.5, -1.0, 2.0, 0.25])
    found = summary(
        {"score_square": np.array([(scores**2).sum(), 4]), "score_mean": np.array([scores.sum(), 4])}
    )
    assert found == pytest.approx({"score_mean": scores.mean(), "score_std": scores.std()})


def test_an_evaluation_of_no_row_has_no_interval():
    assert summary({"accuracy": np.zeros(2)}) == {"accuracy": 0.0}


class Number:
    """A result on the device: notes when it is asked for."""

    def __init__(self, name, value, events):
        self.name, self.value, self.events = name, value, events

    def __float__(self):
        self.events.append(f"read {self.name}")
        return self.value


def looped(events, *, losses, save_every=0, log_every=1, speed=None, **run):
    """A loop of as many steps as losses, which notes its updates, reads and saves; and its log."""
    logged = []

    def update(state, batch):
        events.append(f"update {batch['step']}")
        loss = losses[batch["step"] - 1]
        metrics = {
            "loss": Number(str(batch["step"]), loss, events),
            "grad_norm": 1.0,
            "finite": float(loss == loss),
        }
        return TrainState(jnp.int32(batch["step"]), {}, {}), metrics

    numbers = iter(range(1, len(losses) + 1))
    run = SimpleNamespace(
        config=RunConfig(
            output="unused", save_every=save_every, eval_every=0, sample_every=0, log_every=log_every, **run
        ),
        resumed=False,
        folder=Path("unused"),
        warn=lambda line: events.append(line),
        log_metrics=lambda step, values: logged.append((step, values)),
        progress=lambda *_: None,
        callbacks=Callbacks([], "sft", Path("unused")),
        note_stopped=lambda _: None,
    )
    store = SimpleNamespace(
        latest_step=lambda: None, save=lambda step, *_, **__: events.append(f"save {step}")
    )
    batches = SimpleNamespace(next=lambda: {"step": next(numbers), "lengths": [1]}, state=dict)
    loop = Loop(
        run,
        store,
        batches,
        update,
        len(losses),
        learning_rate=optax.linear_schedule(1.0, 0.0, len(losses)),
        speed=speed,
    )
    return loop, logged


def test_results_are_read_when_the_next_step_is_under_way():
    events = []
    loop, logged = looped(events, losses=[4.0, 3.0, 2.0])
    loop._fit(TrainState(jnp.int32(0), {}, {}))
    assert events == ["update 1", "update 2", "read 1", "update 3", "read 2", "read 3", "save 3"]
    rows = [(step, row["train/loss"], row["train/learning_rate"]) for step, row in logged]
    np.testing.assert_allclose(rows, [(1, 4, 1), (2, 3, 2 / 3), (3, 2, 1 / 3)], rtol=1e-6)


def test_a_step_is_read_before_it_is_saved_so_that_a_bad_one_never_is():
    events = []
    loop, _ = looped(events, losses=[4.0, float("nan"), 2.0, 2.0], save_every=2)
    with pytest.raises(UserError, match=r"step 2: the loss \(nan\)"):
        loop._fit(TrainState(jnp.int32(0), {}, {}))
    assert "update 3" not in events and not any(e.startswith("save") for e in events)


def test_a_record_is_the_mean_of_the_steps_since_the_last_one_and_a_maximum_their_largest():
    interval = Interval()
    for loss, largest in ((1.0, 3.0), (2.0, -5.0), (6.0, 2.0)):
        interval.add({"loss": loss, "gap_max": largest})
    assert interval.means() == {"loss": 3.0, "gap_max": 3.0}
    loop, logged = looped([], losses=[4.0, 1.0, 2.0, 6.0, 8.0], log_every=2)
    loop._fit(TrainState(jnp.int32(0), {}, {}))
    # After the first step, every second, and the last.
    assert [(step, row["train/loss"]) for step, row in logged] == [(1, 4.0), (2, 1.0), (4, 4.0), (5, 8.0)]


def test_a_record_has_the_operations_of_its_mean_step():
    speed = SimpleNamespace(
        flops=lambda batch: 10.0 * batch["step"],
        metrics=lambda flops, seconds: {"time/flops": flops, "time/seconds_of_flops": seconds},
    )
    loop, logged = looped([], losses=[1.0] * 5, log_every=2, speed=speed)
    loop._fit(TrainState(jnp.int32(0), {}, {}))
    assert [(step, row["time/flops"]) for step, row in logged] == [(1, 10), (2, 20), (4, 35), (5, 50)]
    assert all(row["time/seconds_of_flops"] == row["time/step_seconds"] for _, row in logged)


def test_steps_that_are_to_be_profiled_and_do_not_come_are_named_at_the_end():
    events = []
    loop, _ = looped(events, losses=[4.0, 3.0], profile_steps="7:9")
    loop._fit(TrainState(jnp.int32(0), {}, {}))
    assert events[-1] == "run.profile_steps=7:9: the run took none of these steps; nothing was traced"


def test_the_time_of_an_evaluation_is_no_steps(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(loop_module, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    loop, logged = looped([], losses=[4.0, 3.0, 2.0, 1.0])
    update = loop.update

    def timed(state, batch):
        now[0] += 1.0
        return update(state, batch)

    def evaluated(state, step):
        now[0] += 100.0
        return {"eval/generate/length": 3.0}, []

    loop.update, loop.generate, loop.generate_every = timed, evaluated, 2
    loop._fit(TrainState(jnp.int32(0), {}, {}))
    assert [step for step, row in logged if "eval/generate/length" in row] == [0, 2, 4]
    seconds = sum(row["time/step_seconds"] for _, row in logged if "time/step_seconds" in row)
    assert seconds == 4.0


def test_evaluations_that_are_due_at_one_step_are_told_together_and_saved_with_it():
    saved, told = {}, []
    loop, _ = looped([], losses=[1.0] * 5, save_every=1)
    loop.store = SimpleNamespace(
        latest_step=lambda: None, save=lambda step, *_, metrics, **__: saved.update({step: metrics})
    )
    loop.run.config = replace(loop.run.config, eval_every=2)
    seen = SimpleNamespace(on_eval=lambda event: told.append((event.step, sorted(event.metrics))))
    loop.run.callbacks = Callbacks([seen], "sft", Path("unused"))
    loop.evaluate = lambda state: {"loss": float(state.step)}
    loop.generate = lambda state, step: ({"eval/generate/length": float(step)}, [])
    loop.generate_every = 3
    _, final = loop._fit(TrainState(jnp.int32(0), {}, {}))
    both, loss, length = ["eval/generate/length", "eval/loss"], ["eval/loss"], ["eval/generate/length"]
    assert told == [(0, both), (2, loss), (3, length), (4, loss), (5, both)]
    # A checkpoint has what was measured of its own weights, and no other.
    assert {step: sorted(metrics or {}) for step, metrics in saved.items()} == {
        1: [],
        2: loss,
        3: length,
        4: loss,
        5: both,
    }
    assert (final["eval/loss"], final["eval/generate/length"]) == (5.0, 5.0)
