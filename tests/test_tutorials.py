"""The tutorials as they are kept: run from top to bottom, small, and without a trace of the machine that ran them.

`make notebooks` runs them; here nothing is run.
"""

import importlib.util
import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "tutorials"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return json.loads(request.param.read_text())


def code_cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def outputs(notebook):
    return [output for cell in code_cells(notebook) for output in cell["outputs"]]


def test_three_tutorials_are_kept_small():
    assert {path.stem for path in NOTEBOOKS} == {"align_a_model", "use_the_losses", "write_a_reward"}
    assert all(path.stat().st_size < 300_000 for path in NOTEBOOKS)


def test_each_was_run_whole_in_order_by_one_kernel(notebook):
    cells = code_cells(notebook)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))


def test_its_pictures_were_made_by_running_it(notebook):
    pictures = [output for output in outputs(notebook) if "image/png" in output.get("data", {})]
    shown = sum("".join(cell["source"]).count("plt.show()") for cell in code_cells(notebook))
    assert pictures and shown
    assert not any("![" in "".join(cell["source"]) for cell in notebook["cells"])


def test_no_output_is_an_error_a_warning_or_a_path_of_a_machine(notebook):
    for output in outputs(notebook):
        assert output["output_type"] in ("stream", "display_data"), output
        assert output.get("name") != "stderr", output
        assert not any(root in "".join(output.get("text", "")) for root in ("/tmp", "/home", "/root"))
    assert notebook["metadata"]["language_info"] == {"name": "python"}


def test_a_quick_run_only_lowers_the_numbers_that_the_cell_sets(notebook):
    for cell in code_cells(notebook):
        if "quick" in cell["metadata"]:
            whole, quick = {}, {}
            exec("".join(cell["source"]), whole)
            exec(cell["metadata"]["quick"], quick)
            assert whole.keys() == quick.keys()
            names = whole.keys() - {"__builtins__"}
            assert all(0 < quick[name] < whole[name] for name in names) and names


def test_its_page_in_the_docs_has_every_cell_and_output_in_order(notebook):
    spec = importlib.util.spec_from_file_location("notebook_pages", FOLDER.parent / "notebook_pages.py")
    hook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hook)
    text, pictures = hook.page(notebook, "tutorial.ipynb")
    place = 0
    for cell in notebook["cells"][1:]:
        source = "".join(cell["source"])
        lines = source if cell["cell_type"] == "code" else source.partition("(")[0]
        printed = ["".join(output["text"]).rstrip() for output in cell.get("outputs", []) if "text" in output]
        for part in (lines, *printed):
            place = text.index(part, place) + len(part)
    assert len(pictures) == sum("image/png" in output.get("data", {}) for output in outputs(notebook))
    assert all(f"]({name})" in text and content[1:4] == b"PNG" for name, content in pictures.items())
    assert ".ipynb)" not in text.replace("(tutorial.ipynb)", "", 1)
