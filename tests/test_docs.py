"""Pages that are written from the code say what the code has."""

import importlib.util
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_losses_has_every_case_source_and_reference():
    # Its figures are held to what is measured by tests/losses/test_parity.py.
    script = load("make_losses")
    stored = script.PAGE.read_text()
    figures = script.stated(stored)
    assert script.page(lambda losses, case: next(figures)) == stored, "run: python docs/make_losses.py"
    assert next(figures, None) is None


def test_contributing_names_tables_where_they_are():
    rows = re.findall(
        r"^\| [^|]+ \| (`[^|]+`) \| `([^|]+)` \|$", (ROOT / "CONTRIBUTING.md").read_text(), re.M
    )
    assert len(rows) == 11
    for tables, files in rows:
        found = "\n".join(path.read_text() for path in ROOT.glob(files))
        for table in re.findall(r"`(\w+)`", tables):
            assert re.search(rf"^{table}\b.* = ", found, re.M), f"{table} is not in {files}"
