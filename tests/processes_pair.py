"""What each of two processes sees of `jaxalign.processes`; `test_processes` starts it with ADDRESS:PORT,2,RANK."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np

from jaxalign import processes
from jaxalign.errors import DataError, UserError
from jaxalign.rollout import EngineConfig, ServerEngine
from jaxalign.training.core.loading import check_same_everywhere


def raised(function: Callable[[], Any]) -> BaseException | None:
    """What a function raises here."""
    try:
        function()
    except Exception as seen:
        return seen
    return None


def raised_by_first(error: Exception) -> BaseException | None:
    """What `by_first` raises here where the first raises this."""

    def fails() -> None:
        raise error

    return raised(lambda: processes.by_first(fails))


def check_server(rank: int) -> None:
    """A server that is not there is an error of the first process, which all raise."""
    definition: Any = SimpleNamespace(config=SimpleNamespace(eos_ids=(2,)))
    config = EngineConfig(kind="vllm", url="http://127.0.0.1:9", model="m", retries=0)
    engine = ServerEngine(config, definition, Path("nowhere"))
    asked = {"max_new_tokens": 2, "num_samples": 1, "key": jax.random.key(0)}
    for call in (engine.connect, lambda: engine.generate([[1]], **asked)):
        engine._model = "m"  # as if it had been there before
        error = raised(call)
        assert isinstance(error, UserError) and "127.0.0.1:9" in str(error), error
        assert processes.told(error) == (rank == 1)


def main(join: str) -> None:
    processes.join(join)
    rank = jax.process_index()
    assert processes.several() and processes.first() == (rank == 0)
    assert processes.which() == ("" if rank == 0 else " (process 1)")

    # What the first says, whatever its length; only it is asked.
    assert processes.by_first(lambda: (rank, "x" * 70_001)) == (0, "x" * 70_001)
    assert processes.agreed({"rank": rank}) == {"rank": 0}

    # What the first raises, all raise; the others know that it is said already.
    own = raised_by_first(UserError("file.txt: no such file"))
    assert isinstance(own, UserError) and str(own) == "file.txt: no such file"
    assert processes.told(own) == (rank == 1)
    other = raised_by_first(KeyError("key"))
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

    check_server(rank)
    check_same_everywhere(SimpleNamespace(fingerprint="same"))  # type: ignore[arg-type]
    differs = raised(lambda: check_same_everywhere(SimpleNamespace(fingerprint=str(rank))))  # type: ignore[arg-type]
    assert isinstance(differs, DataError) and "read different rows" in str(differs)
    print(f"process {rank} saw all")


if __name__ == "__main__":
    main(sys.argv[1])
