"""Runs the tutorials as Jupyter does, each in a fresh folder, and writes their outputs into them.

Run: python docs/tutorials/run.py [--quick] [NOTEBOOK ...]

With --quick a cell whose metadata have `quick` is run with that source in its place (fewer steps), and no file changes.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

FOLDER = Path(__file__).resolve().parent
LARGEST = 300_000  # bytes: a repository keeps every version of every picture


def run(path: Path, *, quick: bool) -> None:
    """Runs one notebook from top to bottom.

    Raises:
      CellExecutionError: a cell raised; its traceback is the message.
      ValueError: the outputs make the file too large; it stays as it was.
    """
    notebook = nbformat.read(path, as_version=4)
    if quick:
        for cell in notebook.cells:
            cell.source = cell.metadata.get("quick", cell.source)
    with tempfile.TemporaryDirectory(prefix="tutorial-") as folder:
        NotebookClient(
            notebook,
            timeout=600,
            kernel_name="python3",
            record_timing=False,
            extra_arguments=["--log-level=ERROR"],  # a warning that loopback sockets are not encrypted
            resources={"metadata": {"path": folder}},
        ).execute()
    # Which Python ran it is no part of a tutorial.
    notebook.metadata.language_info = {"name": "python"}
    text = nbformat.writes(notebook) + "\n"
    if len(text.encode()) > LARGEST:
        raise ValueError(f"{path.name}: {len(text.encode()):,} bytes with its outputs, {LARGEST:,} at most")
    if not quick:
        path.write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer steps; writes nothing")
    parser.add_argument("notebooks", nargs="*", type=Path, default=sorted(FOLDER.glob("*.ipynb")))
    given = parser.parse_args()
    # Progress bars of tqdm miss a package that only draws them in a browser.
    os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"
    for path in given.notebooks:
        started = time.perf_counter()
        try:
            run(path, quick=given.quick)
        except (CellExecutionError, ValueError) as error:
            sys.exit(f"{path}: {error}")
        print(f"{path.name}: {time.perf_counter() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
