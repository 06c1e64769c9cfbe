"""Callbacks hear of events, may end a run, and go on where a checkpoint left them."""

from pathlib import Path

import pytest

from jaxalign.errors import ConfigError
from jaxalign.runs import Callback, EarlyStopping
from jaxalign.runs.callbacks import Callbacks


def of(*found):
    return Callbacks(found, "sft", Path("run"))


def evaluations(callbacks, values, metric="eval/loss"):
    """Tells of evaluations until the run is ended; how many there were."""
    for number, value in enumerate(values, 1):
        callbacks.tell("on_eval", number, 100, {metric: value})
        if callbacks.stopped:
            return number
    return None


def test_any_object_with_a_method_of_an_event_is_a_callback():
    class Seen:
        def __init__(self):
            self.steps = []

        def on_step(self, event):
            self.steps.append((event.command, event.step, event.total, event.metrics["loss"]))

    seen = Seen()
    callbacks = of(seen)
    callbacks.tell("on_step", 3, 10, {"loss": 0.5})
    callbacks.tell("on_eval", 3, 10, {"loss": 0.5})
    assert seen.steps == [("sft", 3, 10, 0.5)]
    with pytest.raises(ConfigError, match="expected objects with one of on_step, on_eval, on_save, on_end"):
        of(print)


def test_nobody_waits_for_steps_that_no_callback_asks_for():
    assert not of(EarlyStopping()).watch("on_step")
    assert not of(Callback()).watch("on_step")
    assert of(EarlyStopping()).watch("on_eval")


def test_early_stopping_ends_a_run_after_so_many_evaluations_without_an_improvement():
    assert evaluations(of(EarlyStopping(patience=2)), [3, 2, 2.5, 1.9, 2.0, 1.95, 1.0]) == 6
    assert evaluations(of(EarlyStopping(patience=2)), [3, 2, 1, 0.5, 0.4]) is None
    assert evaluations(of(EarlyStopping(patience=2, min_delta=0.2)), [3, 2.9, 2.85, 2.0]) == 3
    best = EarlyStopping("eval/accuracy", patience=1, mode="max")
    assert evaluations(of(best), [0.5, 0.6, 0.6], "eval/accuracy") == 3
    assert evaluations(of(EarlyStopping(patience=2)), [float("nan"), float("nan"), 1.0]) == 2


@pytest.mark.parametrize("first", [2.0, float("nan")])
def test_early_stopping_passes_over_evaluations_of_other_things_once_it_has_seen_its_metric(first):
    stopping = EarlyStopping("eval/generate/length", patience=2)
    callbacks = of(stopping)
    callbacks.tell("on_eval", 1, 9, {"eval/loss": 1.0, "eval/generate/length": first})
    waited = stopping.waited
    for step in range(2, 6):
        callbacks.tell("on_eval", step, 9, {"eval/loss": 1.0})
    assert not callbacks.stopped
    assert stopping.waited == waited
    # Also where a run resumes.
    again = EarlyStopping("eval/generate/length", patience=2)
    again.restore(stopping.state())
    of(again).tell("on_eval", 6, 9, {"eval/loss": 1.0})


def test_early_stopping_says_which_numbers_there_are():
    with pytest.raises(ConfigError, match="no metric 'eval/los'; this run has eval/accuracy, eval/loss"):
        of(EarlyStopping("eval/los")).tell("on_eval", 1, 2, {"eval/loss": 1.0, "eval/accuracy": 1.0})


def test_a_restored_callback_waits_no_longer_than_one_that_was_not_stopped():
    first = of(EarlyStopping(patience=3))
    evaluations(first, [1.0, 2.0, 2.0])
    second = of(EarlyStopping(patience=3))
    second.restore(first.state())
    assert evaluations(second, [2.0]) == 1
    assert "eval/loss was not better than 1 in 3 evaluations" in second.stopped
    third = of(EarlyStopping(patience=3))
    third.restore(second.state())
    assert third.stopped == second.stopped
