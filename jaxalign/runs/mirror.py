"""A run whose folder is a URL: a working folder on this host, which is copied there while the run goes.

Stores of objects have no rename, and Orbax 0.12.8 would write arrays of s3:// to a folder of that name. So checkpoints
are written here, as everywhere, and copied once they are committed: first their arrays, then the logs, and last the
file that commits them. What was cut off in between lacks that file, and is not fetched again.
"""

import json
import os
import platform
import shutil
import threading
import uuid
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from jaxalign import processes, remote
from jaxalign.errors import ConfigError, RemoteError

# Who wrote last; it lies beside the run's own files.
WRITER = ".writer.json"
STATE = "state.json"
# Folders that are whole or not there, each with the files of which one says that it is whole.
MODEL = ("config.json", "ensemble.json", "doctors.json", "adapter_config.json")
WHOLE = {
    "checkpoints/*": ("_CHECKPOINT_METADATA",), "exports/*": MODEL, "export": MODEL, "adapter": MODEL,
    "patient": MODEL, "start": MODEL,
}  # fmt: skip
# What is of this host alone.
OWN = ("engine",)
# Seconds between two copies of what has changed.
EVERY = 30.0

Stats = dict[str, list[int]]


def run_folder(output: str) -> Path:
    """The folder on this host of a run that writes to `output`, a path or a URL.

    Raises:
      RemoteError: a URL that cannot be written.
    """
    if (url := remote.scheme(output)) and url != "file":
        return Mirror(output).folder
    return Path(remote.local_file(output) if url else output)


def mirror_of(output: str) -> "Mirror | None":
    """The `Mirror` of a run that writes to a URL; None of one that writes to a path."""
    return None if remote.scheme(output) in ("", "file") else Mirror(output)


def check_shared(output: str) -> None:
    """All processes see the folder of a run that writes to a URL; each must call it.

    Raises:
      ConfigError: one does not, as they are of several machines.
    """
    if not processes.several() or (mirror := mirror_of(output)) is None:
        return

    def write() -> str:
        mirror.home.mkdir(parents=True, exist_ok=True)
        (mirror.home / "seen").write_text(token := uuid.uuid4().hex)
        return token

    token = processes.by_first(write)
    seen = (mirror.home / "seen").is_file() and (mirror.home / "seen").read_text() == token
    if processes.largest(int(not seen)):
        raise ConfigError(
            f"run.output: {output}: the processes run on several machines, and write their checkpoints together "
            "before they are copied; set JAXALIGN_CACHE to a folder that all of them see"
        )


