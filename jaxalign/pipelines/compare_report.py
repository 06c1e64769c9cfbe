"""The report of a comparison: its table, tests, frontier, over-optimisation and answers side by side, as one page."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.pipelines.compare_cell import Cell
from jaxalign.pipelines.compare_config import CompareConfig
from jaxalign.pipelines.compare_measure import ITEMS, read_items
from jaxalign.pipelines.compare_results import BASELINE, rows_of, significance_rows, verdicts
from jaxalign.runs import plots
from jaxalign.runs.report import write_comparison_report

# Prompts whose answers are shown.
SHOWN = 6

Result = Mapping[str, Any]


def write_report(config: CompareConfig, results: Result, errors: Mapping[str, str]) -> Path:
    """Writes report.html and the pictures of a comparison.

    Returns:
      The page.
    """
    folder = Path(config.output)
    pictures = pictures_of(results)
    for i, (_, picture) in enumerate(pictures):
        plots.save(picture, folder / "plots" / f"{i + 1}.png")
    start = config.sft or config.model
    tests = significance_rows(results)
    failed = [{"cell": name, "error": line} for name, line in errors.items()]
    return write_comparison_report(
        folder / "report.html",
        title="Which method wins",
        subtitle=f"all from {start}{'' if config.sft else ' after fine-tuning'}; {results['prompts']} held-out "
        f"prompts; seed {', '.join(map(str, results['seeds']))}",
        rows=rows_of(results),
        pictures=pictures,
        samples=side_by_side(config, results),
        notes=notes_of(results),
        lead=[f"{line[0].upper()}{line[1:]}." for line in verdicts(results)],
        tables=[
            *([("Against the supervised model", tests)] if tests else []),
            ("Methods", [{"method": name, "what": row["about"]} for name, row in results["methods"].items()]),
            *([("Seeds", seed_rows(results))] if len(results["seeds"]) > 1 else []),
            *([("Failed", failed)] if failed else []),
        ],
    )


def notes_of(results: Result) -> list[str]:
    """What a reader must know before they believe the table."""
    budget, overlap = results["budget"], results["overlap"]
    decided = {
        "gold": "the gold reward, which no method saw",
        "judge": "the judge",
        "proxy": "the proxy, which methods optimize: expect it to flatter those that do",
    }
    cost = [
        f"{name}: {one['seconds']:.1f} s, {one['tokens']:,} tokens"
        for name, one in results["beginnings"].items()
    ]
    return [
        f"Wins are over the supervised model's answer to the same prompt with the same seed, by "
        f"{decided[results['decided_by']]}; ties are halves. Brackets are 95% intervals over prompts, of means over "
        "seeds.",
        f"Beyond the supervised model each method had {budget['samples']:,} rows, pairs (of two answers) or "
        f"completions, {budget['batch_size']} a step. Tokens are those of a method's batches, or of the completions "
        "that it sampled; its seconds are of its steps, compiling included, without loading and evaluating. What "
        f"all begin with is counted in none: {'; '.join(cost) or 'nothing was trained'}.",
        "KL is from the supervised model, along the policy's own answers, exact at each token."
        + (
            f" That of best_of_n is not measured: log n - (n - 1) / n, with n = {budget['best_of']}, bounds it. It "
            f"trains nothing, and samples {budget['best_of']} answers for each that it gives."
            if "best_of_n" in results["methods"]
            else ""
        ),
        f"{overlap['shared']} of the {overlap['of']} different held-out prompts are among the training prompts.",
        *results["notes"],
    ]


def seed_rows(results: Result) -> list[dict[str, str]]:
    """How far seeds are apart: mean, least and largest of each figure."""
    names = dict.fromkeys(name for row in results["methods"].values() for name in row["figures"])
    found = []
    for method, row in results["methods"].items():
        cells = {"method": method}
        for name in names:
            values = row["figures"].get(name, {}).get("seeds", [])
            spread = f" ({min(values):.3g} to {max(values):.3g})" if len(values) > 1 else ""
            cells[name] = f"{np.mean(values):.3g}{spread}" if values else "-"
        found.append(cells)
    return found


def pictures_of(results: Result) -> list[tuple[str, bytes]]:
    """The frontier of reward against KL, a point a seed; and each sampling method's rewards along its runs."""
    panels: list[tuple[str, dict[str, Any], str, str]] = []
    rewards = dict.fromkeys(
        name for name in ("gold", "proxy") if name in results["methods"][BASELINE]["figures"]
    )
    for reward in rewards:
        frontier = {
            name: (row["figures"]["kl"]["seeds"], row["figures"][reward]["seeds"])
            for name, row in results["methods"].items()
            if "kl" in row["figures"] and row["figures"].get(reward, {}).get("seeds")
        }
        panels.append(
            (f"Frontier: {reward} reward by KL", frontier, "KL from sft (nats)", f"{reward} reward")
        )
    for name, row in results["methods"].items():
        if lines := along(row["curves"], results["methods"][BASELINE]["figures"]):
            title = f"Over-optimisation: {name}" if "gold" in lines else f"Along the run: {name}"
            panels.append((title, lines, "KL from sft (nats)", "SDs above sft"))
    return [
        (title, plots.curve(lines, title, xlabel=xlabel, ylabel=ylabel, points=True))
        for title, lines, xlabel, ylabel in panels
        if lines
    ]


def along(
    curves: Sequence[Sequence[Mapping[str, Any]]], baseline: Mapping[str, Any]
) -> dict[str, tuple[list[float], list[float]]]:
    """Reward -> (KL, reward) at each evaluation, means over seeds, in the supervised model's standard deviations.

    So proxy and gold have one scale: where the proxy goes on rising and the gold reward falls, the proxy is
    over-optimised (arXiv:2210.10760). Nothing where a run has no KL.
    """
    if not curves or any(point["kl"] is None for curve in curves for point in curve):
        return {}
    updates = sorted(set.intersection(*({point["update"] for point in curve} for curve in curves)))
    at = [{point["update"]: point for point in curve} for curve in curves]
    found = {}
    for name in ("proxy", "gold"):
        start = baseline.get(name)
        if start is None or not start["deviation"] or any(name not in p for c in curves for p in c):
            continue
        kl = [float(np.mean([run[update]["kl"] for run in at])) for update in updates]
        values = [float(np.mean([run[update][name] for run in at])) for update in updates]
        found[name] = (kl, [(value - start["value"]) / start["deviation"] for value in values])
    return found


def side_by_side(config: CompareConfig, results: Result) -> list[dict[str, str]]:
    """The first prompts with every method's answer of the first seed that it has."""
    answers: dict[str, list[dict[str, Any]]] = {}
    for name, row in results["methods"].items():
        folder = Cell(method=name, seed=row["seeds"][0]).folder(config)
        if (folder / ITEMS).is_file():
            answers[name] = read_items(folder)[:SHOWN]
    shown = []
    for i, item in enumerate(answers.get(BASELINE, [])):
        prompt = item["prompt"]
        text = prompt if isinstance(prompt, str) else "\n".join(turn["content"] for turn in prompt)
        row = {"prompt": text}
        for name, items in answers.items():
            score = items[i]["scores"].get("gold", items[i]["scores"].get("reward"))
            mark = "" if score is None else f"  [{score:.2f}]"
            row[name] = f"{items[i]['answers'][0]}{mark}"
        shown.append(row)
    return shown
