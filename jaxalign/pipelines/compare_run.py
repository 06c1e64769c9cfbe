"""Runs one cell of a comparison; `python -m` does it in a process of its own.

python -m jaxalign.pipelines.compare_run OUTPUT CELL
"""

import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jaxalign.config import parse
from jaxalign.errors import UserError
from jaxalign.pipelines.compare_cell import Cell, write_json
from jaxalign.pipelines.compare_config import CompareConfig
from jaxalign.pipelines.compare_measure import measure_cell
from jaxalign.pipelines.compare_train import train_cell


def run_cell(config: CompareConfig, cell: Cell) -> dict[str, Any]:
    """Trains and measures a cell, or goes on with it; its result.json is written last.

    Raises:
      UserError: wrong data or settings, or another process that is at work on it.
    """
    folder = cell.folder(config)
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        if (done := cell.result(config)) is not None:
            return done
        training = train_cell(config, cell, folder) if cell.about.config else None
        found: dict[str, Any] = {"method": cell.method, "seed": cell.seed, "training": training}
        if not cell.beginning:
            found |= measure_cell(config, cell, folder)
        write_json(folder / "result.json", found)
        return found


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Within it no other process works on the cell; the lock is the kernel's and ends with the process."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{folder}: another process is at work on this cell") from None
        yield


def main(output: str, name: str) -> int:
    """Runs the cell of that name of the comparison in a folder; its exit status."""

    def terminate(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, terminate)
    config = parse(CompareConfig, Path(output) / "config.yaml")
    beginning, kind = name.startswith("begin-"), name.removeprefix("begin-")
    method, seed = (kind, 0) if beginning else (kind.rpartition("-")[0], int(kind.rpartition("-")[2]))
    cell = Cell(method=method, seed=seed, beginning=beginning)
    if config.device == "cpu":
        import jax

        jax.config.update("jax_platforms", "cpu")
    try:
        run_cell(config, cell)
    except UserError as error:
        line = " ".join(str(error).split())
    except Exception as error:
        traceback.print_exc()
        line = f"{type(error).__name__}: {' '.join(str(error).split())[:300]} (a bug; see log.txt)"
    except BaseException as error:
        # A signal, which training turns into an exception of its own once it has saved.
        sys.stderr.flush()
        os._exit(
            128
            + getattr(
                error, "signal", signal.SIGINT if isinstance(error, KeyboardInterrupt) else signal.SIGTERM
            )
        )
    else:
        return 0
    print(line, file=sys.stderr)
    (cell.folder(config) / "error.txt").write_text(line, encoding="utf-8")
    return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
