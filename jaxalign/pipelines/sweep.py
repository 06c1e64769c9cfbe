"""One run per point of a grid, one after another, ranked by a metric."""

import hashlib
import itertools
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from jaxalign.config import describe, from_dict, to_dict
from jaxalign.config_values import nearest
from jaxalign.data.files import check_there
from jaxalign.errors import ConfigError, UserError
from jaxalign.evaluation.tables import format_table
from jaxalign.runs import records
from jaxalign.runs.run import CACHES, ended

Mode = Literal["auto", "min", "max"]
# Words of a metric's name by which the smaller is the better.
SMALLER = {"loss", "nll", "perplexity", "balance", "discrimination", "kl"}
# Keys that the sweep sets itself.
OWN = ("run.output", "run.resume")


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """A grid of runs.

    Attributes:
      command: the training command (tfpo, dpo, sft, ...); it receives all flags except those below, the same in every
        run.
      grid: dotted keys of that command, each with a list of values, as in '{"loss.beta": [0.05, 0.1]}'; every
        combination is one run.
      metric: metric to compare the runs by, as named in metrics.jsonl, for example eval/accuracy; each run's final
        value is used.
      mode: whether a smaller (min) or a larger (max) metric is better; auto minimizes losses (eval/loss, eval/nll,
        eval/perplexity, eval/balance, eval/discrimination, objective/kl) and maximizes everything else.
      output: folder of the sweep, with one run folder per point, sweep.json and sweep.md.
      resume: continue the sweep in `output`: finished points are read, others resume from their checkpoints.
    """

    command: str
    grid: dict[str, tuple[Any, ...]]
    metric: str
    mode: Mode = "auto"
    output: str
    resume: bool = False


@dataclass(frozen=True)
class Sweep:
    """A parsed sweep: its configuration, the function that trains, and the settings that all points share."""

    config: SweepConfig
    train: Callable[[Any], Any]
    settings: Any

    @property
    def run(self) -> Any:
        """Where and on which device the runs go."""
        return self.settings.run


@dataclass(frozen=True, kw_only=True)
class Point:
    """One run of a sweep.

    Attributes:
      values: of the grid's keys.
      folder: its run folder.
      metric: what the run ended with; None where it failed.
      low, high: the metric's 95% interval, where the run has one.
      seconds: that its training took.
      error: why it failed; empty where it did not.
    """

    values: Mapping[str, Any]
    folder: str
    metric: float | None = None
    low: float | None = None
    high: float | None = None
    seconds: float | None = None
    error: str = ""


@dataclass(frozen=True)
class SweepResult:
    """What a sweep returns.

    Attributes:
      folder: with a run folder a point, `sweep.json` and `sweep.md`.
      points: the best first, those that failed last.
      table: the same as text.
    """

    folder: Path
    points: Sequence[Point]
    table: str

    @property
    def best(self) -> Point:
        """The best point."""
        return self.points[0]


def run_sweep(plan: Sweep) -> SweepResult:
    """Trains one run per point of a grid, one after another, and says which is the best.

    `jaxalign sweep tfpo --grid='{"loss.reward_scale": ["auto", 5]}' --metric=eval/accuracy --output=FOLDER` and then
    tfpo's own flags.
    """
    config = plan.config
    return sweep(
        plan.train,
        plan.settings,
        config.grid,
        metric=config.metric,
        output=config.output,
        mode=config.mode,
        resume=config.resume,
    )


