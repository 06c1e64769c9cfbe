"""One cell of a comparison: a method with a seed is trained and measured; `python -m` runs it in a process of its own."""

import json
import os
import re
import signal
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jaxalign import models
from jaxalign.config import parse
from jaxalign.data.files import rows_of
from jaxalign.errors import DataError, UserError
from jaxalign.evaluation.benchmarks import BENCHMARKS, Shots
from jaxalign.evaluation.best_of import best_of_kl
from jaxalign.evaluation.evaluate import evaluate
from jaxalign.evaluation.evaluate_config import AnswerConfig, EvaluateConfig
from jaxalign.evaluation.judged import judge_pairs
from jaxalign.evaluation.judging.config import Judge
from jaxalign.mesh import MeshConfig, devices_of, make_mesh
from jaxalign.models.folders import model_folder
from jaxalign.pipelines.compare_config import CompareConfig
from jaxalign.pipelines.compare_methods import (
    BEGINNINGS,
    METHODS,
    Method,
    flat,
    load,
    trainer_config,
    trains_proxy,
)
from jaxalign.pipelines.compare_watch import Curve, Watched, cost_of
from jaxalign.runs import records
from jaxalign.training.rl.reward_source import RewardSource, build_reward

# Where the answers and scores of held-out prompts lie below a cell.
HELD_OUT = "prompts:held_out"
ITEMS = Path("held_out") / "items" / "prompts-held_out.jsonl"
# Columns of a feedback file that may hold an answer.
ANSWERS = ("completion", "answer", "response", "output", "chosen")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A cell.

    Attributes:
      method: a name in METHODS; of a beginning in BEGINNINGS.
      seed: of training and sampling.
      beginning: whether it is what all methods begin with.
    """

    method: str
    seed: int = 0
    beginning: bool = False

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"begin-{self.method}" if self.beginning else f"{self.method}-{self.seed}"

    @property
    def about(self) -> Method:
        """The record of its method."""
        return (BEGINNINGS if self.beginning else METHODS)[self.method]

    def folder(self, config: CompareConfig) -> Path:
        """Where all of it lies."""
        return Path(config.output) / "cells" / self.name

    def result(self, config: CompareConfig) -> dict[str, Any] | None:
        """What it came to; None where it is not done."""
        file = self.folder(config) / "result.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def start_folder(config: CompareConfig) -> str:
    """The supervised model that all methods start from."""
    return config.sft or str(Cell(method="sft", beginning=True).folder(config) / "run")


def proxy_source(config: CompareConfig) -> RewardSource:
    """The reward that methods optimize."""
    if not trains_proxy(config):
        return config.proxy
    return replace(config.proxy, model=str(Cell(method="reward", beginning=True).folder(config) / "run"))


def run_cell(config: CompareConfig, cell: Cell) -> dict[str, Any]:
    """Trains and measures a cell, or goes on with it; its result.json is written last.

    Raises:
      UserError: wrong data or settings, or another process that is at work on it.
    """
    folder = cell.folder(config)
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        if (done := cell.result(config)) is not None:
            return done
        training = _trained(config, cell, folder) if cell.about.config else None
        found: dict[str, Any] = {"method": cell.method, "seed": cell.seed, "training": training}
        if not cell.beginning:
            found |= _measured(config, cell, folder)
        write_json(folder / "result.json", found)
        return found


def _trained(config: CompareConfig, cell: Cell, folder: Path) -> dict[str, Any]:
    """What the training of a cell cost, and its curve."""
    file = folder / "training.json"
    if file.is_file():
        return json.loads(file.read_text(encoding="utf-8"))
    train, runs, curve = load(cell.about.function), [], None
    start = config.model if cell.beginning and cell.method == "sft" else start_folder(config)
    given = {"seed": cell.seed, "beginning": cell.beginning, "start": start}
    if cell.method == "feedback":
        for i, part in enumerate(_feedback_parts(config, folder)):
            run, of = folder / f"round-{i + 1}", (i, config.budget.rounds)
            given |= {"files": (str(part),), "part": of, "start": start if i == 0 else str(runs[-1])}
            train(trainer_config(config, cell.method, folder=run, **given))
            runs.append(run)
    else:
        runs.append(folder / "run")
        source, live = proxy_source(config), {}
        proxy = source.model if METHODS.get(cell.method, cell.about).proxy else ""
        settings = trainer_config(config, cell.method, folder=runs[0], proxy=proxy, **given)
        if cell.about.kind == "sampled":
            reward = _watched(config, source)
            curve = Curve(reward)
            shaping = ("missing_stop_penalty", "missing_stop_score", "clip", "normalize", "whiten")
            shaped = replace(settings.reward, **{name: getattr(source, name) for name in shaping})
            settings = replace(settings, reward=shaped)
            live = {"reward": reward, "callbacks": [curve]}
        train(settings, **live)
    costs = [cost_of(run, sampled=cell.about.kind == "sampled") for run in runs]
    found = {
        "seconds": sum(cost["seconds"] for cost in costs),
        "tokens": sum(cost["tokens"] for cost in costs),
        "steps": sum(cost["steps"] for cost in costs),
        "trainable": costs[-1]["trainable"],
        "metrics": costs[-1]["metrics"],
        "curve": curve.points if curve else [],
        **(peaks() if config.isolated else {}),
    }
    write_json(file, found)
    return found


def _watched(config: CompareConfig, source: RewardSource) -> Watched:
    """The proxy, and beside it, without weight, the gold reward."""
    folder = model_folder(start_folder(config))
    options = {
        "mesh": make_mesh(MeshConfig(), devices_of(config.device)),
        "batch_size": 64,
        "vocabulary": models.load_config(folder).vocab_size,
        "tokenizer": models.load_tokenizer(folder),
    }
    parts = {"proxy": build_reward(source, None, **options)[0]}
    if config.gold.named:
        parts["gold"] = build_reward(config.gold, None, **options)[0]
    return Watched(parts, {"proxy": 1.0, "gold": 0.0})


def _feedback_parts(config: CompareConfig, folder: Path) -> list[Path]:
    """The rows of the feedback in as many parts as there are rounds, in order, with what people edited in place.

    Raises:
      DataError: fewer rows than rounds, or an edited answer in a row that has none.
    """
    settings = dict(flat(config.settings.get("feedback", {}), {"data.columns"}))
    columns = settings.get("data.columns", {})
    rows = []
    for file in config.data.feedback:
        for place, row in rows_of(file):
            if isinstance(row, DataError):
                raise row
            rows.append(_as_edited(place, dict(row), columns, settings))
    rounds = config.budget.rounds
    if len(rows) < rounds:
        raise DataError(f"{', '.join(config.data.feedback)}: {len(rows)} rows for {rounds} rounds")
    parts = []
    for i in range(rounds):
        parts.append(folder / f"feedback-{i + 1}.jsonl")
        part = rows[len(rows) * i // rounds : len(rows) * (i + 1) // rounds]
        parts[-1].write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    return parts


def _as_edited(
    place: str, row: dict[str, Any], columns: Mapping[str, str], settings: Mapping[str, Any]
) -> dict[str, Any]:
    edited = row.pop("edited", None)
    if not (isinstance(edited, str) and edited.strip()):
        return row
    answer = columns.get("completion") or next((name for name in ANSWERS if name in row), "")
    if not isinstance(row.get(answer), str):
        raise DataError(
            f"{place}: expected a text in {answer or 'completion'}, which 'edited' takes the place of"
        )
    row[answer] = edited
    if "label" in row:
        row["label"] = True
    least, field = settings.get("data.min_score"), settings.get("data.score_field", "score")
    if least is not None and field in row:
        row[field] = least
    return row


def _measured(config: CompareConfig, cell: Cell, folder: Path) -> dict[str, Any]:
    """Scores of each held-out prompt, and the benchmarks' figures."""
    model = _evaluation(config, cell, folder)
    held_out = evaluate(
        replace(
            model,
            tasks={HELD_OUT: config.data.held_out_prompts},
            limit=config.prompts,
            sampling=config.sampling,
            reference=start_folder(config),
            reward=proxy_source(config),
            gold=config.gold,
            best_of=config.budget.best_of if cell.method == "best_of_n" else 1,
            training=_files(config, cell),
            output=str(folder / "held_out"),
        )
    )["tasks"][HELD_OUT]
    items = read_items(folder)
    names = {"proxy": "reward", "gold": "gold", "kl": "kl", "tokens": "tokens"}
    scores = {name: [item["scores"].get(key) for item in items] for name, key in names.items()}
    if cell.method == "best_of_n":
        scores["kl"] = [best_of_kl(config.budget.best_of)] * len(items)
    notes = list(held_out["notes"])
    if config.judge.model and cell.method != "sft":
        wins, said = _judge(config, cell, items)
        scores["judge"] = wins
        notes += said
    found = {"scores": scores, "notes": notes, "benchmarks": {}}
    if config.tasks:
        settings = replace(
            model,
            tasks=dict(config.tasks),
            shots=dict(config.shots),
            limit=config.limit,
            judge=config.judge,
            output=str(folder / "benchmarks"),
        )
        if cell.method == "best_of_n":
            # Benchmarks are asked greedily, where the best of n is the one answer.
            return found
        for task, told in evaluate(settings)["tasks"].items():
            name, figure = next(iter(told["metrics"].items()))
            found["benchmarks"][task] = {"measure": name, **figure, "items": _items(folder, task, name)}
    return found


