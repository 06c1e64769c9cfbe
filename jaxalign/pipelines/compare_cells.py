"""`jaxalign compare`: which method wins, from one supervised model, with one budget, over several seeds."""

import hashlib
import json
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxalign.config import save_yaml, to_dict
from jaxalign.errors import ConfigError, UserError
from jaxalign.pipelines.compare_cell import Cell, write_json
from jaxalign.pipelines.compare_checks import checked, shared_prompts
from jaxalign.pipelines.compare_config import CompareConfig
from jaxalign.pipelines.compare_methods import trains_proxy
from jaxalign.pipelines.compare_report import write_report
from jaxalign.pipelines.compare_results import results_of, table_of, verdicts
from jaxalign.pipelines.compare_run import run_cell

# What a cell's result does not depend on; `data` and `settings` are taken apart by method.
FREE = {"output", "methods", "seeds", "isolated", "batch_size", "device", "data", "settings"}
# Seconds that a cell has to save itself when the comparison is stopped.
PATIENCE = 120.0


@dataclass(frozen=True)
class ComparisonResult:
    """What a comparison returns.

    Attributes:
      folder: with the cells, `results.json` and `report.html`.
      results: what results.json holds.
      table: the same as text.
      errors: of each cell that failed, why.
    """

    folder: Path
    results: Mapping[str, Any]
    table: str
    errors: Mapping[str, str]


def run_compare(config: CompareConfig) -> ComparisonResult:
    """Trains methods from one supervised model with one budget, measures them on held-out prompts, and says which wins.

    Raises:
      SystemExit: 1, where a cell has failed; the others are done and reported.
    """
    result = compare(config)
    if result.errors:
        raise SystemExit(1)
    return result


def compare(config: CompareConfig, *, say: Callable[[str], None] = print) -> ComparisonResult:
    """Runs the cells that are not done yet, one after another, and writes the report.

    Args:
      config: see `CompareConfig`.
      say: takes the lines for the terminal.

    Raises:
      UserError: see `checked`; a folder with cells of other settings; or what all methods begin with failed.
    """
    config = checked(config)
    folder = Path(config.output)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--output: {folder} is a file; expected a folder")
    cells = plan(config)
    for cell in cells:
        _check_same(config, cell)
    shared, of = shared_prompts(config)
    overlap = f"{shared} of the {of} different held-out prompts are among the training prompts"
    say(overlap if not shared else f"warning: {overlap}")
    folder.mkdir(parents=True, exist_ok=True)
    save_yaml(config, folder / "config.yaml")
    errors: dict[str, str] = {}
    for number, cell in enumerate(cells, 1):
        done = cell.result(config) is not None
        say(f"[{number}/{len(cells)}] {cell.name}: {'there already' if done else cell.about.about}")
        began = time.monotonic()
        if done:
            continue
        if cell.about.proxy and "begin-reward" in errors:
            error = "the reward model failed"
        elif cell.method != "sft" and not cell.beginning and f"sft-{cell.seed}" in errors:
            error = "the supervised model's answers, to compare with, failed"
        else:
            _note(config, cell)
            error = _in_process(config, cell) if config.isolated else _here(config, cell)
        if error:
            errors[cell.name] = error
            print(f"{cell.name}: {error}", file=sys.stderr)
            if cell.beginning and cell.method == "sft":
                raise UserError(f"{cell.folder(config)}: {error}")
        else:
            say(f"[{number}/{len(cells)}] {cell.name}: {time.monotonic() - began:.0f} s")
    measured = [
        result for cell in cells if not cell.beginning and (result := cell.result(config)) is not None
    ]
    if not any(result["method"] == "sft" for result in measured):
        raise UserError(f"nothing to compare with: every cell of sft failed; {next(iter(errors.values()))}")
    results = results_of(config, measured, beginnings={
        cell.method: cell.result(config) for cell in cells if cell.beginning
    }, errors=errors, overlap={"shared": shared, "of": of})  # fmt: skip
    write_json(folder / "results.json", results)
    table = table_of(results)
    (folder / "table.txt").write_text(f"{table}\n", encoding="utf-8")
    report = write_report(config, results, errors)
    say(f"\n{table}\n")
    for line in verdicts(results):
        say(line)
    say(f"report: {report}")
    return ComparisonResult(folder, results, table, errors)


