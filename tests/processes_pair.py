"""What each of two processes sees of `jaxalign.processes`; `test_processes` starts it with ADDRESS:PORT,2,RANK."""

import sys

import jax
import numpy as np

from jaxalign import processes
from jaxalign.errors import UserError


def raised(error: Exception) -> BaseException | None:
    """What `by_first` raises here where the first raises this."""

    def fails() -> None:
        raise error

    try:
        processes.by_first(fails)
    except Exception as seen:
        return seen
    return None


def main(join: str) -> None:
    processes.join(join)
    rank = jax.process_index()
    assert processes.several() and processes.first() == (rank == 0)
    assert processes.which() == ("" if rank == 0 else " (process 1)")

    # What the first says, whatever its length; only it is asked.
    assert processes.by_first(lambda: (rank, "x" * 70_001)) == (0, "x" * 70_001)
    assert processes.agreed({"rank": rank}) == {"rank": 0}

    # What the first raises, all raise; the others know that it is said already.
    own = raised(UserError("file.txt: no such file"))
    assert isinstance(own, UserError) and str(own) == "file.txt: no such file"
    assert processes.told(own) == (rank == 1)
    other = raised(KeyError("key"))
    assert type(other) is (KeyError if rank == 0 else RuntimeError) and "key" in str(other)

    assert processes.largest(5 + rank) == 6
    late = processes.LateLargest()
    # A signal that the second alone has received, and the first hears of at the next step.
    assert [late(15 * rank), late(0), late(0)] == [0, 15, 0]

    rows = jax.NamedSharding(jax.make_mesh((2,), ("rows",)), jax.P("rows"))
    table = np.arange(8).reshape(4, 2)
    placed = processes.place({"x": table}, rows)["x"]
    assert placed.addressable_data(0).tolist() == table[2 * rank : 2 * rank + 2].tolist()
    assert processes.fetch({"x": placed})["x"].tolist() == table.tolist()
    print(f"process {rank} saw all")


if __name__ == "__main__":
    main(sys.argv[1])
