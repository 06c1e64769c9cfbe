"""The published layouts, each with a row and what it becomes, and the table of them in docs/data.md.

`python -m tests.data.layouts --write` writes the table anew.
"""

import argparse
import json
from pathlib import Path

from tests.data.answer_layouts import DEMONSTRATIONS
from tests.data.preference_layouts import PREFERENCES, SCORES

LAYOUTS = [*PREFERENCES, *SCORES, *DEMONSTRATIONS]

BEGIN, END = "<!-- layouts: begin -->", "<!-- layouts: end -->"
PAGE = Path(__file__).parents[2] / "docs" / "data.md"


def table() -> str:
    """The table of layouts, as Markdown."""
    lines = ["| layout | fields | becomes | status |", "| --- | --- | --- | --- |"]
    for layout in LAYOUTS:
        fields = ", ".join(layout.row)
        if isinstance(layout.becomes, str):
            becomes, status = "-", f"refused: {layout.becomes}"
        else:
            becomes = type(layout.becomes).__name__.removesuffix("Record").lower()
            status = f"read as `{layout.format}`"
            if layout.columns:
                status = f"mapped: `--data.columns='{json.dumps(layout.columns)}'`"
            if layout.kind:
                becomes += f" (kind {layout.kind})"
        lines.append(f"| {layout.name} | {fields} | {becomes} | {status} |")
    return "\n".join(lines)


def with_table(page: str) -> str:
    """A page with the table between its marks."""
    head, _, rest = page.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{table()}\n{END}{tail}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the table into docs/data.md")
    if parser.parse_args().write:
        PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(table())
