"""How a reward function is called: with the parameters that its signature declares.

TRL and Tunix call by keyword, with the data's columns as keywords; a function of ours takes them as one mapping.
"""

import asyncio
import contextlib
import inspect
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxalign.errors import UserError
from jaxalign.rewards.user_code import is_ours, user_code


@dataclass(frozen=True)
class RewardRequest:
    """N completions to score.

    Attributes:
      prompts: text of each prompt.
      completions: text of each completion.
      prompt_ids: token ids of each prompt.
      completion_ids: token ids of each completion, with its stop token.
      columns: the data set's other columns, a list of N each.
      width: C, the width of token rewards.
      messages: of each prompt its turns as {"role", "content"}, or None where it is a text; () where all are.
      update: number of the update, from 1; 0 outside of training.
      updates: how many there will be.
      shown: columns for the samples that a run keeps, N values each; reward functions add to it (`log_extra`).
    """

    prompts: Sequence[str]
    completions: Sequence[str]
    prompt_ids: Sequence[Sequence[int]]
    completion_ids: Sequence[Sequence[int]]
    columns: Mapping[str, Sequence[Any]]
    width: int
    messages: Sequence[Sequence[Mapping[str, Any]] | None] = ()
    update: int = 0
    updates: int = 0
    shown: dict[str, list[Any]] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class TrainerState:
    """Training progress, for rewards that change with it; names as in `transformers.TrainerState`.

    Attributes:
      global_step: updates done.
      max_steps: updates in all.
    """

    global_step: int
    max_steps: int


def begin_call(
    function: Callable[..., Any], request: RewardRequest, label: str, *, texts: bool = False
) -> Callable[[], tuple[Any, dict[str, float]]]:
    """Starts a call of a reward function: a coroutine function runs from now on, others when the result is requested.

    Args:
      function: takes prompts and completions, by position or name, and by name any of
        completion_ids (or completions_ids), columns, trainer_state, log_extra, log_metric, and every column.
      request: what it is asked.
      label: its name.
      texts: prompts and completions are texts also where prompts are messages.

    Returns:
      A function that waits, and returns the reward function's result and the metrics that it logged.

    Raises:
      UserError: it has a parameter that does not exist.
      UserCodeError: raised by the returned function, if the reward function raised.
    """
    logged: dict[str, list[float]] = {}
    places, names = _arguments(function, request, logged, label, texts)

    def run() -> Any:
        return function(*places, **names)

    future = _submit(run()) if _is_async(function) else None

    def finish() -> tuple[Any, dict[str, float]]:
        with contextlib.nullcontext() if is_ours(function) else user_code(f"reward {label}"):
            result = run() if future is None else future.result()
            if inspect.isawaitable(result):
                result = _submit(result).result()
        return result, {name: sum(values) / len(values) for name, values in logged.items()}

    return finish


def _arguments(
    function: Callable[..., Any],
    request: RewardRequest,
    logged: dict[str, list[float]],
    label: str,
    texts: bool,
) -> tuple[list[Any], dict[str, Any]]:
    """What a function is given by position and by name."""
    offered = {**request.columns, **_offered(request, logged, label)}
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # a function in C may tell nothing
        names = ("completion_ids", "columns")
        return [request.prompts, request.completions], {name: offered[name] for name in names}
    leading = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)][:2]
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    own = "columns" in {p.name for p in named}
    by_place = _by_place(parameters, leading, offered)
    if own or by_place or texts:
        offered |= {"prompts": request.prompts, "completions": request.completions}
    if by_place:
        named = [p for p in named if p not in leading]
    for parameter in named:
        if parameter.default is parameter.empty and parameter.name not in offered:
            raise UserError(
                f"reward {label}: parameter {parameter.name!r} is not a column of the data; columns: "
                f"{', '.join(sorted(request.columns)) or 'none'}"
            )
    wanted = {p.name for p in named}
    by_position = {p.name for p in leading} if by_place else set()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        wanted |= set(offered) - (by_position | {"prompts", "completions"} if by_place else set())
    places = [request.prompts, request.completions] if by_place else []
    return places, {name: offered[name] for name in offered if name in wanted}


def _by_place(
    parameters: list[inspect.Parameter], leading: list[inspect.Parameter], offered: Mapping[str, Any]
) -> bool:
    """Whether the first two parameters stand for prompts and completions by their place, whatever their names."""
    if len(leading) < 2:
        return not leading and any(p.kind is p.VAR_POSITIONAL for p in parameters)
    first, second = leading
    if second.kind is second.POSITIONAL_ONLY:
        return True
    unknown = [p.name not in offered and p.default is p.empty for p in leading]
    return all(unknown) or (unknown[0] and first.name.startswith("_") and second.name == "completions")


def _offered(request: RewardRequest, logged: dict[str, list[float]], label: str) -> dict[str, Any]:
    """What a function can ask for beside columns."""
    rows = len(request.completions)
    messages = request.messages or [None] * rows

    def log_metric(name: str, value: float) -> None:
        logged.setdefault(str(name), []).append(float(value))

    def log_extra(column: str, values: Sequence[Any]) -> None:
        if len(values) != rows:
            raise UserError(
                f"reward {label}: log_extra({column!r}): {len(values)} values for {rows} completions"
            )
        request.shown[str(column)] = [
            value if value is None or isinstance(value, (str, int, float)) else str(value) for value in values
        ]

    return {
        "prompts": [
            text if turns is None else [dict(turn) for turn in turns]
            for text, turns in zip(request.prompts, messages, strict=True)
        ],
        "completions": [
            text if turns is None else [{"role": "assistant", "content": text}]
            for text, turns in zip(request.completions, messages, strict=True)
        ],
        "completion_ids": request.completion_ids,
        "completions_ids": request.completion_ids,  # as TRL's documentation has it
        "columns": request.columns,
        "trainer_state": TrainerState(max(request.update - 1, 0), request.updates),
        "log_extra": log_extra,
        "log_metric": log_metric,
    }


def _is_async(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004
    )


_STARTED: list[asyncio.AbstractEventLoop] = []


def _submit(awaitable: Any) -> Any:
    """The future of something that is awaited by one loop of this process, on a thread of its own.

    A loop that stays keeps the connections that functions hold between calls, and a notebook's own is left alone.
    """
    if not _STARTED:
        loop = asyncio.new_event_loop()
        threading.Thread(target=loop.run_forever, name="rewards", daemon=True).start()
        _STARTED.append(loop)

    async def waited() -> Any:
        return await awaitable

    return asyncio.run_coroutine_threadsafe(waited(), _STARTED[0])
