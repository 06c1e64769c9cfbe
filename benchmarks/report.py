"""Tables and plots of what `run.py` measured, made from the raw results; nothing is measured again.

usage: python benchmarks/report.py [--output runs/bench] [--docs]: writes report.md and ratios.png beside the results;
--docs puts targets and plot into docs/performance.md, the other tables into its appendix (between their markers)
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import machine
from cases import CASES, Case
from compare import WAITED, ratio
from once import memory_ratio, start_ratio
from pages import APPENDIX, PAGE, Part, fill
from targets import SIDES, Results, busy, shown, status, verdict


def results(folder: Path) -> Results:
    """What was measured, in the order of the cases."""
    paths = [(case, folder / case.name / "result.json") for case in CASES]
    return [(case, json.loads(path.read_text())) for case, path in paths if path.is_file()]


def headline(case: Case, result: dict[str, Any]) -> str:
    """One line for the terminal."""
    if case.kind == "memory":
        needs = [(result["memory"][side] - result["baseline"][side]) >> 20 for side in SIDES]
        return f"{case.name}: {memory_ratio(result):.2f}x the memory: {needs[0]:,} MiB against {needs[1]:,}"
    middle, low, high = start_ratio(result) if case.kind == "start" else ratio(result)
    times = result["seconds" if case.kind == "start" else "seconds_a_step"]
    ours, peer = (statistics.median(times[side]) * 1e3 for side in SIDES)
    return f"{case.name}: {middle:.2f}x [{low:.2f}, {high:.2f}]  {ours:,.0f} ms against {peer:,.0f} ms"


def tables(found: Results) -> str:
    """All as Markdown: the targets, what results were measured with, and the details."""
    return f"{summary(found)}\n\n{details(found)}"


def summary(found: Results) -> str:
    """The targets, and what results were measured with."""
    return f"{status(found)}\n\n{origin(found)}"


def details(found: Results) -> str:
    """A table a kind, what each case is, where time went."""
    return "\n\n".join(
        text for text in (part(found) for part in (steps, starts, memory, legend, splits)) if text
    )


def legend(found: Results) -> str:
    """What each case compared when it was measured."""
    several = len({result["machine"]["commit"] for _, result in found}) > 1
    lines = [f"- {case.name}: {said(result)}{of_commit(result) if several else ''}" for case, result in found]
    return "\n".join(["The cases:", "", *lines])


def of_commit(result: dict[str, Any]) -> str:
    """Which code a result is of."""
    return f" (commit {result['machine']['commit']}, {result['machine']['date'][:10]})"


def said(result: dict[str, Any]) -> str:
    """The kept sentence of a result, and the forms of products and attention that jaxalign computed in."""
    chosen = [
        ", ".join(f"{name} {of[name]}" for name in ("products", "attention") if name in of)
        + (f" ({of['products_reason']})" if "products_reason" in of else "")
        for of in result.get("forms", {}).values()
    ]
    about = result.get("about", "its settings were not kept")
    return "; ".join([about, *(f"jaxalign's {form}" for form in dict.fromkeys(chosen))])


def origin(found: Results) -> str:
    """The machine, the versions and the days."""
    return f"{machine.origin([result for _, result in found])}. Above 1: jaxalign is faster."


def steps(found: Results) -> str:
    """The table of times of a step."""
    lines = [
        "| case | ratio (95% interval) | pairs | target | ms per step, ours / peer | useful tokens/s, ours / peer "
        "| peak MiB, ours / peer | compile s, programs, again |",
        "|---|---|---:|---|---:|---:|---:|---:|",
    ]
    crowded = False
    for case, result in found:
        if case.kind != "time":
            continue
        seconds, tokens = result["seconds_a_step"], result["tokens_a_step"]
        crowded = crowded or bool(busy(result))
        times = " / ".join(f"{statistics.median(seconds[side]) * 1e3:,.0f}" for side in SIDES)
        speeds = " / ".join(f"{sum(tokens[side]) / sum(seconds[side]):,.0f}" for side in SIDES)
        peaks = " / ".join(f"{result['memory'][side] >> 20:,}" for side in SIDES)
        compiled = f"{result['compile_seconds']:.1f}, {result['programs']}, {result['recompilations']}"
        lines.append(
            f"| {case.name} | {shown(case, result)} | {len(seconds['ours'])} | {verdict(case, found)} "
            f"| {times} | {speeds} | {peaks} | {compiled} |"
        )
    if len(lines) == 2:
        return ""
    note = (
        f"busy: the number of repetitions, of both sides, that waited for a core for more than {WAITED:.0%} of their "
        "time (summed over threads, at most the time that other processes ran), even after two retries; the figures "
        "include them."
    )
    return "\n".join([*lines, *(["", note] if crowded else [])])


def starts(found: Results) -> str:
    """The table of times to the first step."""
    lines = [
        "| case | ratio (95% interval) | pairs | target | s to the end of the first step, ours / peer "
        "| s of compilation, or of reading the cache |",
        "|---|---|---:|---|---:|---:|",
    ]
    for case, result in found:
        if case.kind == "start":
            seconds = result["seconds"]
            times = " / ".join(f"{statistics.median(seconds[side]):.1f}" for side in SIDES)
            compiled = statistics.median(result["compile_seconds"])
            reached = f"{shown(case, result)} | {len(seconds['ours'])} | {verdict(case, found)}"
            lines.append(f"| {case.name} | {reached} | {times} | {compiled:.1f} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def memory(found: Results) -> str:
    """The table of peak memory beyond what the imports hold."""
    lines = [
        "| case | ours / peer | target (at most) | peak MiB beyond imports, ours / peer | imports, MiB |",
        "|---|---:|---|---:|---:|",
    ]
    for case, result in found:
        if case.kind == "memory":
            base = result["baseline"]
            needs = " / ".join(f"{(result['memory'][side] - base[side]) >> 20:,}" for side in SIDES)
            imports = " / ".join(f"{base[side] >> 20:,}" for side in SIDES)
            reached = f"{shown(case, result)} | {verdict(case, found)}"
            lines.append(f"| {case.name} | {reached} | {needs} | {imports} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def splits(found: Results) -> str:
    """Where the time of a step went, a line a case."""
    lines = []
    for case, result in found:
        if case.kind != "time" or not any(result["split"].values()):
            continue
        sides = []
        for side in SIDES:
            parts = {name: 1e3 * seconds for name, seconds in result["split"][side].items()}
            # A part that was only measured in other tasks, or takes no time, says nothing.
            shown = ", ".join(f"{name} {ms:,.1f}" for name, ms in parts.items() if ms >= 0.05)
            sides.append(f"{side} {shown}")
        lines.append(f"- {case.name}: {'; '.join(sides)}")
    if not lines:
        return ""
    return (
        "Milliseconds per step by part (means; `step` is everything in no other part; `data` is building a batch, "
        "which overlaps with the previous step):\n\n" + "\n".join(lines)
    )


def write_report(folder: Path, *, docs: bool = False) -> str:
    """Writes report.md and ratios.png into the folder, and into the documentation where asked; returns the text.

    Where nothing was measured in the folder nothing is written, and the text says so.

    Raises:
      SystemExit: the documentation has no markers; one line.
    """
    from plots import ratios

    found = results(folder)
    if not found:
        return f"no results in {folder}"
    text = tables(found)
    (folder / "report.md").write_text(text + "\n")
    picture = ratios([row for row in (bar(case, result) for case, result in found) if row])
    (folder / "ratios.png").write_bytes(picture)
    if docs:
        fill(
            Part(PAGE, "ratios", summary(found), picture, "Ratios with their intervals and targets"),
            Part(APPENDIX, "cases", details(found)),
        )
    return text


def bar(case: Case, result: dict[str, Any]) -> tuple[str, float, float, float, float | None] | None:
    """Name, ratio, interval and target of a row of the plot; None of a memory, where less is better."""
    if case.kind == "memory":
        return None
    return (case.name, *(start_ratio(result) if case.kind == "start" else ratio(result)), case.target)


def main() -> int:
    """Writes the report of a folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output", type=Path, default=Path("runs/bench"), help="folder with results (runs/bench)"
    )
    parser.add_argument("--docs", action="store_true", help="write the pages in docs/ and the plot too")
    arguments = parser.parse_args()
    if not results(arguments.output):
        print(f"report: error: --output {arguments.output}: no results there", file=sys.stderr)
        return 2
    print(write_report(arguments.output, docs=arguments.docs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
