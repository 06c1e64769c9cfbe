"""Callbacks: your own code that observes a run, and can stop it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from jaxalign.errors import ConfigError
from jaxalign.processes import agreed

EVENTS = ("on_step", "on_eval", "on_save", "on_end")


@dataclass(kw_only=True)
class Event:
    """What a callback receives.

    Attributes:
      command: of the run: sft, dpo, grpo ...
      folder: the run folder.
      step: optimizer steps so far; of PPO, GRPO and online DPO, updates.
      total: of the whole run.
      metrics: on_step: those of this step alone, named as in metrics.jsonl; on_eval: those of the evaluation;
        on_save: those that decide whether the checkpoint is kept; on_end: the final ones.
      state: the parameters and the optimizer's state, a `TrainState`; None at the end, where `folder / "export"` has
        the model. The next step reuses its memory: read it during the call, and copy what you keep.
    """

    command: str
    folder: Path
    step: int
    total: int
    metrics: Mapping[str, float]
    state: Any = None
    _stops: list[str] = field(default_factory=list)

    def stop(self, reason: str) -> None:
        """Stops the run after this step as if it were the last: evaluation, checkpoint and export follow."""
        self._stops.append(reason)


class Callback:
    """Base class for callbacks; any object with one of these methods works.

    Callbacks are called on the host, in the order given; of several processes in each, and the first's decide
    whether the run stops. An exception in a callback ends the run.
    """

    def on_step(self, event: Event) -> None:
        """After every step; the host then waits for the device, which without callbacks is a step ahead."""

    def on_eval(self, event: Event) -> None:
        """After every evaluation."""

    def on_save(self, event: Event) -> None:
        """After every checkpoint is complete in `folder / "checkpoints" / str(step)`; the run waits for it."""

    def on_end(self, event: Event) -> None:
        """After the export and the report are written."""

    def state(self) -> Mapping[str, Any]:
        """State for a resumed run, as JSON types; saved with every checkpoint."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`."""


class EarlyStopping(Callback):
    """Stops a run whose evaluations no longer improve.

    Args:
      metric: name of an evaluation metric, as in metrics.jsonl.
      patience: number of consecutive evaluations without improvement after which to stop.
      mode: whether smaller or larger is better.
      min_delta: minimum change that is an improvement.
    """

    def __init__(
        self,
        metric: str = "eval/loss",
        *,
        patience: int = 3,
        mode: Literal["min", "max"] = "min",
        min_delta: float = 0.0,
    ) -> None:
        if patience < 1:
            raise ConfigError(f"EarlyStopping: patience must be 1 or more, got {patience}")
        if mode not in ("min", "max"):
            raise ConfigError(f"EarlyStopping: mode must be min or max, got {mode!r}")
        if min_delta < 0:
            raise ConfigError(f"EarlyStopping: min_delta must not be negative, got {min_delta}")
        self.metric, self.patience, self.mode, self.min_delta = metric, patience, mode, min_delta
        self.best: float | None = None
        self.waited = 0

    def on_eval(self, event: Event) -> None:
        """See `Callback`.

        Evaluations may measure different things at different steps (`eval.generate.every`): once the metric was seen,
        those without it say nothing of it.

        Raises:
          ConfigError: the first evaluation has no such metric; the message lists those it has.
        """
        seen = self.best is not None or self.waited > 0
        if self.metric not in event.metrics and seen:
            return
        if self.metric not in event.metrics:
            raise ConfigError(
                f"EarlyStopping: no metric {self.metric!r}; this run has {', '.join(sorted(event.metrics))}"
            )
        value = float(event.metrics[self.metric])
        sign = 1.0 if self.mode == "min" else -1.0
        if not math.isnan(value) and (self.best is None or sign * (self.best - value) > self.min_delta):
            self.best, self.waited = value, 0
            return
        self.waited += 1
        if self.waited >= self.patience:
            best = "a number" if self.best is None else f"better than {self.best:.6g}"
            event.stop(f"{self.metric} was not {best} in {self.patience} evaluations")

    def state(self) -> Mapping[str, Any]:
        """See `Callback`."""
        return {"best": self.best, "waited": self.waited}

    def restore(self, state: Mapping[str, Any]) -> None:
        """See `Callback`."""
        self.best, self.waited = state["best"], int(state["waited"])


class Callbacks:
    """All callbacks of a run.

    Args:
      callbacks: the user's objects.
      command, folder: of the run.

    Attributes:
      stopped: why one of them stopped the run; empty if none has.

    Raises:
      ConfigError: an object without any of the methods.
    """

    def __init__(self, callbacks: Sequence[Any], command: str, folder: Path) -> None:
        for each in callbacks:
            if not any(callable(getattr(each, name, None)) for name in EVENTS):
                raise ConfigError(
                    f"callbacks: expected objects with one of {', '.join(EVENTS)}, got {each!r:.60}"
                )
        self._callbacks, self._command, self._folder = list(callbacks), command, folder
        self.stopped = ""

    def watch(self, name: str) -> bool:
        """Whether any of them handles an event."""
        return any(self._method(each, name) for each in self._callbacks)

    def tell(self, name: str, step: int, total: int, metrics: Mapping[str, float], state: Any = None) -> None:
        """Calls all of them with an event."""
        for each in self._callbacks:
            if method := self._method(each, name):
                event = Event(
                    command=self._command,
                    folder=self._folder,
                    step=step,
                    total=total,
                    metrics=dict(metrics),
                    state=state,
                )
                method(event)
                self.stopped = agreed(self.stopped or next(iter(event._stops), ""))

    @staticmethod
    def _method(each: Any, name: str) -> Any:
        own = getattr(each, name, None)
        # The base's does nothing, and nobody need wait for it.
        inherited = getattr(type(each), name, None) is getattr(Callback, name)
        return own if callable(own) and not inherited else None

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of them."""
        states = [dict(each.state()) if hasattr(each, "state") else {} for each in self._callbacks]
        return {"states": states, "stopped": self.stopped}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Restores their state from a checkpoint."""
        self.stopped = str(saved.get("stopped", ""))
        for each, state in zip(self._callbacks, saved.get("states", []), strict=False):
            if hasattr(each, "restore"):
                each.restore(state)