def _evaluation(config: CompareConfig, cell: Cell, folder: Path) -> EvaluateConfig:
    """What is measured: a model, or the supervised one with a doctor."""
    start = start_folder(config)
    which = {"model": str(folder / "run")}
    if cell.method in ("sft", "best_of_n"):
        which = {"model": start}
    elif cell.method == "tfpo":
        which = {"doctor": (str(folder / "run"),), "patient": start}
    elif cell.method == "feedback":
        which = {"model": str(folder / f"round-{config.budget.rounds}")}
    return EvaluateConfig(
        **which,
        sampling=AnswerConfig(),
        batch_size=config.batch_size,
        seed=cell.seed,
        device=config.device,
        name=cell.name,
    )


def _files(config: CompareConfig, cell: Cell) -> tuple[str, ...]:
    """What the model was trained on."""
    own = () if not cell.about.data else getattr(config.data, cell.about.data) or config.data.pairs
    return (*(() if config.sft else config.data.demonstrations), *own)


def read_items(folder: Path) -> list[dict[str, Any]]:
    """The held-out prompts of a cell with answers and scores."""
    return [json.loads(line) for line in (folder / ITEMS).read_text(encoding="utf-8").splitlines()]


def _items(folder: Path, task: str, measure: str) -> list[float | None]:
    """A figure's value of each question, in the file's order."""
    name = "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in task)
    text = (folder / "benchmarks" / "items" / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line)["scores"].get(measure) for line in text.splitlines()]


