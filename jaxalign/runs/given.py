"""What a Python call gives a run beside its configuration, and that no YAML file can hold."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

from jaxalign.errors import ConfigError
from jaxalign.runs.trackers import Tracker


class Live(TypedDict, total=False):
    """Keyword arguments that every training call takes beside its own: the fields of `Given` of these names."""

    train_dataset: Any
    eval_dataset: Any
    optimizer: Any
    callbacks: Sequence[Any]
    trackers: Sequence[Tracker]


@dataclass(frozen=True, kw_only=True)
class Given:
    """Live objects in place of what the configuration names.

    Attributes:
      train_dataset, eval_dataset: rows in place of data.train and data.validation (see `jaxalign.data.in_memory`).
      optimizer: an Optax transformation in place of the section `optimizer`, or a schedule in place of its own.
      loss: a function in place of the loss that `loss` names.
      callbacks: see `callbacks.Callback`.
      trackers: see `trackers.Tracker`; they are closed with the run.
      others: by the name of the argument: models, tokenizer, reward, judge, engine.
    """

    train_dataset: Any = None
    eval_dataset: Any = None
    optimizer: Any = None
    loss: Any = None
    callbacks: Sequence[Any] = ()
    trackers: Sequence[Tracker] = ()
    others: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("callbacks", "trackers"):
            if not isinstance(getattr(self, name), (list, tuple)):
                raise ConfigError(f"{name}: expected a list, got {type(getattr(self, name)).__name__}")
        for tracker in self.trackers:
            if not callable(getattr(tracker, "log", None)) or not callable(getattr(tracker, "close", None)):
                raise ConfigError(
                    f"trackers: expected objects with log(step, values) and close(), got {tracker!r:.60}"
                )

    def described(self) -> dict[str, str]:
        """What was given, in words, by the name of the argument; for metadata.json."""
        single = {
            name: getattr(self, name) for name in ("train_dataset", "eval_dataset", "optimizer", "loss")
        }
        described = {
            name: getattr(value, "__name__", type(value).__name__)
            for name, value in {**single, **self.others}.items()
            if value is not None
        }
        for name in ("callbacks", "trackers"):
            if getattr(self, name):
                described[name] = ", ".join(type(each).__name__ for each in getattr(self, name))
        return dict(sorted(described.items()))


def check_given_again(before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """A resumed run is given what it began with; trackers, which change no number, may come and go.

    Raises:
      ConfigError: naming what is missing, or new.
    """
    old, new = ({name for name in given if name != "trackers"} for given in (before, now))
    if missing := sorted(old - new):
        lost = ", ".join(f"{name} ({before[name]})" for name in missing)
        raise ConfigError(
            f"--resume: the run began with what a Python call gave, which no file holds: give it again: {lost}"
        )
    if added := sorted(new - old):
        raise ConfigError(f"--resume: the run began without {', '.join(added)}; leave it out")
