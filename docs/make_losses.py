"""Writes docs/losses.md: every loss, its source, and how far it lies from its reference.

    python docs/make_losses.py

The figures are measured here and now from the code and the stored reference values, and rounded up to a power of
two: machines differ in the last bits. `tests/test_docs.py` fails where the page says less than it measures.
"""

import inspect
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from jaxalign import losses  # noqa: E402
from tests.losses.cases import FAMILIES  # noqa: E402
from tests.losses.cases.measure import Errors, errors, stamp  # noqa: E402

PAGE = Path(__file__).parent / "losses.md"
TITLES = {
    "supervised": "Supervised and distillation",
    "reward": "Reward models",
    "preference": "Preference pairs and unpaired labels",
    "policy": "Policy gradient",
    "advantages": "Advantages",
    "online": "Online preference",
    "flow": "Token level and flow",
    "auxiliary": "Auxiliary",
}
# Of the tables with figures.
COLUMNS = 5
HEAD = """# Losses and parity

Every function is `jaxalign.losses.NAME`: it takes arrays and returns unreduced float32 arrays, with no model or trainer
inside. The [API reference](api/losses.md) has equations, shapes, units, conventions and exceptions; this page has the
errors against references.

Each row compares one function, with one set of options, with a reference on random inputs. Errors are
max |ours - reference| / (1 + |reference|) for the value, and for the gradient of a random weighted sum of the result,
both in float32 on a CPU, rounded up to a power of two. The tests enforce 1e-6 for values and 1e-5 for
gradients, unless a note says otherwise. The reference is TRL's own torch code if TRL has the loss, else a
derivation in float64; `make parity` recomputes all of them and fails on drift.

`python docs/make_losses.py` writes this page, and the tests check it against the code.
"""


def rounded(error: float) -> str:
    """The error rounded up to a power of two, as text; below 2^-24 (half a unit of float32 at 1) it counts as that.

    Within 1.5% of a power it counts as that power, so that a figure read back from the page is written the same.
    """
    power = math.ceil(math.log2(max(error, 2.0**-24)) - 0.02)
    return f"{2.0**power:.1e}"


def trained() -> list[str]:
    """The table of what `jaxalign dpo --loss.name` takes: names, functions and needs, from their records."""
    lines = [
        "## Names of `--loss.name`\n",
        "The losses of `jaxalign dpo`, and those on pairs also of `jaxalign online-dpo`, from "
        "`losses.PREFERENCE_LOSSES`.\n",
        "| name | loss | examples | log-probs | reference model | batch statistics | options besides `loss.beta` |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, spec in losses.PREFERENCE_LOSSES.items():
        statistic = ", ".join(f"`{key}`" for key in spec.statistic.axes) if spec.statistic else "-"
        options = ", ".join(f"`loss.{option.name}` ({option.default})" for option in spec.options) or "-"
        lines.append(
            f"| `{name}` | `{spec.function.__name__}` | {'labels' if spec.unpaired else 'pairs'} | "
            f"{'means' if spec.means else 'sums'} | {'yes' if spec.reference else 'no'} | {statistic} | {options} |"
        )
    return [*lines, ""]


def summary_of(name: str) -> tuple[str, str]:
    """First sentence of a docstring, and its source."""
    text = inspect.getdoc(getattr(losses, name)) or ""
    first = " ".join(text.split("\n\n")[0].split())
    source = text.split("Source:", 1)[1] if "Source:" in text else ""
    return first, " ".join(source.split("\n\n")[0].split()).rstrip(".")


def page(measure=errors) -> str:
    """The whole page, with the errors that `measure(losses, case) -> Errors` gives."""
    lines = [HEAD, *trained()]
    for family, cases in FAMILIES.items():
        if not cases:
            continue
        versions = json.loads(stamp(family))
        lines.append(f"## {TITLES[family]}\n")
        lines.append(f"References made with {', '.join(f'{n} {v}' for n, v in versions.items())}.\n")
        lines.append("| loss | options | value error | gradient error | reference |")
        lines.append("|---|---|---:|---:|---|")
        notes = []
        for case in cases:
            found: Errors = measure(losses, case)
            name = f"`{case.function}`" + (f" ({case.pick})" if case.pick is not None else "")
            if case.why:
                notes.append(
                    f"{name}, {case.option}: bounds {case.bounds[0]:g} and {case.bounds[1]:g}. {case.why}"
                )
            mark = " *" if case.why else ""
            gradient = rounded(found.gradient) if case.grads else "-"
            lines.append(
                f"| {name}{mark} | {case.label} | {rounded(found.value)} | {gradient} | {case.reference} |"
            )
        lines += ["", *[f"\\* {note}\n" for note in notes]]
        for name in dict.fromkeys(case.function for case in cases):
            first, source = summary_of(name)
            lines.append(f"- `{name}`: {first}" + (f" Source: {source}." if source else ""))
        lines.append("")
    return "\n".join(lines)


def stated(text: str) -> Iterator[Errors]:
    """The errors that a page states, row by row, in the order of the cases; 0 where there is no gradient."""
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split(" | ")]
        if line.startswith("| `") and len(cells) == COLUMNS:
            yield Errors(float(cells[2]), 0.0 if cells[3] == "-" else float(cells[3]))


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"{PAGE.relative_to(ROOT)}: {sum(map(len, FAMILIES.values()))} rows")