def plan(config: CompareConfig) -> list[Cell]:
    """All cells in order: what all begin with, then the methods seed by seed, the supervised model first."""
    beginnings = [*["sft"] * (not config.sft), *["reward"] * trains_proxy(config)]
    return [
        *(Cell(method=name, beginning=True) for name in beginnings),
        *(Cell(method=name, seed=seed) for seed in config.seeds for name in config.methods),
    ]


def identity(config: CompareConfig, cell: Cell) -> dict[str, Any]:
    """What a cell's result depends on: settings by dotted name, and the content of its files."""
    settings = {key: value for key, value in _dotted(to_dict(config)) if key.split(".")[0] not in FREE}
    if not cell.about.data and cell.method != "best_of_n":
        settings = {key: value for key, value in settings.items() if not key.startswith("budget.")}
    named = {"all", "sft", *(["reward"] if trains_proxy(config) else []), cell.method}
    if cell.beginning:
        named = {"all", cell.method} | ({"sft"} if cell.method == "reward" else set())
        kept = ("model", "sft", "lora.", "budget.samples", "budget.batch_size", "sampling.max_new_tokens")
        settings = {key: value for key, value in settings.items() if key.startswith(kept)}
    settings |= dict(_dotted({"settings": {name: config.settings.get(name, {}) for name in named}}))
    fields = {"demonstrations", "pairs", "held_out_pairs"}
    if not cell.beginning:
        fields |= {"held_out_prompts", cell.about.data} - {""}
    for name in sorted(fields):
        files = getattr(config.data, name)
        for i, file in enumerate([files] if isinstance(files, str) else files):
            settings[f"data.{name}.{i}"] = _word(file)
    return settings


def _word(file: str) -> str:
    """A word for the content of a file; what is none stands for itself."""
    path = Path(file)
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else file


def _dotted(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in tree.items():
        if isinstance(value, Mapping):
            found += _dotted(value, f"{prefix}{name}.")
        else:
            found.append((f"{prefix}{name}", value))
    return found


def _check_same(config: CompareConfig, cell: Cell) -> None:
    """Raises ConfigError where the folder holds a cell of other settings, by what differs."""
    file = cell.folder(config) / "cell.json"
    if not file.is_file():
        return
    theirs = json.loads(file.read_text(encoding="utf-8"))
    ours = json.loads(json.dumps(identity(config, cell)))
    for name in {**theirs, **ours}:
        if theirs.get(name) != ours.get(name):
            raise ConfigError(
                f"{file.parent}: was run with {name}={theirs.get(name)}, asked for now is {ours.get(name)}; set "
                "another --output, or delete that folder (and those that depend on it)"
            )


def _note(config: CompareConfig, cell: Cell) -> None:
    folder = cell.folder(config)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "error.txt").unlink(missing_ok=True)
    write_json(folder / "cell.json", identity(config, cell))


def _here(config: CompareConfig, cell: Cell) -> str:
    """Runs a cell in this process; why it failed, empty where it did not."""
    try:
        run_cell(config, cell)
    except UserError as error:
        return " ".join(str(error).split())
    except Exception as error:
        traceback.print_exc()
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]} (a bug; see the traceback)"
    return ""


def _in_process(config: CompareConfig, cell: Cell) -> str:
    """The same in a process of its own, whose words go into the cell's log.txt."""
    folder = cell.folder(config)
    command = [sys.executable, "-m", "jaxalign.pipelines.compare_run", config.output, cell.name]
    with (folder / "log.txt").open("a", encoding="utf-8") as log:
        child = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        try:
            status = child.wait()
        except BaseException:
            # It saves what it has, and ends before this process does.
            child.terminate()
            with suppress(subprocess.TimeoutExpired):
                child.wait(PATIENCE)
            child.kill()
            raise
    if status == 0 and cell.result(config) is not None:
        return ""
    told = folder / "error.txt"
    if told.is_file():
        return told.read_text(encoding="utf-8").strip()
    signal = -status if status < 0 else status - 128 if status > 128 else 0
    why = f"ended by signal {signal}" + (" (out of memory?)" if signal == 9 else "") if signal else ""
    return f"{why or f'ended with status {status}'}; see {folder / 'log.txt'}"
