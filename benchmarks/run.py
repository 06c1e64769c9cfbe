"""jaxalign against TRL and transformers on this machine, in one run.

`make bench` measures the default cases (about an hour on two cores), `make bench-all` all of them. Each case's result
is kept as soon as it is there: started again, the command goes on with the cases that are left, and with those whose
settings are others now.
"""

import argparse
import os
import shutil
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cases import BY_NAME, CASES, Case
from compare import BenchmarkError, Sides, measure
from machine import machine
from once import measure_memory, measure_start
from report import headline, write_report
from storage import read_json, write_json


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
        if not sys.platform.startswith("linux"):
            raise BenchmarkError(f"the sides are watched through Linux's /proc, which {sys.platform} has not")
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
    """Measures the cases that have no result for what is asked; names of those that failed, each with one line."""
    sides = Sides(sys.executable, os.path.abspath(arguments.peer_python), arguments.peer_releases.absolute())
    failed = []
    for case in cases:
        result = (arguments.output / case.name / "result.json").absolute()
        asked = settings(case, arguments)
        if not arguments.again and is_there(result, asked):
            continue
        here, began = machine(), time.perf_counter()
        # Whatever goes wrong ends its case alone: the rest of the night is not lost.
        try:
            found = measured(case, result.parent, sides, arguments)
            found |= {"asked": asked, "about": case.about, "machine": here}
            write_json(result, found | {"took": time.perf_counter() - began})
            print(headline(case, found), flush=True)
        except Exception as error:
            kind = "" if isinstance(error, BenchmarkError) else f"{type(error).__name__}: "
            print(f"{case.name}: {kind}{' '.join(str(error).split())}", file=sys.stderr, flush=True)
            failed.append(case.name)
            if result.is_file():  # what it was before says nothing of a case that fails now
                result.replace(result.with_name("before.json"))
    return failed


def settings(case: Case, arguments: argparse.Namespace) -> dict[str, Any]:
    """What a case's result depends on, as it is kept with it."""
    asked: dict[str, Any] = {"case": case.measured}
    if case.kind != "memory":
        asked["pairs"] = arguments.pairs
    if case.kind == "time":
        asked["seconds"] = arguments.seconds
    return asked


def is_there(path: Path, asked: dict[str, Any]) -> bool:
    """Whether the file holds a result for these settings; one line says so, or why it is measured again."""
    if not path.is_file():
        return False
    name, found = path.parent.name, read_json(path) or {}
    kept = found.get("asked", {})
    differ = [key for key in asked if kept.get(key) != asked[key]]
    if differ:
        why = f"its {', '.join(differ)} changed" if kept else "its settings were not kept"
        print(f"{name}: measured again, {why} since {path}", flush=True)
        return False
    here = machine()
    elsewhere = [key for key in ("cpu", "cores") if found["machine"].get(key) != here.get(key)]
    if elsewhere or found.get("versions", {}).get("jax") not in (None, version("jax")):
        why = f"on another machine ({found['machine'].get('cpu')})" if elsewhere else "with another jax"
        print(f"{name}: measured again, {path} was {why}", flush=True)
        return False
    commits = [found["machine"]["commit"], here["commit"]]
    other = "" if commits[0] == commits[1] else f", of commit {commits[0]}, now {commits[1]}"
    print(f"{name}: there already{other} ({path})", flush=True)
    return True


def measured(case: Case, folder: Path, sides: Sides, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures one case from nothing; see `measure`."""
    from inputs import write_inputs  # jax, which the other options of the command line do without

    for old in (folder / "run", folder / "compiled"):
        shutil.rmtree(old, ignore_errors=True)
    write_inputs(case, folder)
    if case.kind == "memory":
        return measure_memory(case, folder, sides)
    if case.kind == "start":
        return measure_start(case, folder, sides, pairs=arguments.pairs)
    return measure(case, folder, sides, pairs=arguments.pairs, seconds=arguments.seconds)


if __name__ == "__main__":
    sys.exit(main())
