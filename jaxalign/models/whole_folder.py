"""Folders that are written whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jaxalign.errors import ModelError
from jaxalign.processes import agreed, by_first, first


@contextmanager
def whole_folder(folder: Path, marker: str) -> Iterator[Path]:
    """A temporary folder to fill, which becomes `folder` at the end, or is gone where filling it failed.

    Of several processes, which may fill it only together, the first's becomes it.

    Raises:
      ModelError: `folder` holds something without the file `marker`.
    """
    by_first(lambda: check_replaceable(folder, marker))
    if not first():
        with tempfile.TemporaryDirectory() as scratch:
            yield Path(scratch)
        agreed(None)
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield temporary
        os.chmod(temporary, 0o755)
        old = folder.with_name(f".{folder.name}.old")
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        temporary.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    # The others go on when it is there.
    agreed(None)


def check_replaceable(folder: Path, marker: str) -> None:
    """A save may replace an empty folder or an earlier save, and nothing else.

    Raises:
      ModelError: the folder holds something without the file `marker`, or is a file.
    """
    if folder.is_dir() and (not any(folder.iterdir()) or (folder / marker).is_file()):
        return
    if folder.exists():
        raise ModelError(
            f"{folder}: the folder exists and has no {marker}; nothing was replaced, choose another folder"
        )
