"""The run folder: metrics, samples, log, report and plots; callbacks and trackers; and stopping on a signal."""

from jaxalign.runs.callbacks import Callback, EarlyStopping, Event
from jaxalign.runs.config import RunConfig
from jaxalign.runs.given import Given, Live
from jaxalign.runs.heartbeat import Heartbeat
from jaxalign.runs.interrupts import StopFlag
from jaxalign.runs.part import RunPart
from jaxalign.runs.profile import Profile
from jaxalign.runs.run import Run

__all__ = [
    "Callback",
    "EarlyStopping",
    "Event",
    "Given",
    "Heartbeat",
    "Live",
    "Profile",
    "Run",
    "RunConfig",
    "RunPart",
    "StopFlag",
]
