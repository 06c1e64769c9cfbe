"""jaxalign against TRL and transformers on this machine, in one run.

`make bench` measures the default cases (about an hour on two cores), `make bench-all` all of them. Each case's result
is kept as soon as it is there: started again, the command goes on with the cases that are left.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cases import BY_NAME, CASES, Case
from compare import HERE, BenchmarkError, Sides, measure
from once import measure_memory, measure_start
from report import headline, write_report


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    lines = [line.split(":", 1) for line in text.splitlines() if ":" in line]
    first = {name.strip(): value.strip() for name, value in reversed(lines)}
    flags = first.get("flags", "").split()
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True, check=False
    )
    return {
        "cpu": first.get("model name", platform.processor()),
        "cores": os.cpu_count(),
        "flags": [f for f in flags if f.startswith(("amx", "avx512")) or f == "avx2"],
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
        "python": platform.python_version(),
        "commit": commit.stdout.strip(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def chosen(arguments: argparse.Namespace) -> list[Case]:
    """The cases that were asked for."""
    if arguments.cases:
        unknown = [name for name in arguments.cases if name not in BY_NAME]
        if unknown:
            raise BenchmarkError(f"no case {unknown[0]}; there are {', '.join(BY_NAME)}")
        return [BY_NAME[name] for name in arguments.cases]
    return [case for case in CASES if case.default or arguments.all]


def main() -> int:
    """Measures, keeps each result, prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", metavar="NAME", help="these cases only")
    parser.add_argument("--all", action="store_true", help="every case, also those that take hours")
    parser.add_argument(
        "--list", action="store_true", help="name the cases, with the minutes each takes, and stop"
    )
    parser.add_argument("--again", action="store_true", help="measure again what is there already")
    parser.add_argument("--pairs", type=int, default=7, help="repetitions of each side (7)")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of a repetition (3)")
    parser.add_argument(
        "--output", type=Path, default=Path("runs/bench"), help="folder for results (runs/bench)"
    )
    parser.add_argument(
        "--peer-python", default=".venv-parity/bin/python", help="interpreter with torch and TRL"
    )
    parser.add_argument(
        "--peer-releases",
        type=Path,
        default=Path(os.environ.get("JAXALIGN_TRL_RELEASES", ".venv-parity/releases")),
        help="folder of older releases of TRL, for PPO (.venv-parity/releases)",
    )
    arguments = parser.parse_args()
    if arguments.list:
        for case in CASES:
            default = "default" if case.default else ""
            print(f"{case.name:24} {default:7} {case.minutes:4g} min  {case.about}")
        return 0
    try:
        cases = chosen(arguments)
        if arguments.pairs < 1:
            raise BenchmarkError(f"--pairs must be 1 or more, got {arguments.pairs}")
        if not Path(arguments.peer_python).is_file():
            raise BenchmarkError(
                f"--peer-python {arguments.peer_python}: no such file; `make bench-peers` makes it"
            )
        failed = run(cases, arguments)
    except BenchmarkError as error:
        print(f"bench: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("bench: stopped; what was measured is kept, the same command goes on", file=sys.stderr)
        return 130
    print(write_report(arguments.output))
    return 1 if failed else 0


def run(cases: list[Case], arguments: argparse.Namespace) -> list[str]:
    """Measures the cases that have no result yet; names of those that failed."""
    from inputs import write_inputs

    sides = Sides(sys.executable, os.path.abspath(arguments.peer_python), arguments.peer_releases.absolute())
    failed = []
    for case in cases:
        folder = (arguments.output / case.name).absolute()
        result = folder / "result.json"
        if result.is_file() and not arguments.again:
            print(f"{case.name}: there already ({result})")
            continue
        for old in (folder / "run", folder / "compiled"):
            shutil.rmtree(old, ignore_errors=True)
        write_inputs(case, folder)
        began = time.perf_counter()
        try:
            if case.kind == "memory":
                found = measure_memory(case, folder, sides)
            elif case.kind == "start":
                found = measure_start(case, folder, sides, pairs=arguments.pairs)
            else:
                found = measure(case, folder, sides, pairs=arguments.pairs, seconds=arguments.seconds)
        except BenchmarkError as error:
            print(f"{case.name}: {error}", file=sys.stderr, flush=True)
            failed.append(case.name)
            continue
        found |= {"machine": machine(), "took": time.perf_counter() - began}
        partial = result.with_suffix(".partial")
        partial.write_text(json.dumps(found, indent=1))
        partial.rename(result)
        print(headline(case, found), flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
