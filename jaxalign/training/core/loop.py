"""The outer loop that supervised and preference training share.

Log, evaluate, sample, save, resume, and stop on a signal. It knows no loss: a trainer
hands it an update, an evaluation and an iterator.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.checkpoints.orbax_store import CheckpointStore
from jaxalign.errors import UserError
from jaxalign.processes import LateLargest, fetch
from jaxalign.runs import Heartbeat, Profile, Run, StopFlag
from jaxalign.training.core.exports import chosen_state
from jaxalign.training.core.interval import Interval
from jaxalign.training.core.loss_scale import of_taken_steps
from jaxalign.training.core.opening import announced
from jaxalign.training.core.speed import Speed
from jaxalign.training.core.state import TrainState
from jaxalign.training.core.update_rules import averaged_params


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Length of training, and batches.

    Attributes:
      batch_size: examples (rows, pairs or questions) per optimizer step.
      batch_tokens: maximum tokens per optimizer step, padding included (for loss.name=kto also the rows that estimate
        the KL), in place of batch_size; a batch then groups rows of similar length. 0 uses batch_size. Cannot be
        combined with packing.
      accumulation_steps: number of micro-batches to split each optimizer step into, to save memory.
      steps: total optimizer steps; 0 uses `epochs`.
      epochs: passes over the training examples, used when `steps` is 0.
      eval_batch_size: examples per evaluation batch; 0 uses batch_size.
      eval_batches: maximum number of evaluation batches; 0 uses all.
      packing: pack several short rows into one to reduce padding; the loss does not change.
    """

    batch_size: int = 8
    batch_tokens: int = 0
    accumulation_steps: int = 1
    steps: int = 0
    epochs: float = 1.0
    eval_batch_size: int = 0
    eval_batches: int = 0
    packing: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"train.batch_size must be 1 or more, got {self.batch_size}")
        if self.batch_tokens < 0:
            raise ValueError(f"train.batch_tokens must not be negative, got {self.batch_tokens}")
        if self.batch_tokens and self.packing:
            raise ValueError(
                "train.batch_tokens and train.packing: choose one; packed rows have little padding at any "
                "batch_size"
            )
        if self.accumulation_steps < 1:
            raise ValueError(f"train.accumulation_steps must be 1 or more, got {self.accumulation_steps}")
        if not self.batch_tokens and self.batch_size % self.accumulation_steps:
            raise ValueError(
                f"train.accumulation_steps must divide train.batch_size = {self.batch_size}, "
                f"got {self.accumulation_steps}"
            )
        if self.steps < 0:
            raise ValueError(f"train.steps must not be negative, got {self.steps}")
        if not self.steps and self.epochs <= 0:
            raise ValueError(f"train.epochs must be positive when train.steps is 0, got {self.epochs}")

    def total_steps(self, per_epoch: float) -> int:
        """Optimizer steps, of batches of which an epoch has so many."""
        return self.steps or max(1, round(self.epochs * per_epoch))


class Interrupted(BaseException):
    """A signal stopped training after a checkpoint was saved.

    Attributes:
      signal: its number; the command exits with 128 + signal.
    """

    def __init__(self, signal: int) -> None:
        super().__init__(f"stopped by signal {signal}; continue from the saved checkpoint with --resume")
        self.signal = signal


class Batches(Protocol):
    """A resumable iterator; see `jaxalign.data.BatchIterator` and `TokenBatches`."""

    @property
    def per_epoch(self) -> float: ...
    def next(self) -> Mapping[str, Any]: ...
    def state(self) -> Mapping[str, Any]: ...
    def restore(self, state: Mapping[str, Any]) -> None: ...


