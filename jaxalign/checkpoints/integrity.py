"""Tells a checkpoint that is as it was saved from a damaged one, and sets damaged ones aside.

Orbax sees a truncated or missing file, but not a changed byte of an array. So each checkpoint lists its files with size
and CRC-32 in checksums.json, which is written before the rename that commits it.
"""

import asyncio
import json
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from jaxalign.errors import CheckpointError, DamagedCheckpointError

CHECKSUMS = "checksums.json"
# What every checkpoint has, those of earlier versions without checksums too.
REQUIRED = ("_CHECKPOINT_METADATA", "arrays/_METADATA", "extra/metadata")
# Orbax writes the time of the commit into it after the checksums are taken.
CHANGING = "_CHECKPOINT_METADATA"
BLOCK = 1 << 22  # bytes


def write_checksums(step: Path) -> None:
    """Notes the files of a checkpoint that is complete, but not yet committed."""
    files = sorted(path for path in step.rglob("*") if path.is_file())
    with ThreadPoolExecutor() as pool:
        noted = dict(
            zip((str(path.relative_to(step)) for path in files), pool.map(_noted, files), strict=True)
        )
    noted.pop(CHANGING, None)
    (step / CHECKSUMS).write_text(json.dumps(noted))


def check_whole(step: Path, parts: Sequence[str] = ()) -> None:
    """Refuses a checkpoint whose files are not those that were saved; see `damage`.

    Raises:
      DamagedCheckpointError: it is damaged; the message names the file.
      CheckpointError: see `damage`.
    """
    if found := damage(step, parts):
        raise DamagedCheckpointError(f"{step}: the checkpoint is damaged ({found})", int(step.name))


def unreadable(step: Path, error: Exception) -> CheckpointError:
    """What a checkpoint that `check_whole` let pass, and that could not be read, is refused with.

    Where its checksums were right, something else than its files is wrong.

    Raises:
      SystemExit, KeyboardInterrupt: a signal came meanwhile, which Orbax takes for an error of reading.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, (SystemExit, KeyboardInterrupt)):
            raise cause
        if isinstance(cause, asyncio.CancelledError):  # what asyncio makes of Ctrl-C
            raise KeyboardInterrupt from error
        cause = cause.__cause__ or cause.__context__
    text = str(error).strip()
    reason = text.splitlines()[0][:200] if text else type(error).__name__
    message = f"{step}: the checkpoint cannot be read ({reason})"
    whole = (step / CHECKSUMS).is_file()
    return CheckpointError(message) if whole else DamagedCheckpointError(message, int(step.name))


def damage(step: Path, parts: Sequence[str] = ()) -> str:
    """What is wrong with the files of a checkpoint, in a few words; empty where nothing is.

    Args:
      step: its folder.
      parts: read these folders of it alone; none reads all.

    Raises:
      CheckpointError: a file that this user may not read, which says nothing of what it holds.
    """
    for name in REQUIRED:
        try:
            json.loads((step / name).read_text())
        except FileNotFoundError:
            return f"{name} is missing"
        except PermissionError as error:
            raise CheckpointError(
                f"{step / name}: the checkpoint cannot be read ({error.strerror})"
            ) from error
        except (OSError, ValueError):
            return f"{name} is not valid JSON"
    if not (step / CHECKSUMS).is_file():
        return ""
    try:
        noted = json.loads((step / CHECKSUMS).read_text())
        files = {
            name: (int(size), int(crc))
            for name, (size, crc) in noted.items()
            if not parts or name.split("/")[0] in parts
        }
    except (OSError, ValueError, TypeError, AttributeError):
        return f"{CHECKSUMS} cannot be read"
    with ThreadPoolExecutor() as pool:
        found = pool.map(lambda name: _difference(step / name, *files[name]), files)
        return next(
            (f"{name} {difference}" for name, difference in zip(files, found, strict=True) if difference), ""
        )


def set_aside(step: Path) -> Path:
    """Renames a damaged checkpoint, so that its step can be saved again; nothing is deleted."""
    aside, number = step.with_name(f"{step.name}.damaged"), 2
    while aside.exists():
        aside, number = step.with_name(f"{step.name}.damaged-{number}"), number + 1
    return step.rename(aside)


def _noted(path: Path) -> tuple[int, int]:
    size = crc = 0
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            size, crc = size + len(block), zlib.crc32(block, crc)
    return size, crc


def _difference(path: Path, size: int, crc: int) -> str:
    try:
        # Before a large file is read.
        if (here := path.stat().st_size) != size:
            return f"has {here} bytes, {size} were saved"
        return "" if _noted(path)[1] == crc else "has changed since it was saved"
    except FileNotFoundError:
        return "is missing"
    except PermissionError as error:
        raise CheckpointError(f"{path}: the checkpoint cannot be read ({error.strerror})") from error
    except OSError as error:
        return f"cannot be read ({error.strerror})"
