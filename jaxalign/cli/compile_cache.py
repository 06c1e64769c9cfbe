"""Compiled programs kept on disk: a command's second start on an accelerator does not compile them again."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def set_compile_cache(settings: Any, environment: Mapping[str, str] = os.environ) -> None:
    """Sets JAX's compilation cache for a command that runs on GPUs or TPUs, unless JAX has one already.

    Not on CPUs: their programs are of one machine's instructions, and a home folder may serve several.

    Args:
      settings: a command's configuration; `run.compile_cache=false` turns it off, as does
        `JAX_ENABLE_COMPILATION_CACHE=false` for every command.
      environment: see `cache_folder`.
    """
    section = getattr(settings, "run", settings)
    if getattr(section, "device", "cpu") == "cpu" or not getattr(section, "compile_cache", True):
        return
    import jax

    if jax.config.jax_compilation_cache_dir is None and jax.default_backend() != "cpu":  # type: ignore[attr-defined]
        jax.config.update("jax_compilation_cache_dir", str(cache_folder(environment)))


def cache_folder(environment: Mapping[str, str]) -> Path:
    """`JAX_COMPILATION_CACHE_DIR`, else `jaxalign/xla` in `XDG_CACHE_HOME` or `~/.cache`."""
    if own := environment.get("JAX_COMPILATION_CACHE_DIR"):
        return Path(own)
    return Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxalign" / "xla"
