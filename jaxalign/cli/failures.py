"""Turns exceptions into a one-line message and an exit status."""

import errno
from collections.abc import Iterator

from jaxalign.errors import UserError

# What lowers the memory that a step takes, the cheapest first.
MEMORY_KNOBS = (
    "more --train.accumulation_steps, a smaller --train.batch_size or --data.max_length, --model.remat=full, "
    "--model.compute_dtype=bfloat16, --lora.enabled=true or more devices on --mesh.fsdp may help"
)


def exit_status(error: BaseException) -> int:
    """0 never; 2 for the user's mistake; 128 + signal after a signal; 1 for anything else."""
    if isinstance(error, KeyboardInterrupt):
        return 130
    number = stopped_by(error)
    if number is not None:
        return 128 + number
    return 1 if one_line(error) is None else 2


def one_line(error: BaseException) -> str | None:
    """The one-line message, or None if the error needs a traceback."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if stopped_by(error) is not None:
        return str(error)
    if isinstance(error, UserError):
        return "error: " + " ".join(str(error).split())
    for one in chain(error):
        text = str(one)
        if _disk_is_full(one, text):
            where = f" ({one.filename})" if isinstance(one, OSError) and one.filename else ""
            return (
                f"error: no space left on the disk{where}; what was complete before is kept: "
                "free some space and go on with --resume, or name another --output"
            )
        if _device_is_full(one, text):
            return f"error: the device ran out of memory ({_first_line(text)}); {MEMORY_KNOBS}"
        if _peer_is_gone(one, text):
            return (
                f"error: another process of the job ended or cannot be reached ({_first_line(text)}); its own output "
                "says why, and --resume continues from the last checkpoint"
            )
        if isinstance(one, MemoryError):
            return f"error: this machine ran out of memory; {MEMORY_KNOBS}"
    return None


def user_lines(error: BaseException) -> str:
    """The traceback of user code (`jaxalign.rewards.user_code`), without jaxalign's lines; else empty."""
    return str(getattr(error, "user_traceback", "")) if isinstance(error, UserError) else ""


def stopped_by(error: BaseException) -> int | None:
    """The signal that a trainer saved and stopped for (`jaxalign.training.core.loop.Interrupted`)."""
    number = getattr(error, "signal", None)
    return int(number) if isinstance(number, int) and not isinstance(error, Exception) else None


def chain(error: BaseException) -> Iterator[BaseException]:
    """The exception and those it came from; a saver's thread wraps the one that matters."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _disk_is_full(error: BaseException, text: str) -> bool:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    # TensorStore and XLA report the system's error as text of their own exceptions.
    return "No space left on device" in text or "Disk quota exceeded" in text


def _device_is_full(error: BaseException, text: str) -> bool:
    return type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError") and (
        "RESOURCE_EXHAUSTED" in text or "out of memory" in text.lower()
    )


def _peer_is_gone(error: BaseException, text: str) -> bool:
    words = ("Gloo", "NCCL", "coordination service", "CoordinationService")
    if type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError"):
        return any(word in text for word in words)
    # Where a program runs on the caller's thread, jaxlib raises a ValueError of the same text.
    return isinstance(error, ValueError) and text.startswith(tuple(f"UNKNOWN: {word} " for word in words))


def _first_line(text: str) -> str:
    line = text.strip().splitlines()[0] if text.strip() else "no detail"
    return line if len(line) <= 160 else line[:157] + "..."
