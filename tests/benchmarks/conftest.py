"""The scripts of benchmarks/ import each other by name: the folder is on the path while a test runs.

`sides` stands for jaxalign and a peer: two processes that answer the driver as those do, and compute nothing.
"""

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    """Imports a script by its name; its modules are forgotten afterwards."""
    monkeypatch.syspath_prepend(str(FOLDER))
    names = [path.stem for path in FOLDER.glob("*.py")]
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module
    for name in names:
        sys.modules.pop(name, None)


CHILD = """
import sys
from gate import Gate, Stop
loss, file = float(sys.argv[1]), sys.argv[2]
facts = {"programs": 3, "compile_seconds": 0.0}
gate = Gate(lambda: None, lambda: facts)
def report():
    facts["programs"] = 4
    seen = len(gate.tokens) - 1  # a step is logged when the next is under way
    return {"losses": [loss] * seen, "grad_norms": [2.0] * seen, "forms": {"model": {"products": "x"}}}
gate.report = report
gate.answer(versions={}, baseline=1)
try:
    while True:
        gate.between()
        gate.count(8)
        open(file, "w").write(str(len(gate.tokens)))
except Stop:
    gate.answer(memory=2)
"""


@pytest.fixture
def sides(benchmark):
    """Call it with the losses of jaxalign's and the peer's steps; `steps(folder, name)` says how many a side ran."""
    child = benchmark("compare").Child

    def make(ours: float, peer: float) -> SimpleNamespace:
        def start(name, case, folder):
            loss = {"ours": ours, "peer": peer}[name]
            command = [sys.executable, "-S", "-c", CHILD, str(loss), str(folder / name)]
            return child.start(name, command, folder / f"{name}.log", {"PYTHONPATH": str(FOLDER)})

        return SimpleNamespace(start=start)

    make.steps = lambda folder, name: int((folder / name).read_text())
    return make
