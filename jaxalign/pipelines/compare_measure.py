"""Measures a cell of a comparison, as `jaxalign evaluate` does."""

import json
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxalign import models
from jaxalign.evaluation.benchmarks import BENCHMARKS, Shots
from jaxalign.evaluation.best_of import best_of_kl
from jaxalign.evaluation.evaluate import evaluate
from jaxalign.evaluation.evaluate_config import AnswerConfig, EvaluateConfig
from jaxalign.evaluation.judged import judge_pairs
from jaxalign.evaluation.judging.config import Judge
from jaxalign.inference.loading import Template, run_data
from jaxalign.models.folders import model_folder
from jaxalign.pipelines.compare_cell import Cell, proxy_source, start_folder
from jaxalign.pipelines.compare_config import CompareConfig
from jaxalign.pipelines.compare_methods import flat

# Where the answers and scores of held-out prompts lie below a cell.
HELD_OUT = "prompts"
ITEMS = Path("held_out") / "items" / f"{HELD_OUT}.jsonl"


def measure_cell(config: CompareConfig, cell: Cell, folder: Path) -> dict[str, Any]:
    """Scores of each held-out prompt, and the benchmarks' figures."""
    model = _evaluation(config, cell, folder)
    held_out = _evaluated(
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
        for task, told in _evaluated(settings)["tasks"].items():
            for name, figure in [*told["metrics"].items()][:1]:  # the headline
                found["benchmarks"][task] = {"measure": name, **figure, "items": _items(folder, task, name)}
    return found


def _evaluated(settings: EvaluateConfig) -> dict[str, Any]:
    """An evaluation whose table goes where its progress goes."""
    with redirect_stdout(sys.stderr):
        return evaluate(settings)


def _evaluation(config: CompareConfig, cell: Cell, folder: Path) -> EvaluateConfig:
    """What is measured: a model, or the supervised one with a doctor."""
    start = start_folder(config)
    which: dict[str, Any] = {"model": str(folder / "run")}
    if cell.method in ("sft", "best_of_n"):
        which = {"model": start}
    elif cell.method == "tfpo":
        which = {"doctor": (str(folder / "run"),), "patient": start}
    elif cell.method == "feedback":
        which = {"model": str(folder / f"round-{config.budget.rounds}")}
    return EvaluateConfig(
        **which,
        template=start_template(config) if cell.method in ("sft", "best_of_n", "tfpo") else "auto",
        sampling=AnswerConfig(),
        batch_size=config.batch_size,
        seed=cell.seed,
        device=config.device,
        name=cell.name,
    )


def start_template(config: CompareConfig) -> Template:
    """How prompts are written for the supervised model: as the methods that start from it are trained.

    A run says so itself. Of another folder training takes the tokenizer's chat template, or else turn markers, unless
    settings.all names one.
    """
    start = model_folder(start_folder(config))
    if run_data(start):
        return "auto"
    given = dict(flat(config.settings.get("all", {}), {"data.template"})).get("data.template", "auto")
    if given != "auto":
        return given
    return "tokenizer" if getattr(models.load_tokenizer(start), "chat_template", None) else "markers"


def _files(config: CompareConfig, cell: Cell) -> tuple[str, ...]:
    """What the model was trained on."""
    own = () if not cell.about.data else getattr(config.data, cell.about.data) or config.data.pairs
    return (*(() if config.sft else config.data.demonstrations), *own)


def read_items(folder: Path) -> list[dict[str, Any]]:
    """The held-out prompts of a cell with answers and scores."""
    return [json.loads(line) for line in (folder / ITEMS).read_text(encoding="utf-8").splitlines()]


def _items(folder: Path, task: str, measure: str) -> list[float | None]:
    """A figure's value of each question, in the file's order."""
    text = (folder / "benchmarks" / "items" / f"{task}.jsonl").read_text(encoding="utf-8")
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
