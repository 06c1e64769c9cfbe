"""A process that tokenizes: `python -m jaxalign.data.worker`, started by `workers.Workers`."""

import os
import pickle
import signal
import sys


def main() -> None:
    """Reads (recipe or None for the one before, chunk) from standard input until it ends, and writes the blocks."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What libraries print must not get between the blocks.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    from jaxalign.data.workers import answer

    source, recipe = sys.stdin.buffer, None
    while True:
        try:
            body, chunk = pickle.load(source)
        except EOFError:
            return
        recipe = pickle.loads(body) if body is not None else recipe
        assert recipe is not None
        try:
            pickle.dump(answer(recipe, chunk), out, protocol=5)
            out.flush()
        except BrokenPipeError:
            os._exit(0)


if __name__ == "__main__":
    main()
