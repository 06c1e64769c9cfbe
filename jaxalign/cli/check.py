"""`jaxalign check`: the environment, the devices, hub access, and a look at a model or a data file."""

import importlib.metadata
import itertools
import os
import platform
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from jaxalign.cli.loading import model_folder
from jaxalign.data import DataConfig
from jaxalign.errors import ModelError

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "datasets", "numpy")
GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class CheckConfig:
    """What to look at; with nothing set, the environment only.

    Attributes:
      model: a Hugging Face folder, a run folder or a hub id: is it there, may it be read, what is it.
      tokenizer: folder or hub id of the tokenizer; empty takes the model's own.
      revision: revision of a hub id.
      data: data files and how they become tokens, with the same keys as for training.
      kind: what the rows are taken for; auto takes what the first row is.
      rows: rows shown as tokens with their mask.
      device: auto, cpu, gpu or tpu.
    """

    model: str = ""
    tokenizer: str = ""
    revision: str = ""
    data: DataConfig = field(default_factory=DataConfig)
    kind: Literal["auto", "demonstration", "comparison", "ranking", "label", "stepwise", "prompt"] = "auto"
    rows: int = 2
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
    if config.data.train or config.data.validation:
        from jaxalign import models

        folder = model_folder(config.model) if config.model else ""
        source = config.tokenizer or folder
        tokenizer = models.load_tokenizer(source) if source else None
        if tokenizer is not None and Path(folder).is_dir() and folder:
            models.check_vocabulary(models.load_config(folder), tokenizer)
        _print(data(config, tokenizer))


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


def data(config: CheckConfig, tokenizer: Any = None) -> Iterator[str]:
    """What is in data files: format, counts, lengths, and the first rows as training sees them.

    Args:
      config: `data`, `kind` and `rows` are read.
      tokenizer: turns rows into tokens; None counts characters and shows text.

    Raises:
      DataError: a file or row that is wrong, by file and line.
    """
    from jaxalign.data import load_dataset, read_records

    files = (*config.data.train, *config.data.validation)
    options = data_options(config.data)
    first = None
    for path in files:
        records, counts = read_records(
            path, format=config.data.format, on_bad_row=config.data.on_bad_row, options=options
        )
        first = first or (records[0] if records else None)
        shape = config.data.format if config.data.format != "auto" else format_of_file(path)
        yield f"data          {path}: format {shape}, {_counted(counts)}"
        if tokenizer is None:
            yield from histogram([len(text_of(record)) for record in records], "characters")
            for record in records[: config.rows]:
                yield f"  {record.source}: {_short(text_of(record), 200)}"
    if tokenizer is None:
        yield "              name --model or --tokenizer to see rows as tokens with their mask"
        return
    kind = config.kind if config.kind != "auto" else kind_of(first)
    # Without limits, so that the histogram shows what the limits would cut.
    unlimited = replace(
        config.data,
        train=files,
        validation=(),
        weights=(),
        validation_fraction=0.0,
        limit=0,
        max_length=2**30,
        max_prompt_length=0,
    )
    found = load_dataset(unlimited, kind, tokenizer, seed=0)
    lengths = [max(map(len, e.rows), default=len(e.prompt_tokens)) for e in found.train]
    over = sum(length > config.data.max_length for length in lengths)
    limit = f"{over} longer than data.max_length = {config.data.max_length}"
    yield f"  as {kind}: {_counted(found.counts)}; {limit}"
    yield from histogram(lengths, "tokens")
    for example in found.train[: config.rows]:
        yield from shown(example, tokenizer)


def data_options(config: DataConfig) -> Any:
    """What the readers are told, from the same keys as in training."""
    from jaxalign.data import Options

    return Options(config.dimension, config.human, config.assistant)


def format_of_file(path: str) -> str:
    """The layout that detection finds in a file's first good row."""
    from jaxalign.data import detect
    from jaxalign.data.files import rows_of

    found = (detect(row) for _, row in rows_of(path) if isinstance(row, dict))
    return next(found, None) or "not known"


def kind_of(record: Any) -> Literal["demonstration", "comparison", "ranking", "label", "stepwise", "prompt"]:
    """What the rows of a file can train, from its first record."""
    from jaxalign.data import Comparison, PromptRecord, Ranking, Rating, Stepwise

    if isinstance(record, Comparison):
        return "comparison"
    if isinstance(record, Ranking):
        return "ranking"
    if isinstance(record, Stepwise):
        return "stepwise"
    if isinstance(record, Rating) and record.label is not None:
        return "label"
    return "prompt" if isinstance(record, PromptRecord) else "demonstration"


def text_of(record: Any) -> str:
    """All text of a record, for a look at it without a tokenizer."""
    prompt = record.prompt if isinstance(record.prompt, str) else "\n".join(m.content for m in record.prompt)
    answers = getattr(record, "candidates", getattr(record, "steps", ()))
    for name in ("completion", "chosen", "rejected"):
        answers = (*answers, getattr(record, name, None) or "")
    return "\n".join(part for part in (prompt, *answers) if part)


def histogram(lengths: Sequence[int], unit: str, *, width: int = 40) -> Iterator[str]:
    """Rows by length, in powers of two, with the quantiles that a context is chosen by."""
    if not lengths:
        return
    order = sorted(lengths)
    parts = {"shortest": 0.0, "half": 0.5, "90%": 0.9, "99%": 0.99, "longest": 1.0}
    marks = ", ".join(f"{name} {order[round(q * (len(order) - 1))]}" for name, q in parts.items())
    yield f"  length in {unit}: {marks}"
    bins = Counter(max(length, 1).bit_length() for length in lengths)
    most = max(bins.values())
    for power in range(min(bins), max(bins) + 1):
        count = bins[power]
        bar = "#" * -(-width * count // most)
        yield f"  {2 ** (power - 1):>7d} to {2**power - 1:<7d} {count:>7d} {bar}".rstrip()


def shown(example: Any, tokenizer: Any, *, ids: int = 12, text: int = 160) -> Iterator[str]:
    """An example's rows as runs of tokens that count for the loss, or do not."""
    rows = list(zip(example.rows, example.masks, strict=True))
    rows = rows or [(example.prompt_tokens, (False,) * len(example.prompt_tokens))]
    for number, (tokens, mask) in enumerate(rows, 1):
        yield f"  {example.source} row {number} of {len(rows)}: {len(tokens)} tokens, {sum(mask)} count"
        start = 0
        for counts, run in itertools.groupby(mask):
            part = list(tokens[start : start + len(list(run))])
            start += len(part)
            numbers = " ".join(map(str, part[:ids])) + (" ..." if len(part) > ids else "")
            words = _short(tokenizer.decode(part), text)
            yield f"    {'counts' if counts else 'given':6s} {len(part):5d}  {words}  [{numbers}]"


def _counted(counts: Any) -> str:
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(counts.filtered.items()))
    return f"{counts.read} rows read, {counts.used} used" + (f", filtered: {reasons}" if reasons else "")


def _short(text: str, limit: int) -> str:
    """One line: the beginning, and the end where it is cut."""
    line = repr(text)
    return line if len(line) <= limit else f"{line[: limit - 45]} ... {line[-40:]}"


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