@dataclass
class Loop:
    """One training run over batches.

    Attributes:
      run: the run folder.
      store: its checkpoints.
      batches: training batches.
      draw: `draw(state, batch) -> batch` on the host, before each step; for rows that the model writes itself.
      update: `update(state, batch) -> (state, metrics on device)`.
      evaluate: `evaluate(state) -> {name: value}`, or None.
      generate: `generate(state, step) -> ({name: value}, rows for samples.jsonl)`, the evaluation by generation; or
        None.
      generate_every: steps between those.
      sample: `sample(state) -> rows for samples.jsonl`, or None.
      total_steps: optimizer steps in all.
      tokens_in: counts the tokens of a batch, for the log.
      learning_rate: schedule, for the log.
      speed: counts the model FLOPs of a batch, for the log; None where they are not known.
    """

    run: Run
    store: CheckpointStore
    batches: Batches
    update: Callable[[TrainState, Mapping[str, Any]], tuple[TrainState, dict[str, jax.Array]]]
    total_steps: int
    draw: Callable[[TrainState, Mapping[str, Any]], Mapping[str, Any]] | None = None
    evaluate: Callable[[TrainState], dict[str, float]] | None = None
    generate: Callable[[TrainState, int], tuple[dict[str, float], list[dict[str, Any]]]] | None = None
    generate_every: int = 0
    sample: Callable[[TrainState], list[dict[str, Any]]] | None = None
    tokens_in: Callable[[Mapping[str, Any]], int] = lambda batch: (
        int(np.sum(batch["lengths"])) - batch.get("filler_tokens", 0)
    )
    learning_rate: Callable[[int], Any] | None = None
    speed: Speed | None = None
    _last_eval: dict[str, float] = field(default_factory=dict)
    _final: dict[str, float] = field(default_factory=dict)
    _measured: tuple[int, dict[str, float]] = (-1, {})
    _rates: np.ndarray | None = None
    _interval: Interval = field(default_factory=Interval)

    def fit(self, state: TrainState) -> tuple[TrainState, dict[str, float]]:
        """Trains to `total_steps`, from the newest checkpoint where the run resumes.

        Returns:
          The final state, with the best checkpoint's parameters where `run.best_metric` is set, and the last logged
            metrics with the last evaluation.

        Raises:
          UserError: a loss or gradient that is not finite; nothing was saved over the last good step.
          Interrupted: SIGINT or SIGTERM, after a checkpoint was saved.
        """
        with self.store:
            state = self._resume(state)
            self.update = announced(self, state)
            state, metrics = self._fit(state)
            return chosen_state(self.run, self.store, state, int(np.max(state.step))), metrics

    def _fit(self, state: TrainState) -> tuple[TrainState, dict[str, float]]:
        config = self.run.config
        callbacks = self.run.callbacks
        watched = callbacks.watch("on_step")
        start = int(np.max(state.step))  # an ensemble has one step a member
        over = start >= self.total_steps or bool(callbacks.stopped)
        # Of a run that had ended, or was killed when nothing was left but to export.
        self._final = self.run.final_metrics() or self._final if over else {}
        self._rates = self._learning_rates()
        pending: tuple[int, dict[str, Any], Mapping[str, Any], int] | None = None
        if start == 0:
            self._evaluate(0, state, self._due_evaluations(0))
        mark = time.perf_counter()
        asked = LateLargest()
        with StopFlag() as stop, Heartbeat(self.run, self.total_steps) as heart, Profile(self.run) as profile:
            heart.beat(start)
            for step in range(start + 1, start + 1 if over else self.total_steps + 1):
                batch = self.batches.next()
                if self.draw is not None:
                    batch = self.draw(state, batch)
                state, metrics = profile.step(step, self.update, state, batch)
                heart.beat(step)
                # One step late: the device is already at work on this step while the last is logged.
                if pending is not None:
                    self._final, mark = self._log(*pending, mark)
                pending = (step, metrics, batch, self.tokens_in(batch))
                last, halted = step == self.total_steps, asked(stop.signal_received or 0)
                saves = self._due(config.save_every, step)
                if self._due_evaluations(step) or saves or last or halted or watched:
                    self._final, mark = self._log(*pending, mark)
                    pending = None
                if watched:
                    callbacks.tell("on_step", step, self.total_steps, self._of_step(metrics), state)
                    last = last or bool(callbacks.stopped)
                # Also where a signal stops the run: it would not be made up for after the resume.
                if kinds := self._due_evaluations(step, last=last):
                    self._evaluate(step, state, kinds)
                    if callbacks.stopped and not last:
                        last = True
                        self._evaluate(step, state, self._due_evaluations(step, last=True) - kinds)
                    mark = time.perf_counter()  # what an evaluation took is not the next step's
                if last and self._interval.steps:  # ended by a callback, before a record was due
                    self.run.log_metrics(step, self._record(step))
                if self.sample and (last or self._due(config.sample_every, step)):
                    self.run.log_samples(step, self.sample(self._averaged(state)))
                if last or halted or saves:  # after all else that the step makes
                    self._save(step, state)
                if halted and not last:
                    raise Interrupted(halted)
                if last:
                    self.run.note_stopped(step)
                    break
        return self._averaged(state), self._final | self._last_eval

    @staticmethod
    def _averaged(state: TrainState) -> TrainState:
        """The state with the parameters that are evaluated and kept; see `averaged_params`."""
        params = averaged_params(state.params, state.opt_state)
        return state if params is state.params else dataclasses.replace(state, params=params)

    @staticmethod
    def _of_step(metrics: Mapping[str, jax.Array]) -> dict[str, float]:
        return {"train/" + name: float(x) for name, x in fetch(metrics).items() if name != "finite"}

    def _learning_rates(self) -> np.ndarray | None:
        """The learning rate of every step [total_steps], on the host.

        All at once: one at a time each would be an operation behind the step that the device is at work on, and the
        host would wait for it.
        """
        if self.learning_rate is None:
            return None
        rates = jax.vmap(lambda step: jnp.asarray(self.learning_rate(step), jnp.float32))  # type: ignore[misc]
        return np.asarray(rates(jnp.arange(self.total_steps)))

    @staticmethod
    def _due(every: int, step: int) -> bool:
        return every > 0 and step % every == 0

    def _log(self, step: int, metrics: dict, batch: Mapping, tokens: int, mark: float):
        values = {name: float(value) for name, value in fetch(metrics).items()}
        if values.pop("finite") == 0.0:
            rows = np.asarray(batch.get("row_ids", [])).ravel()[:16].tolist()
            self.run.log_metrics(step, {"train/" + k: v for k, v in values.items()})
            raise UserError(
                f"step {step}: the loss ({values['loss']}) or the gradient norm ({values['grad_norm']}) is not "
                f"finite; rows {rows}; the last good checkpoint is step {self.store.latest_step()} "
                "(a smaller learning rate or float32 compute may help)"
            )
        # Of doctors that train together each has its own.
        for name in (name for name, value in values.items() if name.split("/")[-1] == "spike" and value):
            norm = values[f"{name.removesuffix('spike')}grad_norm"]
            self.run.warn(f"step {step}: skipped, because the gradient norm {norm:.4g} is a spike ({name})")
        now = time.perf_counter()
        flops = self.speed.flops(batch) if self.speed else 0.0
        self._interval.add(
            of_taken_steps(values) | {"time/tokens": tokens, "time/seconds": now - mark, "time/flops": flops}
        )
        record = self._record(step)
        if self._due(self.run.config.log_every, step) or step in (1, self.total_steps):
            self.run.log_metrics(step, record)
            self._interval = Interval()
        self.run.progress(step, self.total_steps, "loss", values["loss"], record["time/tokens_per_second"])
        return record, now

    def _record(self, step: int) -> dict[str, float]:
        """What metrics.jsonl is told of the steps since its last record."""
        means = self._interval.means()
        tokens, seconds = means.pop("time/tokens"), means.pop("time/seconds")
        # Checkpoints of earlier versions have none.
        flops = means.pop("time/flops", 0.0)
        record = {"train/" + name: value for name, value in means.items()}
        if self._rates is not None:
            record["train/learning_rate"] = float(self._rates[step - 1])
        record["time/tokens_per_second"] = tokens / max(seconds, 1e-9)
        record["time/step_seconds"] = seconds
        return record | (self.speed.metrics(flops, seconds) if self.speed else {})

    def _due_evaluations(self, step: int, *, last: bool = False) -> set[str]:
        """The evaluations that a step makes: of held-out rows (loss), of what the model writes (generate)."""
        every = {"loss": self.run.config.eval_every, "generate": self.generate_every}
        there = {"loss": self.evaluate is not None, "generate": self.generate is not None}
        return {kind for kind, steps in every.items() if there[kind] and (last or self._due(steps, step))}

    def _evaluate(self, step: int, state: TrainState, kinds: set[str]) -> None:
        if not kinds:
            return
        averaged, found, rows = self._averaged(state), dict[str, float](), list[dict[str, Any]]()
        if "loss" in kinds:
            assert self.evaluate is not None
            found |= {"eval/" + name: value for name, value in self.evaluate(averaged).items()}
        if "generate" in kinds:
            assert self.generate is not None
            answers, rows = self.generate(averaged, step)
            found |= answers
        before = self._measured[1] if self._measured[0] == step else {}
        self._measured = step, before | found
        self._last_eval = self._last_eval | found
        self.run.log_metrics(step, found)
        if rows:
            self.run.log_samples(step, rows)
        self.run.callbacks.tell("on_eval", step, self.total_steps, found, state)

    def _save(self, step: int, state: TrainState) -> None:
        if self.store.latest_step() == step:
            return
        # Written with the step, so that a rewound log and the checkpoint agree.
        extra = {
            "batches": dict(self.batches.state()),
            "last_eval": self._last_eval,
            "final": self._final,
            "interval": dataclasses.asdict(self._interval),
            "callbacks": self.run.callbacks.state(),
        }
        # An evaluation of other weights says nothing of these.
        metrics = self._measured[1] if self._measured[0] == step else None
        self.store.save(step, state, extra, metrics=metrics)
        tell_saved(self.run, self.store, step, self.total_steps, metrics or {}, state)

    def _resume(self, state: TrainState) -> TrainState:
        if not self.run.resumed:
            return state
        if (found := self.store.restore_newest(state)) is None:
            self.run.rewind(-1)
            return state
        fresh = state
        step, state, extra = found
        # As an update would have donated it: two states are not held at once, whoever still names the fresh one.
        jax.tree.map(lambda x: x.delete(), fresh)
        self.batches.restore(extra["batches"])
        self._last_eval = dict(extra["last_eval"])
        # Checkpoints of earlier versions have neither: they logged single steps.
        self._final = dict(extra.get("final", {}))
        self._interval = Interval(**extra.get("interval", {}))
        restore_callbacks(self.run, extra)
        self.run.rewind(step)
        return state


def tell_saved(
    run: Run, store: CheckpointStore, step: int, total: int, metrics: Mapping[str, float], state: TrainState
) -> None:
    """Tells callbacks of a checkpoint when it lies whole on the disk, for which nobody else waits."""
    if run.callbacks.watch("on_save"):
        store.wait()
        run.callbacks.tell("on_save", step, total, metrics, state)


def restore_callbacks(run: Run, extra: Mapping[str, Any]) -> None:
    """The callbacks of a run as a checkpoint has them; a run that they ended goes on only where it was made longer."""
    run.callbacks.restore(extra.get("callbacks", {}))
    if run.raised:
        run.callbacks.stopped = ""
