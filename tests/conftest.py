"""What every test shares: the CPU with 8 virtual devices, a compilation cache, checked annotations."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# All of this must stand before anything imports jax; child processes inherit it.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "Agg")

from jaxtyping import install_import_hook

# Shapes and dtypes of annotations are checked in the tests, never in a user's run.
install_import_hook("jaxalign.losses", "beartype.beartype")

import jax
import pytest

STRICT_PROMOTION = ("losses", "models", "test_logprobs.py", "test_masking.py")


@pytest.fixture(autouse=True)
def strict_promotion(request):
    """Losses, log-probs and models may not lean on implicit dtype promotion."""
    part = request.path.relative_to(ROOT / "tests").parts[0]
    if part not in STRICT_PROMOTION:
        yield
        return
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture(scope="session")
def devices():
    """The 8 virtual CPU devices."""
    found = jax.devices("cpu")
    assert len(found) == 8
    return found
