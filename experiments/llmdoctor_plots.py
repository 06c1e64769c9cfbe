"""The tables and pictures of `llmdoctor.py`, from the figures of its stages over seeds."""

import itertools
import json
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.runs.plots import COLOURS
from jaxalign.uncertainty import bootstrap_interval

Results = Mapping[str, Mapping[str, Any]]
THRESHOLDS = (0.1, 0.3, 0.5, 0.7, 0.9)
SHARES = (0.1, 0.2, 0.3, 0.5)
SWEPT = ("TFPO paper", "TFPO tilted", "GenARM")


def write_json(path: Path, values: Any) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(json.dumps(values, indent=1), encoding="utf-8")
    os.replace(temporary, path)


def retrieval(truth: np.ndarray, importance: np.ndarray) -> dict[str, Any]:
    """How well important tokens are those that matter.

    Args:
      truth: bool [N], whether a token matters.
      importance: float [N].

    Returns:
      `rate`: part of tokens that matter, which is the precision of tokens picked at random; `auc`: chance that a
      token that matters is the more important of two; by threshold and by share kept: `kept`, `precision`, `recall`,
      `f1` and `random_f1`, that of as many tokens picked at random.
    """
    rate = float(truth.mean())

    def at(threshold: float) -> dict[str, float]:
        picked = importance > threshold
        kept, right = float(picked.mean()), float((picked & truth).sum())
        precision, recall = right / max(picked.sum(), 1), right / truth.sum()
        f1 = 2 * precision * recall / max(precision + recall, 1e-9)
        chance = 2 * rate * kept / max(rate + kept, 1e-9)
        return {
            "kept": kept,
            "precision": float(precision),
            "recall": float(recall),
            "f1": float(f1),
            "random_f1": chance,
        }

    order = np.argsort(np.argsort(importance, kind="stable"), kind="stable")
    wins = (order[truth].astype(np.float64) - np.arange(truth.sum()).mean()).mean()
    return {
        "tokens": len(truth),
        "rate": rate,
        "auc": float(wins / (~truth).sum()),
        "by_threshold": {str(t): at(t) for t in THRESHOLDS},
        "by_share": {str(s): at(float(np.quantile(importance, 1 - s))) for s in SHARES},
    }


def write(output: Path, results: Results, tuned: Mapping[str, Any]) -> None:
    """table.md, results.json and the pictures, of the stages that are there; `tuned` is what stage `tune` found."""
    chosen = tuned["chosen"]
    write_json(output / "results.json", results)
    names = {name for found in results.values() for name in found}
    there = {name: [found[name] for found in results.values() if name in found] for name in names}
    parts = [_faces, _tokens, _learning, _comparison, _sweeps, _plausible]
    parts += [_ablations, _full, _pareto, _weak_to_strong, _cost]
    text = ["Means, ± standard deviation over seeds where there are several.", "", *_tuned(tuned["trials"])]
    for part in parts:
        stage = {"_sweeps": "comparison"}.get(part.__name__, part.__name__[1:])
        if stage in there:
            heading, *lines = part(there[stage], chosen)
            seeds = ", ".join(seed for seed, found in results.items() if stage in found)
            text += ["", f"{heading} (seeds: {seeds})", *lines]
    (output / "table.md").write_text("\n".join(text) + "\n", encoding="utf-8")
    if "comparison" in there:
        frontier(output / "frontier.png", there["comparison"])
    if "pareto" in there:
        pareto(output / "pareto.png", there["pareto"])
    if "tokens" in there:
        tokens(output / "token_rewards.png", there["tokens"])


def _mean(values: Sequence[float | None], form: str = ".2f") -> str:
    there = [v for v in values if v is not None]
    if not there:
        return "-"
    spread = f" ± {statistics.stdev(there):{form}}" if len(there) > 1 else ""
    return f"{statistics.mean(there):{form}}{spread}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [
        "| " + " | ".join(head) + " |",
        "|---|" + "---:|" * (len(head) - 1),
        *("| " + " | ".join(row) + " |" for row in rows),
    ]


def _over(seeds: Sequence[Any], *path: str) -> list[Any]:
    """A figure of each seed, None where it has none."""
    found = []
    for one in seeds:
        for name in path:
            one = None if one is None else one.get(name)
        found.append(one)
    return found


def _faces(seeds: list[Any], _: Any) -> list[str]:
    rows = [
        [name, *(_mean(_over(seeds, "faces", name, key)) for key in ("reward", "words", "distinct_4"))]
        for name in seeds[0]["faces"]
    ]
    return [
        "## The patient under its instructions",
        "",
        *_table(["told", "reward", "words", "distinct-4"], rows),
    ]


