"""Pages that are written from the code say what the code gives."""

import importlib.util
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NUMBER = re.compile(r"\d\.\de[-+]\d\d")


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_parity_table_is_what_the_code_and_the_references_give():
    script = load("make_losses")
    fresh, stored = script.page(), script.PAGE.read_text()
    assert NUMBER.sub("#", fresh) == NUMBER.sub("#", stored), "run: python docs/make_losses.py"
    for now, then in zip(NUMBER.findall(fresh), NUMBER.findall(stored), strict=True):
        # Another CPU may round differently: up to two powers of two.
        assert float(now) <= 4 * float(then), f"{now} measured, {then} on the page"
