"""Profiles of a run's steps: traces that TensorBoard and xprof open."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax

from jaxalign import processes
from jaxalign.runs.config import profiled_steps
from jaxalign.runs.run import Run

Result = TypeVar("Result")


class Profile:
    """A trace of the steps that `run.profile_steps` names, in the folder `profile` of the run; a context manager.

    It ends with the context at the latest, also by an exception. Of several processes the first traces its devices.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._first, self._last = profiled_steps(run.config.profile_steps) or (1, 0)
        self._since: int | None = None
        self._done = self._first > self._last or not processes.first()

    def __enter__(self) -> "Profile":
        return self

    def step(self, number: int, function: Callable[..., Result], *arguments: Any) -> Result:
        """`function(*arguments)`, which is a run's step of this number and is traced where it is to be."""
        if self._done or not self._first <= number <= self._last:
            return function(*arguments)
        if self._since is None:
            options = jax.profiler.ProfileOptions()
            # Python's own calls would fill the trace and slow down the steps.
            options.python_tracer_level = 0
            jax.profiler.start_trace(self._run.folder / "profile", profiler_options=options)
            self._since = number
        with jax.profiler.StepTraceAnnotation("step", step_num=number):
            result = function(*arguments)
        if number == self._last:
            # The device may still be at work on it.
            jax.block_until_ready(result)
            self._end(number)
        return result

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if self._since is not None and not self._done:
            self._end(None)
        elif not self._done and error is None:
            steps = self._run.config.profile_steps
            self._run.warn(f"run.profile_steps={steps}: the run took none of these steps; nothing was traced")

    def _end(self, last: int | None) -> None:
        self._done = True
        jax.profiler.stop_trace()
        until = (
            f"to {last}" if last else f"to the end of the run, which came before that of step {self._last}"
        )
        self._run.note(f"profile: steps {self._since} {until}: {self._run.folder / 'profile'}")
