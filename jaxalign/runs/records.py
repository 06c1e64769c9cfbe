"""JSON lines that survive a crash: only whole lines are read, an incomplete last line is ignored."""

import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any


def clean(value: Any) -> Any:
    """The value as JSON can hold it; a number that is not finite becomes its name as text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(k): clean(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [clean(v) for v in value]
    if hasattr(value, "item") and not isinstance(value, (str, bytes)):
        return clean(value.item())
    return value


def append(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Appends rows and flushes them."""
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(clean(row), ensure_ascii=False) + "\n" for row in rows)
        file.flush()


def read(path: Path) -> Iterator[dict[str, Any]]:
    """All whole rows; nothing where there is no file."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8") as file:
        for line in file:
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                if line.endswith("\n"):
                    raise


def write_whole(path: Path, text: str) -> None:
    """Writes a file that appears whole or not at all, and its folder where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def keep_until(path: Path, step: int) -> None:
    """Drops the rows of later steps, atomically."""
    if not path.is_file():
        return
    rows = [row for row in read(path) if row.get("step", 0) <= step]
    temporary = path.with_suffix(".tmp")
    temporary.unlink(missing_ok=True)
    temporary.touch()
    append(temporary, rows)
    os.replace(temporary, path)
