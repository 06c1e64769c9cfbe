"""One process at a time makes a file of the cache; the others wait for it.

The lock is the kernel's (flock) and ends with the process that holds it, however that ends. Where a file system has no
locks, or each host its own, as many processes make the file as do not see each other: each writes it under another
name, and the last rename counts.
"""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from jaxalign.errors import ConfigError, DataError, UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

# A message is one line.
MESSAGE_BYTES = 2**16
KINDS = {kind.__name__: kind for kind in (ConfigError, DataError)}


@contextmanager
def one_writer(file: Path, say: Callable[[str], None], waiting: str) -> Iterator[None]:
    """Within it, this is the only process to make a file; look whether it is there, for another may have made it.

    Args:
      file: of a folder that exists.
      say: is told `waiting` where another process is at it, or that there are no locks.
      waiting: what is waited for.

    Raises:
      UserError: what ended the process that was waited for: it would end this one as well.
    """
    lock = file.with_name(f".{file.name}.lock")
    descriptor = _locked(lock, say, waiting)
    if descriptor is None:
        yield
        return
    try:
        _raise_theirs(descriptor)
        try:
            yield
        except UserError as error:
            _remove(lock, descriptor)
            # Only those read it that wait for this one: who comes later opens another file.
            with suppress(OSError):
                os.write(descriptor, json.dumps([type(error).__name__, str(error)]).encode())
            raise
    finally:
        _remove(lock, descriptor)
        os.close(descriptor)


def _locked(lock: Path, say: Callable[[str], None], waiting: str) -> int | None:
    """The open lock, held; None where it cannot be had."""
    if fcntl is None:
        return None
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError:  # a folder that cannot be written to is refused where the file is written
        return None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # NFS may say the latter
            say(waiting)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
    except BaseException as error:
        os.close(descriptor)
        if not isinstance(error, OSError):
            raise
        with suppress(OSError):
            lock.unlink()
        say(
            f"data.cache: {lock.parent} has no file locks ({error.strerror}); each process tokenizes by itself"
        )
        return None
    return descriptor


def _raise_theirs(descriptor: int) -> None:
    try:
        text = os.pread(descriptor, MESSAGE_BYTES, 0)
        kind, message = json.loads(text) if text else ("", "")
    except (OSError, ValueError):
        return
    if message:
        raise KINDS.get(kind, UserError)(message)


def _remove(lock: Path, descriptor: int) -> None:
    """Removes the lock's name, unless that is another's by now."""
    with suppress(OSError):
        if os.path.samestat(os.fstat(descriptor), lock.stat()):
            lock.unlink()
