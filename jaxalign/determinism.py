"""The same bits from the same run on a GPU, where XLA's fastest programs add numbers in no fixed order."""

import os
import re

from jaxalign.errors import ConfigError

FLAG = "--xla_gpu_deterministic_ops"
OFF = re.compile(rf"{FLAG}=(false|0)\b", re.IGNORECASE)


def request_determinism() -> None:
    """Asks XLA for programs without such sums; before JAX has compiled anything. Other flags of XLA_FLAGS stay.

    Raises:
      ConfigError: XLA_FLAGS says the opposite.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if refused := OFF.search(flags):
        raise ConfigError(f"run.deterministic=true, but XLA_FLAGS has {refused[0]}; remove one of them")
    if FLAG not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {FLAG}=true".strip()


def check_determinism(platform: str) -> None:
    """Checks that XLA was asked, where that is needed: on CPUs and TPUs a program's bits repeat anyway.

    Raises:
      ConfigError: it was not, and a process that has used JAX cannot ask any more.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if platform == "gpu" and (FLAG not in flags or OFF.search(flags)):
        raise ConfigError(
            f"run.deterministic: in Python, set XLA_FLAGS={FLAG}=true in the environment before JAX is used"
        )