def _tokens(seeds: list[Any], _: Any) -> list[str]:
    rows = []
    for kind, name in (("by_threshold", "threshold"), ("by_share", "share kept")):
        for value in seeds[0][kind]:
            keys = ("kept", "precision", "recall", "f1", "random_f1")
            rows.append([f"{name} {value}", *(_mean(_over(seeds, kind, value, key)) for key in keys)])
    head = ["rewarded tokens", "kept", "precision", "recall", "F1", "F1 of random tokens"]
    note = f"{_mean(_over(seeds, 'rate'))} of the tokens matter; area under the curve {_mean(_over(seeds, 'auc'))}."
    return ["## Token rewards against the tokens that matter", "", *_table(head, rows), "", note]


def _learning(seeds: list[Any], _: Any) -> list[str]:
    rows = []
    for name in ("paper", "tilted"):
        row = [name]
        for key in ("balance", "accuracy", "reward_gap", "value_gap", "nll"):
            two = [_mean(_over(seeds, name, when, f"eval/{key}")) for when in ("before", "after")]
            row.append(" -> ".join(two))
        rows.append([*row, _mean(_over(seeds, name, "seconds"), ".0f")])
    head = ["held out, before -> after", "balance", "accuracy", "reward gap", "value gap", "nll", "seconds"]
    others = {"paper": "TFPO paper", "tilted": "TFPO tilted", "genarm": "GenARM", "dpo": "DPO"}
    others["reward"] = "reward model (its scores)"
    found = [f"{text} {_mean(_over(seeds, 'accuracy', name), '.3f')}" for name, text in others.items()]
    note = f"Held-out accuracy, of log-ratios to the patient: {', '.join(found)}."
    return ["## TFPO learns", "", *_table(head, rows), "", note]


def _row(seeds: list[Any], name: str, *path: str) -> list[str]:
    keys = ("reward", "kl", "kl_token", "distinct_1", "distinct_2", "distinct_4", "words")
    row = [_mean(_over(seeds, *path, name, key)) for key in keys]
    if any(_over(seeds, *path, name, "kl_is_bound")):
        row[1] = f"at most {row[1]}"
    return [name, *row]


HEAD = ("true reward", "KL, nats", "KL a token", "distinct-1", "distinct-2", "distinct-4", "words")


def _comparison(seeds: list[Any], chosen: Mapping[str, float]) -> list[str]:
    del chosen
    best = "TFPO tilted, as chosen"
    names = [n for n in seeds[0] if not n.startswith(SWEPT) or "doctor" in n or "as chosen" in n]
    rows = []
    for name in names:
        if not isinstance(seeds[0][name], dict):
            continue
        pairs = [np.subtract(one[best]["by_prompt"], one[name]["by_prompt"]) for one in seeds if best in one]
        gap = np.concatenate(pairs)
        low, high = bootstrap_interval(gap, seed=0)
        ahead = "" if name == best else f"{gap.mean():+.2f} [{low:+.2f}, {high:+.2f}]"
        rows.append([*_row(seeds, name), ahead])
    head = ["method", *HEAD, f"{best} is ahead by"]
    note = "Brackets: 95% bootstrap intervals over prompts, of these seeds' models. Most reward there is: 6."
    return ["## Every method", "", *_table(head, rows), "", note]


def _sweeps(seeds: list[Any], _: Any) -> list[str]:
    names = [n for n in seeds[0] if n.startswith(SWEPT) and "," not in n]
    lines = ["## Over beta", "", *_table(["method", *HEAD], [_row(seeds, n) for n in names])]
    lines += ["", "True reward at an equal KL, read off the lines between the betas:", ""]
    levels = [0.5, 1.0, 2.0, 3.0]
    rows = [
        [name, *(_mean([_at_kl(_line(one, name), level) for one in seeds]) for level in levels)]
        for name in SWEPT
    ]
    return lines + _table(["nats a completion", *(f"{level:g}" for level in levels)], rows)


def _line(one: Mapping[str, Any], name: str) -> list[tuple[float, float]]:
    """(KL, reward) by beta."""
    found = [
        (float(key.rpartition(" ")[2]), value["kl"], value["reward"])
        for key, value in one.items()
        if key.rpartition(" ")[0] == name
    ]
    return [(kl, reward) for _, kl, reward in sorted(found)]


def _at_kl(line: list[tuple[float, float]], level: float) -> float | None:
    """The reward where the line first passes a KL; None where it does not."""
    for (low, before), (high, after) in itertools.pairwise(line):
        if low <= level <= high and high > low:
            return before + (after - before) * (level - low) / (high - low)
    return None


