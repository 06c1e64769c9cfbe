"""`jaxalign check`: the environment, the devices, hub access, and a look at a model or a data file."""

import importlib.metadata
import os
import platform
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jaxalign.cli.loading import model_folder
from jaxalign.errors import ModelError

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "datasets", "numpy")
KINDS = ("demonstration", "comparison", "ranking", "rating", "prompt")
GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class CheckConfig:
    """What to look at; with nothing set, the environment only.

    Attributes:
      model: a Hugging Face folder, a run folder or a hub id: is it there, may it be read, what is it.
      tokenizer: folder or hub id of the tokenizer; empty takes the model's own.
      revision: revision of a hub id.
      data: data files, folders or hub ids.
      format: format of the data; auto detects it.
      kind: what the rows are taken for; auto takes what the format gives.
      rows: rows shown as tokens with their mask.
      on_bad_row: stop at the first bad row, or skip and count them.
      device: auto, cpu, gpu or tpu.
    """

    model: str = ""
    tokenizer: str = ""
    revision: str = ""
    data: tuple[str, ...] = ()
    format: str = "auto"
    kind: Literal["auto", "demonstration", "comparison", "ranking", "rating", "prompt"] = "auto"
    rows: int = 2
    on_bad_row: Literal["stop", "skip"] = "stop"
    device: Literal["auto", "cpu", "gpu", "tpu"] = "auto"

    def __post_init__(self) -> None:
        if self.rows < 0:
            raise ValueError(f"rows must not be negative, got {self.rows}")


def check(config: CheckConfig) -> None:
    """Prints versions, devices, memory, hub access, and what is in a model and in data files.

    Args:
      config: see `CheckConfig`.

    Raises:
      UserError: the device, model or data is wrong; what was found before is printed already.
    """
    for section in (environment(), devices(), hub()):
        _print(section)
    if config.model:
        _print(model(config.model, config.revision))
    tokenizer = None
    if config.tokenizer or config.model:
        from jaxalign import models

        tokenizer = models.load_tokenizer(config.tokenizer or model_folder(config.model))
    for source in config.data:
        _print(data(source, config, tokenizer))


def environment() -> Iterator[str]:
    """Versions, memory of the machine, room on the disk."""
    yield f"python        {platform.python_version()} on {platform.system()} {platform.machine()}"
    for name in PACKAGES:
        try:
            yield f"{name:13s} {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            yield f"{name:13s} not installed"
    yield f"cpu           {os.cpu_count()} cores, {_host_memory() / GIB:.1f} GiB memory"
    yield f"disk          {shutil.disk_usage('.').free / GIB:.1f} GiB free here"


def devices() -> Iterator[str]:
    """Each kind of device that JAX sees, with its memory where it tells."""
    import jax

    kinds = Counter((d.platform, d.device_kind) for d in jax.devices())
    for (kind, name), count in kinds.items():
        first = next(d for d in jax.devices() if d.device_kind == name)
        try:
            stats = first.memory_stats() or {}
        except jax.errors.JaxRuntimeError:
            stats = {}
        memory = f", {stats['bytes_limit'] / GIB:.1f} GiB each" if "bytes_limit" in stats else ""
        yield f"devices       {count} x {kind} ({name}){memory}"


def hub() -> Iterator[str]:
    """Whether a hub token is set (never the token) and whether the hub may be asked."""
    from huggingface_hub import constants, get_token

    yield f"hub token     {'present' if get_token() else 'none'}"
    if constants.HF_HUB_OFFLINE:
        yield "hub           offline (HF_HUB_OFFLINE): only what is in the cache"


def model(name: str, revision: str = "") -> Iterator[str]:
    """What a folder or hub id is, and whether this user may read it.

    Raises:
      ModelError: a folder that is no model.
    """
    folder = Path(model_folder(name))
    if folder.is_dir():
        from jaxalign import models

        shape = models.load_config(folder)
        size = sum(f.stat().st_size for f in folder.iterdir() if f.suffix in (".safetensors", ".msgpack"))
        yield (
            f"model         {folder}: {shape.family}, {shape.num_layers} layers, width {shape.hidden_size}, "
            f"{shape.num_heads} heads ({shape.num_kv_heads} of keys)"
        )
        yield (
            f"              vocabulary {shape.vocab_size}, context {shape.max_positions} tokens, "
            f"weights {size / 2**20:.1f} MiB"
        )
        return
    yield f"model         {name}: {hub_access(name, revision)}"


def hub_access(name: str, revision: str = "") -> str:
    """Whether the hub lets this user read a model: one phrase, with no token in it.

    Raises:
      ModelError: there is no such model.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if constants.HF_HUB_OFFLINE:
        return "not asked: the hub is offline (HF_HUB_OFFLINE)"
    try:
        api = HfApi()
        info = api.model_info(name, revision=revision or None, timeout=20)
        api.auth_check(name)
    except GatedRepoError:
        return "gated: this user has not been let in (ask on its page, and log in with a token)"
    except RevisionNotFoundError:
        return f"there, but has no revision {revision}"
    except RepositoryNotFoundError:
        raise ModelError(f"{name}: neither a folder here nor a model on the hub that you may see") from None
    except HFValidationError:
        raise ModelError(f"{name}: neither a folder here nor a hub id (owner/name)") from None
    except OfflineModeIsEnabled:
        return "not asked: the hub is offline"
    except Exception as error:
        # A network's own words may hold anything; only their kind is safe to print.
        return f"the hub cannot be reached ({type(error).__name__})"
    return f"on the hub, may be read (revision {str(info.sha)[:12]})"


def _host_memory() -> int:
    """Bytes of memory of this machine; 0 where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 0


def _print(lines: Iterator[str]) -> None:
    for line in lines:
        print(line)
    sys.stdout.flush()
