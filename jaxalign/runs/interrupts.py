"""Signals as a flag, so that training stops between steps with everything saved."""

import signal
import threading
from types import FrameType
from typing import Any


class StopFlag:
    """While entered, the first SIGINT or SIGTERM sets `signal_received`; a second SIGINT interrupts at once.

    Outside the main thread Python takes no handlers, and the flag is never set.
    """

    def __init__(self) -> None:
        self.signal_received: int | None = None
        self._old: dict[int, Any] = {}

    def __enter__(self) -> "StopFlag":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.signal_received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal_received = number
