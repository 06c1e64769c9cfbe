"""The run folder: metrics, samples, log, report and plots; and stopping on a signal."""

from jaxalign.runs.config import RunConfig
from jaxalign.runs.interrupts import StopFlag
from jaxalign.runs.run import Run

__all__ = ["Run", "RunConfig", "StopFlag"]
