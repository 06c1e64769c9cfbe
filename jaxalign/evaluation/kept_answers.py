"""Answers that are kept as soon as they are there, so that an evaluation goes on where it was stopped."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jaxalign.errors import ConfigError, DataError


class KeptAnswers:
    """Rows by the place of their question, in a file whose first line says what they are answers to.

    A last line that a kill has cut off is left out and overwritten.

    Args:
      path: of the file (.jsonl), which is made by the first rows.
      identity: what the answers depend on: model, file, sampling; texts and numbers by name.

    Raises:
      ConfigError: the file holds answers of another identity; names what differs.
      DataError: a line that is no row.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.path = path
        self.rows: dict[int, dict[str, Any]] = {}
        self.identity = identity = json.loads(json.dumps(identity))
        kept = path.read_bytes() if path.exists() else b""
        whole = kept[: kept.rfind(b"\n") + 1]
        if whole:
            self._read(whole.decode("utf-8"), identity)
            if len(whole) < len(kept):
                os.truncate(path, len(whole))
            return
        if kept:  # the first line was cut off
            os.truncate(path, 0)

    def _read(self, text: str, identity: Mapping[str, Any]) -> None:
        for number, line in enumerate(text.splitlines(), 1):
            try:
                row = json.loads(line)
            except ValueError:
                raise DataError(
                    f"{self.path}:{number}: expected a row in JSON; delete the file to begin anew"
                ) from None
            if number == 1:
                theirs = row.get("identity") or {}
                for name in {**theirs, **identity}:
                    if theirs.get(name) != identity.get(name):
                        raise ConfigError(
                            f"{self.path}: holds answers with {name}={theirs.get(name)}, asked for now is "
                            f"{identity.get(name)}; set another --output, or delete the file to begin anew"
                        )
            else:
                self.rows[int(row["index"])] = row

    def missing(self, count: int) -> list[int]:
        """Of the first `count` questions those without a row."""
        return [index for index in range(count) if index not in self.rows]

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Keeps rows, each with its `index`; they are on the disk when this returns."""
        rows = [dict(row) for row in rows]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            if not file.tell():
                file.write(json.dumps({"identity": self.identity}) + "\n")
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            file.flush()
            os.fsync(file.fileno())
        self.rows |= {int(row["index"]): row for row in rows}
