"""Sizes rounded up to a few buckets, so that arrays of many sizes share few compiled programs."""

# Columns of rows of tokens; beyond them, multiples of the last step.
WIDTHS = (8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192)
STEP = 2048


def width_bucket(length: int, *, least: int = WIDTHS[0]) -> int:
    """Columns for rows of up to `length` tokens; `least` at least, one of `WIDTHS`."""
    length = max(length, least)
    return next((width for width in WIDTHS if width >= length), -(-length // STEP) * STEP)


def bucket(number: int, *, per_octave: int) -> int:
    """The smallest bucket not below `number`: all numbers up to 2 * `per_octave`, then so many an octave."""
    size = 1
    while size * 2 * per_octave < number:
        size *= 2
    return -(-number // size) * size
