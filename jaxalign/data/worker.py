"""A process that tokenizes: `python -m jaxalign.data.worker`, started by `workers.Workers`."""

import os
import pickle
import signal
import sys


def main() -> None:
    """Reads (number of a recipe, the recipe where it is new, chunk) from standard input, and writes the blocks."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What libraries print must not get between the blocks.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    from jaxalign.data.workers import answer

    source, recipes = sys.stdin.buffer, {}
    while True:
        try:
            number, body, chunk = pickle.load(source)
        except (EOFError, pickle.UnpicklingError):  # whoever asks has ended, in the midst of a chunk or not
            return
        if body is not None:
            recipes[number] = pickle.loads(body)
        try:
            pickle.dump(answer(recipes[number], chunk), out, protocol=5)
            out.flush()
        except BrokenPipeError:
            os._exit(0)


if __name__ == "__main__":
    main()
