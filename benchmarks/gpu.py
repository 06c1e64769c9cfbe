"""What one GPU gives: full and LoRA training, decoding and a GRPO step, against what the card could do.

usage: python benchmarks/gpu.py [--output runs/gpu] [--only NAME ...] [--shape SHAPE] [--again] [--profile]

Made for one H200 or H100: what fits into --seconds (under 8 minutes) is measured, and the same command goes on with the
rest (two or three calls at first, as programs are compiled). It prints the table for docs/performance.md. Each row is
measured by a process of its own, so that its memory is its own and a row that fails leaves the others; its output is
kept in --output. `--shape tiny` runs a row of each kind anywhere. Needs jax, flax, optax and jaxalign's own modules, no
data sets.

The first row checks attention by numbers. MFU counts 6 operations a parameter and token (4 with LoRA) and attention
within rows once, recomputation never, against 989 TFLOP/s (the data sheet's bfloat16 peak). The roofline of decoding
is the time to read the weights and those columns of the cache that hold a token, at 4.3 TB/s (H100: 3.0). A GRPO step
is an update of the trainer of `jaxalign grpo` with no KL penalty.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from storage import read_json, write_json

HERE = Path(__file__).resolve().parent
# bfloat16 operations a second by the data sheet of both cards; bytes a second as a copy of 8 GB reaches them there.
PEAK, BANDWIDTHS = 989e12, {"H200": 4.3e12, "H100": 3.0e12}
# What is asked of it: shares of the peak, tokens a second, shares of the roofline, generation's share at most.
MFU, LORA_SPEED, ROOFLINE, GENERATION = 0.5, 13_000, 0.6, 0.4
# The most important first: what there is no time for is left out. Shape, then numbers; prompt and new tokens fill a
# cache of 1024 columns.
ROWS: dict[str, tuple[str, tuple[int, ...]]] = {
    "checks": ("", ()),
    # packed rows, tokens of each
    "sft 1B 2048": ("1B", (8, 2048)),
    "decode 1B 256": ("1B", (256, 768, 256)),  # rows, prompt, new tokens
    "grpo 1B": ("1B", (32, 8, 256, 512)),  # prompts, completions of each, prompt, new tokens
    "sft 3B 4096": ("3B", (2, 4096)),
    "lora 8B 4096": ("8B", (2, 4096)),
    "decode 8B 64": ("8B", (64, 768, 256)),
    "decode 8B 256": ("8B", (256, 768, 256)),
    "sft 1B 4096": ("1B", (4, 4096)),
    "sft 3B 2048": ("3B", (4, 2048)),
    "decode 1B 64": ("1B", (64, 768, 256)),
    "decode 1B 128": ("1B", (128, 768, 256)),
    "decode 8B 128": ("8B", (128, 768, 256)),
    "sft tiny": ("tiny", (2, 64)),
    "decode tiny": ("tiny", (8, 48, 16)),
    "grpo tiny": ("tiny", (2, 4, 16, 16)),
    "lora tiny": ("tiny", (2, 64)),
}
# What layers keep while training, and what a row that runs out of memory is tried again with, in turn: computing a
# layer again is work that MFU does not count.
REMAT = ("none", "minimal", "full")
# Seconds that one row may take at most, and that are worth beginning one for.
LIMIT, LEAST = 150, 75
ABOUT = ("date", "commit", "device", "platform", "jax", "jaxlib", "python")


def card() -> str:
    """Driver and name of the first GPU, as nvidia-smi tells them."""
    query = ["nvidia-smi", "--query-gpu=driver_version,name", "--format=csv,noheader"]
    try:
        told = subprocess.run(
            query, capture_output=True, text=True, check=True, timeout=20
        ).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return "no nvidia-smi"
    return f"driver {told[0].strip()}" if told else "no nvidia-smi"


def commit() -> str:
    """Of this code; unknown in a copy without its history."""
    asked = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude=*"],
        cwd=HERE,
        capture_output=True,
        text=True,
        check=False,
    )
    return asked.stdout.strip() or "unknown"


def by_a_process(
    name: str, remat: str, output: Path, seconds: float, *, anywhere: bool, profile: bool = False
) -> dict[str, Any]:
    """A row, measured by another process in this many seconds; {"error": one line} where it gave none."""
    log, result = output / f"{name.replace(' ', '-')}.log", output / "row.json"
    result.unlink(missing_ok=True)
    paths = [str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92",
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "JAX_COMPILATION_CACHE_DIR": str(output / "compiled"),
    }
    command = [sys.executable, __file__, "--row", name, "--remat", remat, "--output", str(output)]
    command += ["--shape", "tiny"] if anywhere else []
    command += ["--profile"] if profile else []
    with log.open("w") as file:
        try:
            done = subprocess.run(
                command, env=environment, stdout=file, stderr=subprocess.STDOUT, timeout=seconds, check=False
            )
        except subprocess.TimeoutExpired:
            return {"error": f"no result within {seconds:.0f} s"}
    if result.is_file():
        return json.loads(result.read_text())
    last = next((line for line in reversed(log.read_text().splitlines()) if line.strip()), "no output")
    return {"error": f"ended with status {done.returncode}: {last.strip()}"}


def write_row(name: str, remat: str, output: Path, *, anywhere: bool, profile: bool) -> None:
    """What such a process does; on a GPU only, unless `anywhere`."""
    # Here and nowhere above: a process that has a device in use would take the memory of those that measure.
    import jax
    from gpu_rows import measured

    size, numbers = ROWS[name]
    try:
        if not anywhere and jax.default_backend() != "gpu":
            raise RuntimeError(
                f"JAX runs on the {jax.default_backend()} here: is its CUDA package installed (the extra cuda)?"
            )
        kernels = output / f"{name.replace(' ', '-')}.kernels" if profile else None
        row = measured(name, size, numbers, remat, kernels)  # type: ignore[arg-type]
    except Exception as problem:
        traceback.print_exc()
        row = {"error": next(iter(str(problem).splitlines()), "") or repr(problem)}
    (output / "row.json").write_text(json.dumps(row))


def measure(
    name: str, output: Path, until: float, *, anywhere: bool, profile: bool = False
) -> dict[str, Any] | None:
    """A row with what it depends on; again with the next level of `REMAT` where training ran out of memory.

    None where it was ended only because `until` came, a time of `time.perf_counter`.
    """
    began, size = time.perf_counter(), ROWS[name]
    how = {"anywhere": anywhere, "profile": profile}
    levels = REMAT[:1] if name.startswith(("checks", "decode")) else REMAT
    row = by_a_process(name, levels[0], output, min(LIMIT, until - began), **how)
    for before, level in itertools.pairwise(levels):
        left = until - time.perf_counter()
        if not out_of_memory(row) or left <= LEAST:
            break
        row = by_a_process(name, level, output, min(LIMIT, left), **how) | {"fell_back_from": before}
    if "error" in row and until - time.perf_counter() <= 0:
        return None
    return row | {
        "anywhere": anywhere,
        "shape": size[0],
        "numbers": size[1],
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "commit": commit(),
        "python": sys.version.split()[0],
        "took": time.perf_counter() - began,
    }


def out_of_memory(row: dict[str, Any]) -> bool:
    """Whether that is why a row failed."""
    error = row.get("error", "")
    return "RESOURCE_EXHAUSTED" in error or "out of memory" in error.lower()


def shares(name: str, row: dict[str, Any]) -> tuple[str, str]:
    """What a row is judged by, and its target; what holds for some cards only is blank elsewhere."""
    kind = name.split()[0]
    bandwidth = next((bytes_ for card, bytes_ in BANDWIDTHS.items() if card in row["device"]), 0)
    own = bool(bandwidth)
    seconds = row["ms"] / 1e3
    if kind == "grpo":
        text = ", ".join(f"{part} {row[part]:.0%}" for part in ("sample", "score", "optimize"))
        target, reached = f"sample at most {GENERATION:.0%}", row["sample"] <= GENERATION
    elif kind == "decode":
        share = row["bytes"] / (bandwidth or 1) / seconds
        text = f"{share:.1%} of the roofline, " if own else ""
        text += f"{row['filled']:.0%} of the columns read are filled"
        target, reached = f"{ROOFLINE:.0%}", share >= ROOFLINE
    else:
        share = row["operations"] / PEAK / seconds
        text = f"{share:.1%} MFU" if own else ""
        text += f"{', ' if text else ''}{row['filled']:.0%} of the columns filled"
        target, reached = f"{MFU:.0%}", share >= MFU
        if kind == "lora":
            target, reached = f"{LORA_SPEED:,} tokens/s", row["tokens_per_second"] >= LORA_SPEED
    return text, (target + ("" if reached else ", missed")) if own else ""


def cells(name: str, row: dict[str, Any]) -> list[str]:
    """A row of the table."""
    if "error" in row:
        level = f" (with remat {row['fell_back_from']} too)" if "fell_back_from" in row else ""
        return ["", "", f"failed{level}: {row['error']}", "", "", "", ""]
    peak = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**30:.1f}"
    if name == "checks":
        wrong = [case for case, found in row["cases"].items() if not found["ok"]]
        text = f"failed: {', '.join(wrong)}" if wrong else "ok"
        largest = "" if row["largest"] is None else f"; largest difference {row['largest']:.2g}"
        return ["", "", text + largest, "", "", row["attention"], peak]
    level = row.get("remat", "")
    if "fell_back_from" in row:
        level += f" ({row['fell_back_from']} ran out of memory)"
    speed = [f"{row['ms']:,.1f}", f"{row['tokens_per_second']:,.0f}"]
    return [*speed, *shares(name, row), level, f"{row['attention']}; {row['products']}", peak]


def table(found: dict[str, Any]) -> str:
    """What was measured, as Markdown, and what it depends on."""
    rows = {name: found["rows"][name] for name in ROWS if name in found["rows"]}
    lines = [
        "| measurement | ms a step | tokens/s | share | target | remat | attention; products | peak GiB |",
        "|---|---:|---:|---|---|---|---|---:|",
        *("| " + " | ".join([name, *cells(name, row)]) + " |" for name, row in rows.items()),
        "",
    ]
    groups: dict[str, list[str]] = {}
    for name, row in rows.items():
        about = ", ".join(f"{key} {row[key]}" for key in ABOUT if key in row)
        groups.setdefault(about, []).append(name)
    for about, names in groups.items():
        of = "" if len(groups) == 1 else f" ({', '.join(names)})"
        lines.append(f"{found['card']}; {about}{of}")
    return "\n".join(lines)


def failed(row: dict[str, Any]) -> bool:
    """Whether a row gave no figures, or a check found something wrong."""
    return "error" in row or not row.get("ok", True)


def main(arguments: list[str] | None = None) -> int:
    """Measures what is asked for and not there yet.

    Returns:
      0; 1 where a row failed, 2 for wrong arguments, 3 where time ran out.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output", type=Path, default=Path("runs/gpu"), help="folder for gpu.json and logs (runs/gpu)"
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="rows that begin with these names")
    shapes = list(dict.fromkeys(size for size, _ in ROWS.values() if size))
    parser.add_argument("--shape", choices=shapes, help="rows of this model; all but tiny if not given")
    parser.add_argument("--seconds", type=float, default=470, help="time for all rows together (470)")
    parser.add_argument("--again", action="store_true", help="measure again what is there already")
    parser.add_argument(
        "--profile", action="store_true", help="list the kernels of one more step of each row in ROW.kernels"
    )
    parser.add_argument("--row", choices=ROWS, help=argparse.SUPPRESS)
    parser.add_argument("--remat", default=REMAT[0], help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    output = options.output.absolute()
    if options.row:
        write_row(
            options.row, options.remat, output, anywhere=options.shape == "tiny", profile=options.profile
        )
        return 0
    chosen = [
        name
        for name, (size, _) in ROWS.items()
        if size in ("", options.shape) or (not options.shape and size != "tiny")
    ]
    chosen = [name for name in chosen if not options.only or name.startswith(tuple(options.only))]
    if not chosen:
        print(f"gpu: error: --only: no row begins so; there are {', '.join(ROWS)}", file=sys.stderr)
        return 2
    output.mkdir(parents=True, exist_ok=True)
    found = read_json(output / "gpu.json") or {"card": card(), "rows": {}}
    if found["card"] != (here := card()):
        print(
            f"gpu: error: {output / 'gpu.json'} has rows of another machine ({found['card']}; this is {here}); "
            "choose another --output",
            file=sys.stderr,
        )
        return 2
    try:
        left_out = measure_all(chosen, found, options, output)
    except KeyboardInterrupt:
        print("gpu: stopped; what was measured is kept, the same command goes on", file=sys.stderr)
        return 130
    print(table(found))
    if any(failed(found["rows"][name]) for name in chosen if name in found["rows"]):
        return 1
    return 3 if left_out else 0


def measure_all(names: list[str], found: dict[str, Any], options: argparse.Namespace, output: Path) -> bool:
    """Adds the rows that are not there yet, and keeps each; whether some were left out for lack of time."""
    until, left_out, tiny = time.perf_counter() + options.seconds, False, options.shape == "tiny"
    for name in names:
        old = found["rows"].get(name)
        if old and stands(name, old, tiny) and not options.again:
            print(f"{name}: there already, of commit {old['commit']}")
            continue
        row = None
        if until - time.perf_counter() >= LEAST:
            row = measure(name, output, until, anywhere=tiny, profile=options.profile)
        if row is None:
            print(f"{name}: left out for lack of time; the same command goes on")
            left_out = True
            continue
        if old is None or failed(old) or not failed(row):
            found["rows"][name] = row
            write_json(output / "gpu.json", found)
        print(f"{name}: {', '.join(filter(None, cells(name, row)))}", flush=True)
    return left_out


def stands(name: str, row: dict[str, Any], tiny: bool) -> bool:
    """Whether a row that is there is what is asked for: speeds of the same sizes, checks of this code as well."""
    same = not failed(row) and row["anywhere"] == tiny and list(row["numbers"]) == list(ROWS[name][1])
    return same and (name != "checks" or row["commit"] == commit())


if __name__ == "__main__":
    sys.exit(main())