def sweep(
    train: Callable[[Any], Any],
    config: Any,
    grid: Mapping[str, Sequence[Any]],
    *,
    metric: str,
    output: str | Path,
    mode: Mode = "auto",
    resume: bool = False,
    say: Callable[[str], None] = print,
) -> SweepResult:
    """Trains one run per point of a grid, one after another; a point that fails by a `UserError` is noted.

    Args:
      train: a function such as `train_dpo` that takes a configuration; one with live objects is
        `lambda config: train_dpo(config, train_dataset=rows)`.
      config: its configuration, of which every point changes the grid's keys.
      grid: dotted key -> values; every combination is a point.
      metric, mode, output, resume: see `SweepConfig`.
      say: takes the lines for the terminal.

    Returns:
      The points with their metric, the best first.

    Raises:
      ConfigError: a key or value of the grid, the folder, or a metric that the runs do not report; but for the last
        before anything is trained or written.
      UserError: no point came to an end.
    """
    folder = Path(output)
    points = _points(config, grid, folder, resume=resume)
    _check_folder(folder, resume=resume)
    done = [ended(place, settings) if resume else None for place, (_, settings) in points.items()]
    finished: list[Point] = []
    result = SweepResult(folder, (), "")
    smaller = mode == "min" or (mode == "auto" and not SMALLER.isdisjoint(re.split(r"[/_-]", metric)))
    for number, (place, read) in enumerate(zip(points, done, strict=True), 1):
        values, settings = points[place]
        say(f"[{number}/{len(points)}] {place.name}{' (already finished)' if read else ''}")
        point = Point(values=values, folder=str(place))
        try:
            read = read or _trained(train, settings)
        except UserError as error:
            point = replace(point, error=" ".join(str(error).split()))
            print(f"{place.name}: {point.error}", file=sys.stderr)
        else:
            point = replace(point, **_measured(read, metric))
        finished.append(point)
        result = _ranked(folder, finished, metric, smaller=smaller)
    if result.best.metric is None:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
        raise UserError(f"every run of the sweep failed; the first with: {finished[0].error}")
    say(f"\n{result.table}\n\n{_verdict(result, metric)}")
    return result


def _points(
    config: Any, grid: Mapping[str, Sequence[Any]], folder: Path, *, resume: bool
) -> dict[Path, tuple[dict[str, Any], Any]]:
    """Run folder -> values of the grid's keys and configuration of every point, all checked."""
    names = [key.name for key in describe(type(config))]
    for key, values in grid.items():
        if key in OWN:
            raise ConfigError(f"--grid: {key}: set by the sweep")
        if any(name.startswith(f"{key}.") for name in names):
            raise ConfigError(f"--grid: {key}: expected a single key, such as {key}.NAME, not a section")
        if not isinstance(values, (list, tuple)) or not values:
            raise ConfigError(f"--grid: {key}: expected a list of values, got {values!r:.60}")
    if not grid:
        raise ConfigError("--grid: expected keys with lists of values, as in '{\"loss.beta\": [0.05, 0.1]}'")
    points: dict[Path, tuple[dict[str, Any], Any]] = {}
    shared = {"rewards.folder": str(folder / "token_rewards")} if _shares_rewards(config) else {}
    for values in itertools.product(*grid.values()):
        chosen = dict(zip(grid, values, strict=True))
        place = folder / _name(chosen)
        tree = to_dict(config)
        for key, value in {**shared, **chosen, "run.output": str(place), "run.resume": resume}.items():
            _put(tree, key, value)
        try:
            settings = from_dict(type(config), tree)
        except UserError as error:
            raise ConfigError(f"--grid: {error}") from None
        same = next((other for other, (_, each) in points.items() if _alike(each, settings)), None)
        if same is not None or place in points:
            raise ConfigError(f"--grid: {place.name}: same run as {(same or place).name}")
        if data := getattr(settings, "data", None):
            check_there([*data.train, *data.validation])
        points[place] = (chosen, settings)
    return points


def _shares_rewards(config: Any) -> bool:
    """Whether token rewards are to lie in one folder for all points: of tfpo, unless it names a folder."""
    return getattr(getattr(config, "rewards", None), "folder", None) == ""


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    *groups, last = key.split(".")
    for name in groups:
        # A group in the place of a value is refused by name when the configuration is built.
        if not isinstance(tree.get(name), dict):
            tree[name] = {}
        tree = tree[name]
    tree[last] = value


def _alike(one: Any, other: Any) -> bool:
    return replace(one, run=replace(one.run, output=other.run.output)) == other


