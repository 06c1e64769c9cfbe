"""From the cells of a comparison to figures with error bars, tests, and a table."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxalign.evaluation.metrics.significance import holm, paired_bootstrap
from jaxalign.evaluation.tables import format_table
from jaxalign.pipelines.compare_config import CompareConfig
from jaxalign.pipelines.compare_methods import METHODS
from jaxalign.uncertainty import bootstrap_interval

BASELINE = "sft"
# A difference is called one below this adjusted p.
LEVEL = 0.05
# With fewer prompts the bootstrap's intervals are too narrow.
FEW = 20

Result = Mapping[str, Any]


def results_of(
    config: CompareConfig,
    cells: Sequence[Result],
    *,
    beginnings: Mapping[str, Result | None],
    errors: Mapping[str, str],
    overlap: Mapping[str, int],
) -> dict[str, Any]:
    """What results.json holds.

    Args:
      config: with all methods.
      cells: results of those that are done, see `compare_cell.run_cell`.
      beginnings: of what all begin with, by name.
      errors: why cells failed, by name.
      overlap: how many held-out prompts are among the training prompts.
    """
    by_method = {name: [cell for cell in cells if cell["method"] == name] for name in config.methods}
    by_method = {name: found for name, found in by_method.items() if found}
    deciding = _deciding(config)
    baseline = {cell["seed"]: cell for cell in by_method[BASELINE]}
    rows = {name: _row(name, found, baseline, deciding) for name, found in by_method.items()}
    noted: dict[str, dict[str, None]] = {}
    for cell in cells:
        for note in cell["notes"]:
            noted.setdefault(note, {})[f"{cell['method']}-{cell['seed']}"] = None
    return {
        "base": config.model,
        "start": config.sft or "trained on data.demonstrations",
        "seeds": list(config.seeds),
        "decided_by": deciding,
        "budget": {
            name: getattr(config.budget, name) for name in ("samples", "batch_size", "rollout", "best_of")
        },
        "beginnings": {name: found["training"] for name, found in beginnings.items() if found},
        "prompts": len(by_method[BASELINE][0]["scores"]["tokens"]),
        "overlap": dict(overlap),
        "methods": rows,
        "tests": _tests(by_method, deciding),
        "notes": [f"{', '.join(names)}: {note}" for note, names in noted.items()],
        "errors": dict(errors),
    }


def _deciding(config: CompareConfig) -> str:
    """What decides which answer is better: the gold reward, else the judge, else the proxy."""
    return "gold" if config.gold.named else "judge" if config.judge.model else "proxy"


def _row(name: str, cells: Sequence[Result], baseline: Mapping[int, Result], deciding: str) -> dict[str, Any]:
    measures = {
        key: [cell["scores"][key] for cell in cells]
        for key in ("gold", "proxy", "kl", "tokens")
        if any(value is not None for cell in cells for value in cell["scores"][key])
    }
    if name != BASELINE:
        measures["win_rate"] = [wins(cell, baseline[cell["seed"]], deciding) for cell in cells]
    figures = {key: figure(values) for key, values in measures.items()}
    for task, found in cells[0]["benchmarks"].items():
        values = [cell["benchmarks"][task]["value"] for cell in cells]
        lows, highs = ([cell["benchmarks"][task][end] for cell in cells] for end in ("low", "high"))
        figures[f"{task} {found['measure']}"] = {
            "value": float(np.mean(values)),
            "low": float(np.mean(lows)),
            "high": float(np.mean(highs)),
            "seeds": values,
            "better": found["better"],
        }
    trained = [cell["training"] for cell in cells if cell["training"]]

    def most(key: str) -> int | None:
        return max((cost[key] for cost in trained if key in cost), default=None)

    return {
        "about": METHODS[name].about,
        "seeds": [cell["seed"] for cell in cells],
        "figures": figures,
        "seconds": float(np.mean([cost["seconds"] for cost in trained])) if trained else None,
        "trained_tokens": float(np.mean([cost["tokens"] for cost in trained])) if trained else None,
        "tokens_of": METHODS[name].kind,
        "trainable": most("trainable"),
        "host_bytes": most("host_bytes"),
        "device_bytes": most("device_bytes"),
        "curves": [cost["curve"] for cost in trained if cost["curve"]],
    }


def wins(cell: Result, baseline: Result, deciding: str) -> list[float | None]:
    """Of each prompt 1 where the cell's answer beats the baseline's of the same seed, 0.5 for a tie, else 0."""
    if deciding == "judge":
        return list(cell["scores"]["judge"])
    pairs = zip(cell["scores"][deciding], baseline["scores"][deciding], strict=True)
    return [None if a is None or b is None else float(np.sign(a - b)) / 2 + 0.5 for a, b in pairs]


def figure(values: Sequence[Sequence[float | None]]) -> dict[str, Any]:
    """The mean of scores [seeds, prompts], its interval over prompts (95%, of their means over seeds), and each seed's.

    A prompt without score in a seed counts in none.
    """
    rows = _whole(values)
    if not rows.size:
        return {"value": None, "low": None, "high": None, "seeds": [], "deviation": None}
    prompts = rows.mean(0)
    low, high = bootstrap_interval(prompts, seed=0)
    return {
        "value": float(prompts.mean()),
        "low": low,
        "high": high,
        "seeds": [float(row.mean()) for row in rows],
        "deviation": float(rows.std()),
    }


def _whole(values: Sequence[Sequence[float | None]]) -> np.ndarray:
    """float64 [seeds, prompts] without the prompts that lack a score."""
    rows = np.asarray([[np.nan if v is None else v for v in one] for one in values], np.float64)
    return rows[:, np.isfinite(rows).all(0)]


def _tests(by_method: Mapping[str, Sequence[Result]], deciding: str) -> list[dict[str, Any]]:
    """Every method against the supervised model, on what decides and on each benchmark; Holm over all of them.

    Paired over prompts: scores are first averaged over the seeds that both have. A judge's wins are held against a
    half.
    """
    baseline = {cell["seed"]: cell for cell in by_method[BASELINE]}
    found = []
    for name, cells in by_method.items():
        if name == BASELINE:
            continue
        theirs = [baseline[cell["seed"]] for cell in cells]
        compared: dict[str, Any] = {}
        if deciding == "judge":
            ours = [cell["scores"]["judge"] for cell in cells]
            compared["win rate by the judge, less 0.5"] = (ours, [[0.5] * len(one) for one in ours])
        else:
            compared[deciding] = tuple(
                [cell["scores"][deciding] for cell in side] for side in (cells, theirs)
            )
        for task, told in cells[0]["benchmarks"].items():
            pair = tuple([cell["benchmarks"][task]["items"] for cell in side] for side in (cells, theirs))
            compared[f"{task} {told['measure']}"] = pair
        for measure, (ours, others) in compared.items():
            both = _whole([*ours, *others])
            if not both.size:
                continue
            test = paired_bootstrap(both[: len(ours)].mean(0), both[len(ours) :].mean(0), seed=0)
            found.append({"method": name, "measure": measure, **test.__dict__})
    adjusted = holm([test["p_value"] for test in found]) if found else ()
    return [{**test, "adjusted_p": float(p)} for test, p in zip(found, adjusted, strict=True)]


def rows_of(results: Result) -> list[dict[str, str]]:
    """The table: a row per method, all with the same columns."""
    methods = results["methods"]
    # Of names the first is the column's; the deciding reward first.
    names = [results["decided_by"], "gold", "proxy", "win_rate", "kl", "tokens"]
    names += [name for row in methods.values() for name in row["figures"]]
    names = [n for n in dict.fromkeys(names) if any(n in row["figures"] for row in methods.values())]
    shown = {"gold": "gold reward", "proxy": "proxy reward", "win_rate": "win rate", "kl": "KL (nats)"}
    found = []
    for name, row in methods.items():
        cells = {"method": name}
        for key in names:
            cells[shown.get(key, key)] = _cell(
                key, row["figures"].get(key), bound=name == "best_of_n" and key == "kl"
            )
        peak = row["device_bytes"] or row["host_bytes"]
        cells["train s"] = "-" if row["seconds"] is None else f"{row['seconds']:.1f}"
        cells["train tokens"] = "-" if row["trained_tokens"] is None else f"{row['trained_tokens']:,.0f}"
        cells["trainable"] = "-" if row["trainable"] is None else f"{row['trainable']:,}"
        cells["peak GiB"] = "-" if peak is None else f"{peak / 2**30:.2f}"
        cells["seeds"] = str(len(row["seeds"]))
        found.append(cells)
    return found


def _cell(key: str, one: Mapping[str, Any] | None, *, bound: bool) -> str:
    if one is None or one["value"] is None:
        return "-"
    form = ".0%" if key == "win_rate" else ".1f" if key == "tokens" else ".3g"
    if bound:
        return f"<= {one['value']:{form}}"
    return f"{one['value']:{form}} [{one['low']:{form}}, {one['high']:{form}}]"


def table_of(results: Result) -> str:
    """The table as text."""
    return format_table(rows_of(results))


def significance_rows(results: Result) -> list[dict[str, str]]:
    """The tests as a table."""
    return [
        {
            "method": test["method"],
            "measure": test["measure"],
            "less sft": f"{test['mean']:+.3g} [{test['low']:+.3g}, {test['high']:+.3g}]",
            "p": f"{test['p_value']:.3g}",
            "p (Holm)": f"{test['adjusted_p']:.3g}",
            "prompts": str(test["count"]),
        }
        for test in results["tests"]
    ]


def verdicts(results: Result) -> list[str]:
    """What the tests say, in sentences."""
    measure = results["decided_by"]
    own = [test for test in results["tests"] if test["measure"].startswith(("win rate", measure))]
    better = [t for t in own if t["adjusted_p"] < LEVEL and t["mean"] > 0]
    worse = [t["method"] for t in own if t["adjusted_p"] < LEVEL and t["mean"] < 0]
    lines = []
    if better:
        best = max(better, key=lambda test: test["mean"])
        names = ", ".join(test["method"] for test in sorted(better, key=lambda test: -test["mean"]))
        lines.append(
            f"better than sft by {measure}: {names} (largest mean difference: {best['method']}, {best['mean']:+.3g})"
        )
    if worse:
        lines.append(f"worse than sft by {measure}: {', '.join(worse)}")
    rest = [t["method"] for t in own if t["adjusted_p"] >= LEVEL]
    if rest:
        lines.append(f"no difference from sft shown: {', '.join(rest)}")
    lines.append(
        f"paired bootstrap over {results['prompts']} prompts (means over {_counted(len(results['seeds']), 'seed')}); "
        f"Holm over {_counted(len(results['tests']), 'test')}, level {LEVEL:g}"
    )
    if results["prompts"] < FEW:
        lines.append(f"under {FEW} prompts these intervals are too narrow")
    return lines


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
