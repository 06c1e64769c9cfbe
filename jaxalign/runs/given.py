"""Python objects passed to a run in addition to its configuration."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

from jaxalign.errors import ConfigError
from jaxalign.runs.trackers import Tracker


class Live(TypedDict, total=False):
    """Keyword arguments that every training call accepts: the fields of `Given` of these names."""

    train_dataset: Any
    eval_dataset: Any
    eval_reward: Any
    optimizer: Any
    callbacks: Sequence[Any]
    trackers: Sequence[Tracker]


@dataclass(frozen=True, kw_only=True)
class Given:
    """Live objects that replace parts of the configuration.

    Attributes:
      train_dataset, eval_dataset: rows in place of data.train and data.validation (see `jaxalign.data.in_memory`).
      eval_reward: a reward (see `jaxalign.rewards`), a scalar model or a list of these, in place of
        eval.generate.reward.
      optimizer: an Optax transformation in place of the section `optimizer`, or a schedule in place of its own.
      loss: a function in place of the loss that `loss` names.
      callbacks: see `callbacks.Callback`.
      trackers: see `trackers.Tracker`; they are closed with the run.
      others: by the name of the argument: models, tokenizer, reward, judge, engine.
    """

    train_dataset: Any = None
    eval_dataset: Any = None
    eval_reward: Any = None
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

    @classmethod
    def of(
        cls, call: Callable[..., Any], live: Live, *, loss: Any = None, others: Mapping[str, Any]
    ) -> "Given":
        """The objects passed to a training call.

        Args:
          call: the training call.
          live: its keyword arguments beyond its own parameters.
          loss, others: see `Given`.

        Raises:
          TypeError: `live` holds an argument that the call does not have; the message lists those that it has.
        """
        if unknown := sorted(live.keys() - Live.__annotations__):
            own = [n for n, p in inspect.signature(call).parameters.items() if p.kind != p.VAR_KEYWORD]
            raise TypeError(
                f"{call.__name__}() got an unexpected keyword argument {unknown[0]!r}; "
                f"expected {', '.join([*own, *Live.__annotations__])}"
            )
        return cls(loss=loss, others=others, **live)

    def described(self) -> dict[str, str]:
        """A description of each argument passed, by name; for metadata.json."""
        single = {
            name: getattr(self, name)
            for name in ("train_dataset", "eval_dataset", "eval_reward", "optimizer", "loss")
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
    """Checks that a resumed run receives the same objects as at its start; trackers may differ.

    Raises:
      ConfigError: naming what is missing, or new.
    """
    old, new = ({name for name in given if name != "trackers"} for given in (before, now))
    if missing := sorted(old - new):
        lost = ", ".join(f"{name} ({before[name]})" for name in missing)
        raise ConfigError(
            f"--resume: the run started with Python objects, which are not saved; pass them again: {lost}"
        )
    if added := sorted(new - old):
        raise ConfigError(f"--resume: the run started without {', '.join(added)}; do not pass it")
