"""Replies that were paid for, in an append-only file of JSON lines: a run that was killed pays for none twice."""

import hashlib
import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxalign.data.chunks import parsed_line
from jaxalign.errors import DataError, UserError


def request_key(body: Mapping[str, Any]) -> str:
    """A name for a request (model, messages and parameters), whatever the order of its fields: SHA-256, in hex."""
    return hashlib.sha256(json.dumps(body, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


class ReplyCache:
    """Replies by the key of their request; safe to use from several threads. One process at a time may hold it.

    A last line that was torn by a kill is moved to a file beside it, whose name ends in .torn.

    Args:
      path: of the file, made where there is none; empty keeps replies in memory.

    Raises:
      DataError: a line that is no reply, or the file cannot be read or written.
      UserError: another process holds the file.
    """

    def __init__(self, path: str = "") -> None:
        self._path, self._lock = Path(path), threading.Lock()
        self._alone: Any = None
        self._rows: dict[str, dict[str, Any]] = {}
        self._file: int | None = None
        if not path:
            return
        from filelock import FileLock, Timeout

        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._alone = FileLock(f"{path}.lock", thread_local=False)
            self._alone.acquire(timeout=0)
        except Timeout:
            raise UserError(
                f"{path}: another process uses this cache; wait for it, or name another file"
            ) from None
        except OSError as error:
            raise DataError(f"{path}: cannot be written ({error.strerror})") from None
        try:
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
            self._load()
        except OSError as error:
            self.close()
            raise DataError(f"{path}: cannot be read or written ({error.strerror})") from None
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, key: str) -> dict[str, Any] | None:
        """The reply to a request, or None."""
        return self._rows.get(key)

    def put(self, key: str, reply: Mapping[str, Any]) -> None:
        """Keeps a reply; it is in the file when this returns.

        Raises:
          DataError: it cannot be written (a full disk, say); the file is as before.
        """
        row = {"key": key, **reply}
        with self._lock:
            self._rows[key] = row
            if self._file is None:
                return
            line = json.dumps(row, ensure_ascii=True).encode() + b"\n"
            before = os.fstat(self._file).st_size
            try:
                if os.write(self._file, line) != len(line):
                    raise OSError(None, "the disk is full")
            except OSError as error:
                os.ftruncate(self._file, before)
                raise DataError(f"{self._path}: cannot be written ({error.strerror})") from None

    def close(self) -> None:
        """Lets other processes use the file."""
        with self._lock:
            if self._file is not None:
                os.close(self._file)
                self._file = None
            if self._alone is not None:
                self._alone.release()

    def _load(self) -> None:
        assert self._file is not None
        whole = self._path.read_bytes()
        body, _, rest = whole.rpartition(b"\n")
        for number, line in enumerate(body.split(b"\n") if body else [], 1):
            if not self._take(row := parsed_line(line)):
                raise DataError(
                    f"{self._path}:{number}: expected a cached reply (key, text), got "
                    f"{row if isinstance(row, str) else 'another row'}; remove the line"
                )
        if not rest:
            return
        if self._take(parsed_line(rest)):  # only its end is lacking
            os.write(self._file, b"\n")
            return
        with Path(f"{self._path}.torn").open("ab") as aside:
            aside.write(rest + b"\n")
        os.ftruncate(self._file, len(whole) - len(rest))

    def _take(self, row: Any) -> bool:
        """Keeps a row of the file; whether it is a reply."""
        reply = isinstance(row, dict) and isinstance(row.get("key"), str) and isinstance(row.get("text"), str)
        if reply:
            self._rows[row["key"]] = row
        return reply
