"""Cases whose sides run by themselves: the memory of a few steps, and the time from process start to first step."""

import shutil
import time
from pathlib import Path
from typing import Any

from cases import Case
from compare import Child, Sides, check, kept, of_pairs

# In the first step there is no optimizer state before the gradient is there; the second has all at once.
STEPS = 2


def started(name: str, case: Case, folder: Path, sides: Sides) -> Child:
    """A side in a fresh run folder, ready for its first command."""
    shutil.rmtree(folder / "run", ignore_errors=True)
    return sides.start(name, case, folder)


def measure_memory(case: Case, folder: Path, sides: Sides) -> dict[str, Any]:
    """The most memory that each side held in a few steps, and what it held after its imports; see `measure`.

    Each side runs alone, so their first steps are compared when both are done.
    """
    versions: dict[str, str] = {}
    baseline, reports, memory, seconds = {}, {}, {}, {}
    for name in ("ours", "peer"):
        side = started(name, case, folder, sides)
        try:
            first = side.read()
            versions |= first["versions"]
            baseline[name] = first["baseline"]
            seconds[name] = [side.run(1)["seconds"] for _ in range(STEPS)]
            reports[name] = side.report()
            memory[name] = side.stop()["memory"]
        finally:
            side.kill()
    check(case, reports)
    return {
        "case": case.name,
        "versions": versions,
        "memory": memory,
        "baseline": baseline,
        "seconds": seconds,
        **kept(reports),
    }


def memory_ratio(result: dict[str, Any]) -> float:
    """Ours by the peer's, what the imports hold left out."""
    ours, peer = (result["memory"][name] - result["baseline"][name] for name in ("ours", "peer"))
    return ours / peer


def measure_start(case: Case, folder: Path, sides: Sides, *, pairs: int) -> dict[str, Any]:
    """Seconds from the start of each side's process to the end of its first step; see `measure`.

    A first start of each is not counted: it fills the compile cache and the file cache. The first step of every start
    is compared, after the clock was read; a pair that differs ends the case.
    """
    versions: dict[str, str] = {}
    seconds: dict[str, list[float]] = {"ours": [], "peer": []}
    compiled: list[float] = []
    reports: dict[str, dict[str, Any]] = {}
    for pair in range(pairs + 1):
        for name in ("ours", "peer") if pair % 2 == 0 else ("peer", "ours"):
            side = started(name, case, folder, sides)
            try:
                versions |= side.read()["versions"]
                answer = side.run(1)
                taken = time.perf_counter() - side.started
                side.run(1)  # jaxalign logs a step when the next is under way, the peer after it
                reports[name] = side.report()
            finally:
                side.kill()
            if pair:
                seconds[name].append(taken)
                compiled += [answer["compile_seconds"]] if name == "ours" else []
        check(case, reports)
    return {
        "case": case.name,
        "versions": versions,
        "seconds": seconds,
        "compile_seconds": compiled,
        **kept(reports),
    }


def start_ratio(result: dict[str, Any]) -> tuple[float, float, float]:
    """Median over pairs of the peer's time by ours, and its 95% bootstrap interval."""
    return of_pairs(result["seconds"]["ours"], result["seconds"]["peer"])
