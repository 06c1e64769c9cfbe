"""Runs user code so that its errors show the user's lines, without jaxalign's."""

import asyncio
import concurrent.futures
import contextlib
import importlib
import os
import traceback
from collections.abc import Iterator
from pathlib import Path

import jaxalign
from jaxalign.errors import UserError

# Lines that stand between us and the user's: ours, the loop's that awaits, the machinery of imports.
_BETWEEN = tuple(
    str(Path(str(module.__file__)).parent) + os.sep
    for module in (jaxalign, asyncio, concurrent.futures, importlib)
) + ("<frozen importlib",)


class UserCodeError(UserError):
    """User code raised.

    Attributes:
      user_traceback: Python's text of it, from the user's first line on; empty where no line of theirs had run.
    """

    def __init__(self, what: str, error: BaseException) -> None:
        trace = traceback.TracebackException.from_exception(error)
        _leave_ours(trace)
        place = ""
        if trace.stack:
            own = trace.stack[0].filename
            last = [frame for frame in trace.stack if frame.filename == own][-1]
            place = f" ({own}:{last.lineno})"
        said = str(error)
        if isinstance(error, SyntaxError):
            said, place = error.msg, f" ({error.filename}:{error.lineno})"
        self.user_traceback = "".join(trace.format()) if trace.stack else ""
        super().__init__(f"{what}: {type(error).__name__}: {said}{place}")


@contextlib.contextmanager
def user_code(what: str) -> Iterator[None]:
    """Treats exceptions raised inside as the user's errors, unless they are marked otherwise.

    Args:
      what: what was run, for the message.

    Raises:
      UserCodeError: in place of any exception but `UserError` and `MemoryError`.
    """
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        raise UserCodeError(what, error) from error


def is_ours(value: object) -> bool:
    """Whether a function or object belongs to this package, so that its errors are not the user's."""
    module = getattr(value, "__module__", None) or type(value).__module__
    return module.partition(".")[0] == "jaxalign"


def _leave_ours(trace: traceback.TracebackException) -> None:
    """Takes away the frames that stand before the user's, of the exception and of those it came from."""
    first = next(
        (i for i, f in enumerate(trace.stack) if not f.filename.startswith(_BETWEEN)), len(trace.stack)
    )
    del trace.stack[:first]
    for other in (trace.__cause__, trace.__context__):
        if other is not None:
            _leave_ours(other)