def _name(values: Mapping[str, Any]) -> str:
    """The folder's name of a point; a hash stands in for what a name cannot hold."""
    text = ",".join(f"{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in values.items())
    clean = re.sub(r"[^\w.,=+-]+", "_", text)[:150]
    return clean if clean == text else f"{clean}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def _check_folder(folder: Path, *, resume: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--output: {folder} is a file; expected a folder for the sweep")
    if not resume and folder.is_dir() and any(path.name not in CACHES for path in folder.iterdir()):
        raise ConfigError(
            f"--output: {folder} is not empty; choose another folder, or continue its sweep with --resume"
        )


def _trained(train: Callable[[Any], Any], settings: Any) -> dict[str, Any]:
    """`final_metrics` and `seconds` of a run, as metadata.json has them."""
    began = time.perf_counter()
    metrics = dict(train(settings).metrics)
    return {"final_metrics": metrics, "seconds": round(time.perf_counter() - began, 3)}


def _measured(metadata: Mapping[str, Any], metric: str) -> dict[str, float | None]:
    """The fields of a `Point` that a run's metadata has."""
    metrics = metadata["final_metrics"]
    if metric not in metrics:
        close = nearest(metric, list(metrics))
        hint = f"did you mean {close}?" if close else f"they have {', '.join(sorted(metrics))}"
        raise ConfigError(
            f"--metric: the runs report no {metric!r}; {hint} (--resume keeps the trained runs)"
        )
    low, high = (metrics.get(f"{metric}_{end}") for end in ("low", "high"))
    return {"metric": metrics[metric], "low": low, "high": high, "seconds": metadata["seconds"]}


def _ranked(folder: Path, finished: Sequence[Point], metric: str, *, smaller: bool) -> SweepResult:
    """The points so far, the best first, written into the folder once one has ended."""

    def rank(point: Point) -> float:
        """Failed points last, and before them those whose metric is no number."""
        if point.metric is None or math.isnan(point.metric):
            return math.inf
        return point.metric if smaller else -point.metric

    points = sorted(finished, key=lambda point: (rank(point), point.metric is None))
    result = SweepResult(folder, points, format_table([_row(point, metric) for point in points]))
    if points[0].metric is not None:
        about = {"metric": metric, "mode": "min" if smaller else "max", "best": asdict(points[0])}
        plain = records.clean(about | {"points": [asdict(point) for point in points]})
        _write(folder / "sweep.json", json.dumps(plain, indent=2, ensure_ascii=False) + "\n")
        _write(folder / "sweep.md", f"{_markdown(points, metric)}\n\n{_verdict(result, metric)}\n")
    return result


def _row(point: Point, metric: str) -> dict[str, str]:
    def number(value: float | None, form: str = ".4g") -> str:
        return "-" if value is None else format(value, form)

    interval = "-" if point.low is None else f"[{number(point.low)}, {number(point.high)}]"
    values = {
        key: value if isinstance(value, str) else json.dumps(value) for key, value in point.values.items()
    }
    shown = "failed" if point.error else number(point.metric)
    return values | {metric: shown, "95% interval": interval, "seconds": number(point.seconds, ".1f")}


def _markdown(points: Sequence[Point], metric: str) -> str:
    rows = [_row(point, metric) for point in points]
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    table = "\n".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines
    )
    failed = [f"- {Path(point.folder).name}: {point.error}" for point in points if point.error]
    return "\n\n".join([table, *(["\n".join(failed)] if failed else [])])


def _verdict(result: SweepResult, metric: str) -> str:
    """The best point, and how many others have overlapping intervals."""
    best = result.best
    row = _row(best, metric)
    sure = f" {row['95% interval']}" if best.low is not None else ""
    text = f"best: {', '.join(f'{key}={row[key]}' for key in best.values)} ({metric} {row[metric]}{sure})"
    close = [p for p in result.points[1:] if _overlap(best, p)]
    return text + (
        f"; overlapping intervals: {len(close)} of the other {len(result.points) - 1}" if close else ""
    )


def _overlap(one: Point, other: Point) -> bool:
    if None in (one.low, one.high, other.low, other.high):
        return False
    return one.low <= other.high and other.low <= one.high  # type: ignore[operator]


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
