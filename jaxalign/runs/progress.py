"""One line on standard error that says how far a run is."""

import sys
import time


class Progress:
    """A line rewritten in place on a terminal; elsewhere a line now and then.

    Args:
      enabled: False shows nothing.
      label: what is running.
      quiet_seconds: time between lines where standard error is no terminal.
    """

    def __init__(self, enabled: bool, label: str, quiet_seconds: float = 30.0) -> None:
        self.enabled, self.label = enabled, label
        self._terminal = sys.stderr.isatty()
        self._gap = 0.2 if self._terminal else quiet_seconds
        self._start: tuple[int, float] | None = None
        self._shown = 0.0

    def show(self, step: int, total: int, name: str, value: float, tokens_per_second: float) -> None:
        """Shows the step, a number by its name (loss, score), the speed and the time left."""
        now = time.monotonic()
        if self._start is None:
            self._start = (step, now)
        if not self.enabled or (now - self._shown < self._gap and step != total):
            return
        self._shown = now
        first, began = self._start
        left = (now - began) / (step - first) * (total - step) if step > first else None
        line = f"{self.label} {step}/{total} · {name} {value:.4g} · {tokens_per_second:,.0f} tokens/s"
        line += f" · {_duration(left)} left" if left is not None and step != total else ""
        if self._terminal:
            sys.stderr.write(f"\r\x1b[K{line}" + ("\n" if step == total else ""))
        else:
            sys.stderr.write(line + "\n")
        sys.stderr.flush()

    def note(self, message: str) -> None:
        """A line that stays, above the one that is rewritten."""
        if self.enabled:
            sys.stderr.write(("\r\x1b[K" if self._terminal else "") + message + "\n")
            sys.stderr.flush()


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