def _plausible(seeds: list[Any], _: Any) -> list[str]:
    return _all_rows(seeds, "Over beta, of what the patient finds plausible", "method")


def _ablations(seeds: list[Any], _: Any) -> list[str]:
    rows = []
    for name in seeds[0]:
        if name == "seconds":
            continue
        base = name.partition(",")[0] + ", as it is"
        row = [name, _mean([one[name]["scale"]["value"] for one in seeds], ".2g")]
        row.append(_mean([one[name]["pairs"]["accuracy"] for one in seeds], ".3f"))
        row.append(_behind(seeds, name, base, lambda one: one["pairs"]["right"], "+.3f"))
        for beta in seeds[0][name]["betas"]:
            reward, nats = (_mean(_over(seeds, name, "betas", beta, key)) for key in ("reward", "kl"))
            gap = _behind(seeds, name, base, lambda one, b=beta: one["betas"][b]["by_prompt"], "+.2f")
            row += [f"{reward} ({nats})", gap]
        rows.append(row)
    head = ["trained so", "eta", "accuracy", "against as it is"]
    for beta in next(one for one in seeds[0].values() if isinstance(one, dict))["betas"]:
        head += [f"true reward (KL), beta {beta}", "against as it is"]
    note = "Brackets: 95% bootstrap intervals over seeds' pairs and prompts, both ways of a seed on the same ones."
    return ["## What the parts do", "", *_table(head, rows), "", note]


def _behind(
    seeds: list[Any], name: str, base: str, of: Callable[[Mapping[str, Any]], Sequence[float]], form: str
) -> str:
    """How far one way is from another on the same items, with an interval."""
    if name == base:
        return ""
    gap = np.concatenate([np.subtract(of(one[name]), of(one[base])) for one in seeds])
    low, high = bootstrap_interval(gap, seed=0)
    return f"{gap.mean():{form}} [{low:{form}}, {high:{form}}]"


def _tuned(trials: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    rows = []
    for way, found in trials.items():
        best = max(found, key=lambda one: one["score"])
        rows += [
            [
                way,
                f"{one['rate']:g}",
                one["strength"] if isinstance(one["strength"], str) else f"{one['strength']:.3g}",
                f"{one['beta']:g}{', cut' if one['cut'] else ''}",
                f"{one['score']:.2f}",
                f"{one['kl']:.1f}" if "kl" in one else "-",
                "chosen" if one is best else "",
            ]
            for one in found
        ]
    head = ["way", "rate", "strength", "best exponent", "true reward (reward model: accuracy)", "KL", ""]
    return ["## Chosen on another seed", "", *_table(head, rows)]


def _full(seeds: list[Any], _: Any) -> list[str]:
    return _all_rows(seeds, "All weights", "method")


def _pareto(seeds: list[Any], _: Any) -> list[str]:
    return _all_rows(seeds, "Two dimensions", "weights of kindness and brevity, tilted")


def _all_rows(seeds: list[Any], title: str, first: str) -> list[str]:
    rows = [_row(seeds, name) for name in seeds[0] if name != "seconds"]
    return [f"## {title}", "", *_table([first, *HEAD], rows)]


def _weak_to_strong(seeds: list[Any], _: Any) -> list[str]:
    sizes, int8 = seeds[0]["sizes"], seeds[0]["int8"]
    rows = [_row(seeds, name, "rows") for name in seeds[0]["rows"]]
    speeds = [
        f"{name} {_mean(_over(seeds, 'tokens_per_second', name, 'median'), ',.0f')}"
        for name in seeds[0]["tokens_per_second"]
    ]
    return [
        "## Weak to strong",
        "",
        f"Patient {sizes['patient']['weights']:,} weights, doctor {sizes['doctor']['weights']:,} "
        f"(1/{sizes['patient']['weights'] / sizes['doctor']['weights']:.1f}).",
        "",
        *_table(["method", *HEAD], rows),
        "",
        f"8-bit patient: {int8['bytes']:,} bytes against {sizes['patient']['bytes']:,}; log-probs of its own samples "
        f"differ from the float patient's by {_mean(_over(seeds, 'int8', 'mean'), '.4f')} nats a token on average, "
        f"at most {_mean(_over(seeds, 'int8', 'largest'), '.3f')}.",
        "",
        f"Tokens a second: {'; '.join(speeds)}.",
    ]


def _cost(seeds: list[Any], _: Any) -> list[str]:
    found = seeds[0]
    times = {name: np.asarray(part["seconds"]) for name, part in found["tokens_per_second"].items()}
    both = times["patient"] + times["doctor"]
    rows = [[name, f"{part['median']:,.0f}", ""] for name, part in found["tokens_per_second"].items()]
    for row in rows[2:]:
        row[2] = _ratio(times[row[0]] / both)
    steps = {name: np.asarray(seconds) for name, seconds in found["steps"].items()}
    table = [
        [name, f"{1000 * np.median(seconds):.1f}", _ratio(seconds / steps["DPO"])]
        for name, seconds in steps.items()
    ]
    return [
        "## Cost",
        "",
        *_table(["decoding", "tokens a second", "time of patient + doctor"], rows),
        "",
        *_table(["a training step of 16 pairs", "ms", "of DPO's"], table),
    ]


def _ratio(ratios: np.ndarray) -> str:
    return f"{np.median(ratios):.2f} [{ratios.min():.2f}, {ratios.max():.2f}]"


# --- pictures ---------------------------------------------------------------------------------


def _picture(path: Path, draw: Callable[[Any], None], *, title: str, x: str, y: str) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 4.4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    draw(axes)
    axes.set_title(title, fontsize=11, loc="left")
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7, frameon=False)
    figure.savefig(path)