def _judge(
    config: CompareConfig, cell: Cell, items: Sequence[dict[str, Any]]
) -> tuple[list[float | None], list[str]]:
    """Whether the judge prefers each answer to the supervised model's of the same seed; sides are random."""
    baseline = read_items(Cell(method="sft", seed=cell.seed).folder(config))
    questions = BENCHMARKS["prompts"].read(config.data.held_out_prompts, Shots())[: len(items)]
    compared = [
        replace(question, references=(item["answers"][0],))
        for question, item in zip(questions, baseline, strict=True)
    ]
    source = EvaluateConfig(model=start_folder(config)).source
    cache = Path(config.output) / "judge.jsonl"
    with Judge(config.judge, judged=source, cache=cache, batch_size=config.batch_size) as judge:
        notes = judge_pairs(compared, items, judge.pairs, seed=cell.seed)
    return [item["scores"]["win_rate"] for item in items], notes


def peaks() -> dict[str, int]:
    """The most memory that this process has held, bytes: on the host (Linux), and on its first accelerator."""
    import jax

    found = {}
    if (status := Path("/proc/self/status")).is_file():
        if held := re.search(r"VmHWM:\s+(\d+) kB", status.read_text()):
            found["host_bytes"] = int(held[1]) * 1024
    stats = jax.local_devices()[0].memory_stats() or {}
    if jax.default_backend() != "cpu" and "peak_bytes_in_use" in stats:
        found["device_bytes"] = int(stats["peak_bytes_in_use"])
    return found


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Within it no other process works on the cell; the lock is the kernel's and ends with the process."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{folder}: another process is at work on this cell") from None
        yield


def write_json(file: Path, values: Mapping[str, Any]) -> None:
    """Writes JSON that appears whole or not at all."""
    temporary = file.with_name(f".{file.name}")
    text = json.dumps(records.clean(values), indent=1, ensure_ascii=False)
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, file)


def main(output: str, name: str) -> int:
    """Runs the cell of that name of the comparison in a folder; its exit status."""

    def terminate(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, terminate)
    config = parse(CompareConfig, Path(output) / "config.yaml")
    beginning, kind = name.startswith("begin-"), name.removeprefix("begin-")
    method, seed = (kind, 0) if beginning else (kind.rpartition("-")[0], int(kind.rpartition("-")[2]))
    cell = Cell(method=method, seed=seed, beginning=beginning)
    if config.device == "cpu":
        import jax

        jax.config.update("jax_platforms", "cpu")
    try:
        run_cell(config, cell)
    except UserError as error:
        line = " ".join(str(error).split())
    except Exception as error:
        traceback.print_exc()
        line = f"{type(error).__name__}: {' '.join(str(error).split())[:300]} (a bug; see log.txt)"
    except BaseException as error:
        # A signal, which training turns into an exception of its own once it has saved.
        sys.stderr.flush()
        os._exit(
            128
            + getattr(
                error, "signal", signal.SIGINT if isinstance(error, KeyboardInterrupt) else signal.SIGTERM
            )
        )
    else:
        return 0
    print(line, file=sys.stderr)
    (cell.folder(config) / "error.txt").write_text(line, encoding="utf-8")
    return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
