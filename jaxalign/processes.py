"""One program in several processes: joining them, what one says for all, and arrays that lie in several.

Every process runs the same lines in the same order, on the same data: what a line decides must not depend on the
process that runs it. Where it could (a signal, a clock, a file, a user's function), one process decides for all
(`by_first`, `agreed`). In a single process all of this does nothing.
"""

import os
import pickle
import re
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Sharding

from jaxalign.errors import ConfigError, DeviceError, UserError

Value = TypeVar("Value")
# After so many seconds without a sign of life a process counts as dead, and the others end.
HEARTBEAT_SECONDS = 20
# So long those that are done wait for the first, which may write and upload yet; where it died, heartbeats tell.
SHUTDOWN_SECONDS = 3600
NAMED = re.compile(r"(?P<address>[^,\s]+:\d+),(?P<count>\d+),(?P<rank>\d+)")


def join(setting: str) -> None:
    """Joins the processes of a job, before anything else asks JAX for its devices.

    Args:
      setting: `true` finds the others by what SLURM, Kubernetes (JobSet), Open MPI or a TPU pod says; `auto` does so
        where SLURM or Open MPI has started several; `false` stays alone; else `ADDRESS:PORT,NUMBER,RANK`: where
        process 0 can be reached, how many processes there are, and which this is. A process that has joined stays.

    Raises:
      ConfigError: another value.
      DeviceError: the others could not be found or reached.
    """
    named = NAMED.fullmatch(setting)
    if joined() or setting == "false" or (setting == "auto" and not _several_started()):
        return
    if setting not in ("auto", "true") and named is None:
        raise ConfigError(
            f"--distributed={setting}: expected auto, true, false or ADDRESS:PORT,NUMBER,RANK, such as "
            "10.0.0.1:1234,2,0"
        )
    given: dict[str, Any] = {}
    if named is not None:
        given = {
            "coordinator_address": named["address"],
            "num_processes": int(named["count"]),
            "process_id": int(named["rank"]),
            "cluster_detection_method": "deactivate",
        }
        if int(named["rank"]) >= int(named["count"]):
            last = int(named["count"]) - 1
            raise ConfigError(f"--distributed={setting}: the last of {named['count']} processes is {last}")
    try:
        jax.distributed.initialize(
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS, shutdown_timeout_seconds=SHUTDOWN_SECONDS, **given
        )
    except (ValueError, RuntimeError) as error:
        raise DeviceError(f"--distributed={setting}: {str(error).splitlines()[0]}") from None


def _several_started() -> bool:
    """Whether a launcher that names all processes of a job has started more than one."""
    counts = (os.environ.get(name, "") for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"))
    return any(count.isdigit() and int(count) > 1 for count in counts)


def joined() -> bool:
    """Whether this process has joined others."""
    return jax.distributed.is_initialized()


def which() -> str:
    """For messages: which process this is, empty for the first or only one."""
    return f" (process {jax.process_index()})" if joined() and not first() else ""


def told(error: BaseException) -> bool:
    """Whether the first process raised it, which says it itself."""
    return getattr(error, "of_first", False)


def several() -> bool:
    """Whether this is one of several processes."""
    return jax.process_count() > 1


def rank() -> int:
    """The number of this process, from 0."""
    return jax.process_index()


def first() -> bool:
    """Whether this is the process that writes and speaks for all."""
    return jax.process_index() == 0


def by_first(function: Callable[[], Value]) -> Value:
    """What `function` returns in the first process; only there it is called.

    The value must be one that pickle takes; what reads it are processes of the same program. All raise what it raises:
    a `UserError` as it is, anything else as a `RuntimeError` with its text.
    """
    if not several():
        return function()
    told: tuple[bool, Any] = (False, None)
    raised: BaseException | None = None
    if first():
        try:
            told = True, function()
        except Exception as error:
            raised, told = error, (False, (isinstance(error, UserError), f"{error}" or type(error).__name__))
    done, value = pickle.loads(_broadcast(pickle.dumps(told) if first() else b""))
    if raised is not None:
        raise raised
    if not done:
        error = (UserError if value[0] else RuntimeError)(value[1])
        error.of_first = True  # type: ignore[union-attr]
        raise error
    return value


def agreed(value: Value) -> Value:
    """The first process's value, in all of them."""
    return by_first(lambda: value)


def largest(number: int) -> int:
    """The largest of the numbers that the processes pass."""
    return int(multihost_utils.process_allgather(np.int32(number)).max()) if several() else number


class LateLargest:
    """The largest of the numbers that the processes pass, of the call before; so that no device is waited for.

    In a single process it is the number itself.
    """

    def __init__(self) -> None:
        self._before: jax.Array | None = None

    def __call__(self, number: int) -> int:
        if not several():
            return number
        before, self._before = self._before, _largest(_one_a_process(number))
        return 0 if before is None else int(before)


def fetch(tree: Any) -> Any:
    """Arrays on the host, whole in every process; as `jax.device_get`, which cannot where others hold a part."""
    if not several():
        return jax.device_get(tree)

    def whole(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
            return multihost_utils.process_allgather(leaf, tiled=True)
        return jax.device_get(leaf)

    return jax.tree.map(whole, tree)


def place(tree: Any, sharding: Sharding) -> Any:
    """Host arrays that all processes hold alike, on devices; each process puts the parts of its own there."""
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def put(array: Any) -> jax.Array:
        array = np.asarray(array)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(put, tree)


def _one_a_process(number: int) -> jax.Array:
    mesh = jax.make_mesh((jax.device_count(),), ("all",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.NamedSharding(mesh, jax.P("all"))
    return jax.make_array_from_callback((jax.device_count(),), rows, lambda _: np.full(1, number, np.int32))


@jax.jit
def _largest(numbers: jax.Array) -> jax.Array:
    return numbers.max()


def _broadcast(data: bytes) -> bytes:
    """The first process's bytes; first how many, for all must pass arrays of one shape."""
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
    padded = np.zeros(size, np.uint8)
    if first():
        padded[:] = np.frombuffer(data, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(padded)).astype(np.uint8).tobytes()