def frontier(path: Path, seeds: list[Any]) -> None:
    """True reward by KL: lines over beta (mean; thin: seeds), points for what has no beta."""

    def draw(axes: Any) -> None:
        for colour, name in zip(COLOURS, SWEPT, strict=False):
            lines = np.asarray([_line(one, name) for one in seeds])
            for line in lines:
                axes.plot(line[:, 0], line[:, 1], color=colour, alpha=0.25, linewidth=0.8)
            mean = lines.mean(0)
            axes.plot(mean[:, 0], mean[:, 1], color=colour, marker="o", markersize=4, label=name)
        points = ("greedy", "best of 4", "best of 16", "DPO", "told to be kind")
        points += tuple(n for n in seeds[0] if n.startswith("ARGS"))
        for index, name in enumerate(points):
            at = [np.mean(_over(seeds, name, key)) for key in ("kl", "reward")]
            colour = COLOURS[(3 + index) % len(COLOURS)]
            label = f"{name} (KL: bound)" if seeds[0][name]["kl_is_bound"] else name
            axes.plot(*at, "s^DvP"[index % 5], color=colour, markersize=6, label=label)
        # A ratio's large exponents fall far out of the picture; they stand in the table.
        axes.set_xlim(-0.5, 18)
        axes.set_ylim(-2, 5)

    _picture(path, draw, title="Reward and distance, over beta", x="KL to the patient, nats", y="true reward")


def pareto(path: Path, seeds: list[Any]) -> None:
    """Kindness by brevity, over the weights of two doctors."""

    def draw(axes: Any) -> None:
        names = [n for n in seeds[0] if n not in ("patient", "seconds")]
        at = np.asarray([[[one[n]["words"], one[n]["reward"]] for n in names] for one in seeds])
        for line in at:
            axes.plot(line[:, 0], line[:, 1], color=COLOURS[0], alpha=0.25, linewidth=0.8)
        mean = at.mean(0)
        axes.plot(mean[:, 0], mean[:, 1], color=COLOURS[0], marker="o", markersize=4, label="TFPO tilted")
        for name, (x, y) in zip(names, mean, strict=True):
            axes.annotate(name, (x, y), fontsize=7, xytext=(4, 4), textcoords="offset points")
        start = [np.mean(_over(seeds, "patient", key)) for key in ("words", "reward")]
        axes.plot(*start, "k*", markersize=9, label="patient")
        axes.invert_xaxis()

    title = "Two doctors on one base: weights of kindness, brevity"
    _picture(path, draw, title=title, x="words of an answer (the fewer the better)", y="true reward")


def tokens(path: Path, seeds: list[Any]) -> None:
    """Precision and recall by the share of tokens that is rewarded."""

    def draw(axes: Any) -> None:
        values = list(seeds[0]["by_threshold"])
        kept = [np.mean(_over(seeds, "by_threshold", v, "kept")) for v in values]
        for colour, key in zip(COLOURS, ("precision", "recall", "f1", "random_f1"), strict=False):
            line = [np.mean(_over(seeds, "by_threshold", v, key)) for v in values]
            style = "--" if key == "random_f1" else "-"
            label = {"f1": "F1", "random_f1": "F1 of random tokens"}.get(key, key)
            axes.plot(kept, line, style, color=colour, marker="o", markersize=4, label=label)

    title = "Rewarded tokens against the tokens that matter (thresholds 0.1 to 0.9)"
    _picture(path, draw, title=title, x="part of the tokens rewarded", y="")
