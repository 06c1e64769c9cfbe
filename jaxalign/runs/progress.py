"""Progress of a run on standard error: a bar in a terminal, occasional lines elsewhere."""

import os
import sys
import time
from typing import Any


class Progress:
    """A bar at the bottom of a terminal with messages above it; without a terminal, occasional lines.

    Args:
      enabled: False shows nothing.
      label: name of what is running.
      quiet_seconds: seconds between lines if standard error is not a terminal.
    """

    def __init__(self, enabled: bool, label: str, quiet_seconds: float = 30.0) -> None:
        self.enabled, self.label = enabled, label
        self._terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._gap = 0.2 if self._terminal else quiet_seconds
        self._start: tuple[int, float] | None = None
        self._shown = 0.0
        self._bar: Any = None

    def show(self, step: int, total: int, name: str, value: float, tokens_per_second: float) -> None:
        """Shows the step, a named value (loss, score), the speed and the time left."""
        now = time.monotonic()
        if self._start is None:
            self._start = (step, now)
        if not self.enabled or (now - self._shown < self._gap and step != total):
            return
        self._shown = now
        first, began = self._start
        left = (now - began) / (step - first) * (total - step) if step > first else None
        what = f"{name} {value:.4g} · {tokens_per_second:,.0f} tokens/s"
        what += f" · {_duration(left)} left" if left is not None and step != total else ""
        if not self._terminal:
            sys.stderr.write(f"{self.label} {step}/{total} · {what}\n")
            sys.stderr.flush()
            return
        if self._bar is None:
            self._bar = _bar(self.label, total)
        self._bar.update(0, completed=step, what=what)
        self._bar.refresh()
        if step == total:
            self.close()

    def note(self, message: str) -> None:
        """Prints a permanent line."""
        if not self.enabled:
            return
        # While there is a bar, rich's stand-in for standard error puts what is written above it. Before, a line that
        # says how tokenizing goes may stand here.
        sys.stderr.write(("\r\x1b[K" if self._terminal and self._bar is None else "") + message + "\n")
        sys.stderr.flush()

    def close(self) -> None:
        """Stops the bar and releases the terminal."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _bar(label: str, total: int) -> Any:
    """A bar that is drawn on request: no thread takes time from training."""
    from rich import progress
    from rich.console import Console
    from rich.table import Column

    bar = progress.Progress(
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(bar_width=24),
        # All of it in a narrow terminal too, and all in one line.
        progress.MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=len(f"{total}/{total}"))),
        progress.TextColumn("{task.fields[what]}", markup=False, table_column=Column(no_wrap=True)),
        console=Console(stderr=True),
        auto_refresh=False,
        # Standard output that goes to a file stays there.
        redirect_stdout=sys.stdout.isatty(),
    )
    bar.add_task(label, total=total, what="")
    bar.start()
    return bar


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