class Mirror:
    """A run folder here and its copy at a URL; of several processes the first has it.

    Args:
      url: of the run.

    Attributes:
      url: without a slash at its end.
      home: what belongs to the URL on this host.
      folder: the run folder here.
    """

    def __init__(self, url: str) -> None:
        remote.check_url(url)
        self.url = url.rstrip("/")
        self.home = remote.cache_home().expanduser().absolute() / "runs" / remote.short_hash(self.url)
        self.folder = self.home / self.url.rpartition("/")[2]
        self._id, self._lost = "", ""
        # Name -> [bytes, mtime in ns] of the files here as they were copied; None for what is there alone.
        self._sent: dict[str, list[int] | None] = {}
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None
        self._alone: Any = None

    def begin(self, *, resume: bool, caches: Collection[str], warn: Callable[[str], None]) -> None:
        """Makes the folder here what is at the URL; nothing is written there.

        Args:
          resume: whether a run may be there.
          caches: folders that may be there even so.
          warn: takes a line about what was left out or set aside.

        Raises:
          ConfigError: a run is there that is not to be resumed; or another process of this host writes it.
          RemoteError: it cannot be read.
        """
        there = remote.listing(self.url)
        body = remote.read_bytes(self._at(WRITER)) if WRITER in there else None
        there.pop(WRITER, None)
        if not resume and "metadata.json" in there:
            raise ConfigError(
                f"run.output: {self.url} already holds a run; choose another folder, or continue it with --resume"
            )
        if "metadata.json" not in there and any(name.split("/")[0] not in caches for name in there):
            raise ConfigError(
                f"run.output: {self.url} is not empty and not a run folder; choose another folder"
            )
        self.home.mkdir(parents=True, exist_ok=True)
        self._hold()
        state = self._read_state()
        if body is not None and json.loads(body)["id"] == state.get("id") and self.folder.is_dir():
            # Nobody has written since: what is here is what is there, and more where a copy was cut off.
            self._id = state["id"]
            self._sent = {name: state["sent"].get(name) for name in there}
        else:
            self._put_aside(state.get("sent", {}), warn)
            self._fetch(there, warn)
            self._write_state()

    def claim(self) -> None:
        """Takes the URL over from whoever wrote there before, and copies what is here.

        Raises:
          RemoteError: it cannot be written.
        """
        self._id = uuid.uuid4().hex
        self._write_state()
        about = {"id": self._id, "host": platform.node(), "process": os.getpid()}
        remote.write_bytes(self._at(WRITER), json.dumps(about).encode())
        self.push()

    def start(self, warn: Callable[[str], None]) -> None:
        """Copies what changes every `EVERY` seconds, in a thread; `warn` takes a line where that fails."""

        def copy() -> None:
            said = ""
            while not (self._stop.wait(EVERY) or self._lost):
                try:
                    self.push()
                    said = ""
                except RemoteError as error:
                    if str(error) != said and not self._lost:
                        warn(f"run.output: {error}; it will be tried again")
                    said = str(error)

        self._thread = threading.Thread(target=copy, daemon=True, name="copies of the run")
        self._thread.start()

    def check(self) -> None:
        """Ends a run that was taken over.

        Raises:
          RemoteError: another process writes to the URL now.
        """
        if self._lost:
            raise RemoteError(f"run.output: {self._lost}")

    def push(self) -> None:
        """Copies what has changed here, and removes there what is gone here.

        Raises:
          RemoteError: it cannot be written; or another process has taken the run over.
        """
        with self._lock:
            self._check_mine()
            try:
                self._push()
            finally:
                self._write_state()

    def close(self, *, failed: bool) -> None:
        """Copies the rest; of a run that left nothing here nothing is left there.

        Args:
          failed: whether an error is under way, which then is not covered by another.

        Raises:
          RemoteError: see `push`; what is missing there is in the folder here.
        """
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        try:
            if self._lost:
                self.check()
            self.push()
            if not self._sent:
                remote.remove(self._at(WRITER))
                shutil.rmtree(self.folder, ignore_errors=True)
        except RemoteError as error:
            line = f"{error}; what is not there is in {self.folder}"
            if not self._lost:
                line = f"run.output: {line}, and --resume on this host goes on from it"
            if not failed:
                raise RemoteError(line) from error
            remote.say(f"warning: {line}")
        finally:
            self.release()

    def release(self) -> None:
        """Lets other processes of this host have the run."""
        if self._alone is not None:
            self._alone.release()

    # --- here ---------------------------------------------------------------------------------

    def _hold(self) -> None:
        from filelock import FileLock, Timeout

        self._alone = FileLock(self.home / ".lock")
        try:
            self._alone.acquire(timeout=0)
        except Timeout:
            raise ConfigError(
                f"run.output: {self.url}: another process of this host writes this run"
            ) from None

    def _read_state(self) -> dict[str, Any]:
        try:
            return json.loads((self.home / STATE).read_text())
        except (OSError, ValueError):
            return {}

    def _write_state(self) -> None:
        body = {"url": self.url, "id": self._id, "sent": self._sent}
        remote.replace_file(self.home / STATE, json.dumps(body).encode())

    def _here(self) -> Stats:
        """Name -> [bytes, mtime in ns] of the files that belong to the run; of checkpoints those that are committed."""
        found: Stats = {}
        # Checkpoints first: the logs, which are copied later, know of every one that is.
        for top in (self.folder / "checkpoints", self.folder):
            for folder, below, names in os.walk(top):
                place = Path(folder).relative_to(self.folder)
                below[:] = [
                    name
                    for name in below
                    if not name.startswith(".")
                    and ".orbax-checkpoint-tmp" not in name
                    and not (folder == str(self.folder) and name in ("checkpoints", *OWN))
                ]
                for name in names:
                    if name.startswith(".") or name.endswith(".tmp"):
                        continue
                    try:
                        about = os.stat(Path(folder) / name)
                    except FileNotFoundError:
                        continue
                    found[(place / name).as_posix()] = [about.st_size, about.st_mtime_ns]
        return found

    def _put_aside(self, sent: dict[str, Any], warn: Callable[[str], None]) -> None:
        """Clears the folder here; it is renamed where it has what was never copied."""
        if all(sent.get(name) == about for name, about in self._here().items()):
            shutil.rmtree(self.folder, ignore_errors=True)
            return
        aside, number = self.folder.with_name(f"{self.folder.name}.before"), 2
        while aside.exists():
            aside, number = self.folder.with_name(f"{self.folder.name}.before-{number}"), number + 1
        self.folder.rename(aside)
        warn(f"{self.url} has changed since this host wrote it; what was not copied is in {aside}")

    def _fetch(self, there: remote.Files, warn: Callable[[str], None]) -> None:
        """The folder here, anew from the URL."""
        whole = {_unit(name) for name in there if _commits(name)} | {""}
        for unit in sorted({_unit(name) for name in there} - whole):
            warn(f"{self.url}/{unit}: this copy was cut off; it is left out")
        names = [name for name in there if _unit(name) in whole]
        fresh = self.home / f".{self.folder.name}"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        urls, versions = [self._at(name) for name in names], [there[name] for name in names]
        remote.each(remote.download, urls, [fresh / name for name in names], versions)
        if names:
            fresh.rename(self.folder)
        else:
            fresh.rmdir()
        # What was left out is removed there by the next copy, as anything that is not here.
        self._sent = dict.fromkeys(there) | self._here()

    # --- there --------------------------------------------------------------------------------

    def _at(self, name: str) -> str:
        return f"{self.url}/{name}"

    def _check_mine(self) -> None:
        body = remote.read_bytes(self._at(WRITER))
        about = json.loads(body) if body else {}
        if about.get("id") != self._id:
            by = f"process {about['process']} on {about['host']}" if about else "another process"
            self._lost = f"{self.url}: {by} has taken this run over; nothing more is copied from here"
            self.check()

    def _push(self) -> None:
        here = self._here()
        gone = [name for name in self._sent if name not in here]
        changed = [name for name in here if self._sent.get(name) != here[name]]
        # What says that a folder is whole goes before anything else in it changes.
        touched = {_unit(name) for name in (*changed, *gone)}
        for name in [
            name for name in here if _commits(name) and name in self._sent and _unit(name) in touched
        ]:
            self._drop(name)
        changed = [name for name in here if self._sent.get(name) != here[name]]
        lacking: set[str] = set()

        def send(name: str) -> None:
            try:
                remote.upload(self.folder / name, self._at(name))
                self._sent[name] = here[name]
            except (
                FileNotFoundError
            ):  # of a checkpoint that is not kept any more, or an export that is replaced
                lacking.add(_unit(name))

        parts = [name for name in changed if not _commits(name)]
        remote.each(send, [name for name in parts if name.startswith("checkpoints/")])
        remote.each(send, [name for name in parts if not name.startswith("checkpoints/")])
        remote.each(send, [name for name in changed if _commits(name) and _unit(name) not in lacking])
        # And what is gone goes when all that took its place is there.
        for name in filter(_commits, gone):
            self._drop(name)
        remote.each(self._drop, [name for name in gone if not _commits(name)])

    def _drop(self, name: str) -> None:
        remote.remove(self._at(name))
        del self._sent[name]


def _unit(name: str) -> str:
    """The folder of `WHOLE` that a file lies in; empty where it stands for itself."""
    first, *rest = name.split("/")
    if first in WHOLE and rest:
        return first
    return f"{first}/{rest[0]}" if f"{first}/*" in WHOLE and len(rest) > 1 else ""


def _commits(name: str) -> bool:
    """Whether a file says that the folder it lies in is whole."""
    unit, _, last = name.rpartition("/")
    marks = WHOLE.get(unit) or WHOLE.get(f"{unit.rpartition('/')[0]}/*") or ()
    return unit != "" and _unit(name) == unit and last in marks
