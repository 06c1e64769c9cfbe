"""The table of the results of `run.py`."""

import json
import statistics
from pathlib import Path
from typing import Any

from cases import BY_NAME, CASES, NEW, Case
from compare import ratio


def results(folder: Path) -> list[tuple[Case, dict[str, Any]]]:
    """What was measured, in the order of the cases."""
    found = []
    for case in CASES:
        path = folder / case.name / "result.json"
        if path.is_file():
            found.append((BY_NAME[case.name], json.loads(path.read_text())))
    return found


def tokens(case: Case) -> int:
    """Tokens a step of full rows, or the new ones where there are any; 0 for rows of real lengths, which differ."""
    if case.task in ("generate", "grpo"):
        return case.batch * NEW
    return 0 if case.chat else case.batch * case.shape["length"] * (1 if case.task == "sft" else 2)


def table(folder: Path) -> str:
    """A Markdown table of all results in the folder."""
    lines = [
        "| case | ratio (95% interval) | target | ours, ms a step | peer, ms | ours, tokens/s | ours / peer, peak MiB "
        "| first step after, s (ours / peer) | compiled: s, programs, again |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for case, result in results(folder):
        middle, low, high = ratio(result)
        ours, theirs = (statistics.median(result["seconds_a_step"][n]) for n in ("ours", "peer"))
        memory, startup = result["memory"], result["first_step_after"]
        target = "" if case.target is None else f"{case.target}{'' if middle >= case.target else ' missed'}"
        speed = f"{tokens(case) / ours:,.0f}" if tokens(case) else ""
        lines.append(
            f"| {case.name} | {middle:.2f} [{low:.2f}, {high:.2f}] | {target} | {ours * 1e3:.0f} | {theirs * 1e3:.0f} "
            f"| {speed} | {memory['ours'] >> 20} / {memory['peer'] >> 20} "
            f"| {startup['ours']:.1f} / {startup['peer']:.1f} "
            f"| {result['compile_seconds'] or 0:.1f}, {result['programs']}, {result['recompilations']} |"
        )
    return "\n".join(lines)
