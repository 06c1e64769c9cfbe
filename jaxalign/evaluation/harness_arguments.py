"""Arguments as lm-evaluation-harness writes them: of a model, and of `generate_until`."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from jaxalign.errors import ConfigError
from jaxalign.rollout import SamplingConfig

# Names of a completion's longest length; of several the first counts, as in the harness.
LONGEST = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
SAMPLING = {"temperature": float, "top_k": int, "top_p": float, "min_p": float}
# What some tasks say without need: values that change nothing.
NEUTRAL = {"num_beams": 1, "num_return_sequences": 1, "repetition_penalty": 1, "length_penalty": 1}


def sampling_of(
    given: Mapping[str, Any], *, longest: int, stop_tokens: Sequence[int]
) -> tuple[SamplingConfig, tuple[str, ...]]:
    """How the answers of a task are drawn, and the texts that they end before.

    As in the harness, answers are sampled if `do_sample` says so, or if it is not given and `temperature` is above 0.

    Args:
      given: `generation_kwargs` of a task.
      longest: tokens of the longest answer, where it does not say.
      stop_tokens: ids that end an answer.

    Raises:
      ConfigError: an argument that jaxalign does not know, or one out of range.
    """
    rest = {name: value for name, value in given.items() if value is not None}
    until = rest.pop("until", ())
    lengths = [rest.pop(name) for name in LONGEST if name in rest]
    sampled = rest.pop("do_sample", None)
    numbers = {name: rest.pop(name) for name in SAMPLING if name in rest}
    for name, value in rest.items():
        if NEUTRAL.get(name) != value:
            raise ConfigError(f"generation_kwargs: {name}={value} is not supported by jaxalign")
    try:
        numbers = {name: SAMPLING[name](value) for name, value in numbers.items()}
        if not (numbers.get("temperature", 0) > 0 if sampled is None else sampled):
            numbers = {"temperature": 0.0}
        length = int(lengths[0] if lengths else longest)
        found = replace(
            SamplingConfig(max_new_tokens=length, stop_tokens=tuple(sorted(set(stop_tokens)))), **numbers
        )
    except (TypeError, ValueError) as error:
        raise ConfigError(f"generation_kwargs: {error}") from None
    until = (until,) if isinstance(until, str) else until
    return found, tuple(str(end) for end in until if end)


def whole_number(name: str, value: int | str, low: int) -> int:
    """A whole number of at least `low`, as it stands in `model_args`.

    Raises:
      ConfigError: it is none.
    """
    if not str(value).isdigit() or int(value) < low:
        raise ConfigError(f"{name}={value}: expected a whole number of at least {low}")
    return int(value)


def device_kind(device: str | None) -> str:
    """auto, cpu, gpu or tpu. The harness says cuda:0 where its user says nothing.

    Raises:
      ConfigError: another one, or a number of its own.
    """
    kinds = {
        "": "auto",
        "auto": "auto",
        "cuda:0": "auto",
        "cuda": "gpu",
        "gpu": "gpu",
        "cpu": "cpu",
        "tpu": "tpu",
    }
    if (device or "") not in kinds:
        raise ConfigError(f"device={device}: expected auto, cpu, gpu, cuda or tpu")
    return kinds[device or ""]
