"""`jaxalign check`: the environment, devices and hub access, and a description of a model or data files."""

import importlib.metadata
import itertools
import os
import platform
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from jaxalign.data import DataConfig
from jaxalign.data.blocks import Sample
from jaxalign.data.config import Kind
from jaxalign.data.fields import BadRow, Unusable
from jaxalign.errors import DataError, ModelError
from jaxalign.inference.loading import model_folder
from jaxalign.llmdoctor.guided_folders import Doctors, GuideConfig, read_doctors
from jaxalign.models.memory import cache_sizes, number_of_weights, sized, weight_sizes

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "datasets", "numpy")
GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class CheckConfig:
    """What to check; by default only the environment.

    Attributes:
      model: a Hugging Face folder, a GGUF file, a run folder or a hub id to look up, check for access and describe;
        with doctors, their patient (empty uses the one that their cards name).
      doctor: folders of doctors (tfpo runs, or their export/) whose cards and sizes to show.
      tokenizer: folder or hub id of the tokenizer; empty uses the model's own.
      revision: revision of a hub id; empty uses the newest.
      data: data files and how they become tokens, with the same keys as in training.
      kind: what to read each row as; auto uses what the first row is.
      rows: number of rows to show as tokens with their loss mask.
      device: device to use: cpu, gpu or tpu; auto uses JAX's default.
    """

    model: str = ""
    doctor: tuple[str, ...] = ()
    tokenizer: str = ""
    revision: str = ""
    data: DataConfig = field(default_factory=DataConfig)
    kind: Literal["auto"] | Kind = "auto"
    rows: int = 2
    device: Literal["auto", "cpu", "gpu", "tpu"] = "auto"

    def __post_init__(self) -> None:
        if self.rows < 0:
            raise ValueError(f"rows must not be negative, got {self.rows}")


def check(config: CheckConfig) -> None:
    """Checks the environment: versions, devices, memory and hub access; also describes a model or data files.

    Args:
      config: see `CheckConfig`.

    Raises:
      UserError: an invalid device, model or data; what was found before it is printed already.
    """
    for section in (environment(), devices(), hub()):
        _print(section)
    if config.doctor:
        cards = read_doctors(GuideConfig(doctor=config.doctor, patient=config.model))
        config = replace(config, model=cards.patient_folder())
        _print(doctors(cards))
    if config.model:
        _print(model(config.model, config.revision))
    if config.data.train or config.data.validation:
        from jaxalign import models

        folder = model_folder(config.model) if config.model else ""
        source = config.tokenizer or folder
        tokenizer = models.load_tokenizer(source) if source else None
        if tokenizer is not None and Path(folder).exists() and folder:
            shape = models.load_config(folder)
            models.check_vocabulary(shape, tokenizer)
            config = replace(config, data=config.data.within(shape.max_positions))
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
    """Whether a hub token is set (never the token itself) and whether the hub is offline."""
    from huggingface_hub import constants, get_token

    yield f"hub token     {'present' if get_token() else 'none'}"
    if constants.HF_HUB_OFFLINE:
        yield "hub           offline (HF_HUB_OFFLINE): only cached files can be used"


def model(name: str, revision: str = "") -> Iterator[str]:
    """Describes a folder or hub id, and whether you can access it.

    Raises:
      ModelError: a folder that is no model.
    """
    folder = Path(model_folder(name))
    if folder.exists():
        from jaxalign import models
        from jaxalign.models.gguf.head import gguf_in

        shape = models.load_config(folder)
        file = gguf_in(folder)
        files = (
            [f for f in folder.iterdir() if f.suffix in (".safetensors", ".msgpack")]
            if file is None
            else [file]
        )
        size = sum(f.stat().st_size for f in files)
        yield (
            f"model         {folder}: {shape.family}, {shape.num_layers} layers, width {shape.hidden_size}, "
            f"{shape.num_heads} heads, {shape.num_kv_heads} for keys and values"
        )
        yield (
            f"              vocabulary {shape.vocab_size}, context {shape.max_positions} tokens, "
            f"weights {size / 2**20:.1f} MiB"
        )
        yield f"memory        {number_of_weights(shape):,} parameters: {_sizes(weight_sizes(shape))}"
        yield f"cache         per token: {_sizes(cache_sizes(shape))}"
        return
    yield f"model         {name}: {hub_access(name, revision)}"


def doctors(cards: Doctors) -> Iterator[str]:
    """Each doctor, and the memory that it needs in addition to its patient."""
    from jaxalign import models

    shared = cards.start_as(cards.patient_folder())
    for home, card in zip(cards.folders, cards.cards, strict=True):
        shape = models.load_config(home)
        adapter = home / card.adapter if card.adapter else None
        size = sum(f.stat().st_size for f in adapter.glob("*.safetensors")) if adapter else 0
        how = f"{number_of_weights(shape):,} parameters: {_sizes(weight_sizes(shape))}"
        if adapter and shared:
            how = f"an adapter of {sized(size)} on its patient's weights, which cannot be int8 then"
        elif adapter:
            how += f"; or an adapter of {sized(size)} when it shares its base model with other doctors"
        yield f"doctor        {home} ({card.dimension}): {how}"


def _sizes(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{sized(size)} in {dtype}" for dtype, size in sizes.items())


def hub_access(name: str, revision: str = "") -> str:
    """Whether you can access a hub model: one phrase, without the token.

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
        return "not checked: the hub is offline (HF_HUB_OFFLINE)"
    try:
        api = HfApi()
        info = api.model_info(name, revision=revision or None, timeout=20)
        api.auth_check(name)
    except GatedRepoError:
        return "gated: you have no access (request it on the model's page, and log in with a token)"
    except RevisionNotFoundError:
        return f"on the hub, but it has no revision {revision}"
    except RepositoryNotFoundError:
        raise ModelError(f"{name}: neither a folder nor a hub model that you can access") from None
    except HFValidationError:
        raise ModelError(f"{name}: neither a folder nor a hub id (owner/name)") from None
    except OfflineModeIsEnabled:
        return "not checked: the hub is offline"
    except Exception as error:
        # A network's own words may hold anything; only their kind is safe to print.
        return f"the hub cannot be reached ({type(error).__name__})"
    return f"on the hub, accessible (revision {str(info.sha)[:12]})"


def data(config: CheckConfig, tokenizer: Any = None) -> Iterator[str]:
    """Describes data files: layout, counts, lengths, and the first rows as training reads them.

    Args:
      config: `data`, `kind` and `rows` are read.
      tokenizer: turns rows into tokens; None counts characters and shows text.

    Raises:
      DataError: a file or row that is wrong, by file and line.
    """
    from jaxalign.data import load_dataset
    from jaxalign.data.sources import samples

    train, held = config.data.train, config.data.validation
    files = (*train, *held)
    chosen = [*samples(config.data), *(None for _ in held)] if tokenizer is None else [None] * len(files)
    kind: Kind | None = None if config.kind == "auto" else cast(Kind, config.kind)
    for path, sample in zip(files, chosen, strict=True):
        glance = Glance(path, config, kind)
        kind = kind or glance.kind
        if tokenizer is None:
            yield from glance.lines(config.rows, sample)
        else:
            yield f"data          {path}: format {glance.format}"
    if tokenizer is None:
        yield "              set --model or --tokenizer to see rows as tokens with their loss mask"
        return
    assert kind is not None
    # In a folder of its own, for training never asks for rows without limits.
    with tempfile.TemporaryDirectory(prefix="jaxalign-check-") as folder:
        # Without limits, so that the histogram shows what the limits would cut.
        unlimited = replace(
            config.data,
            train=train or held,
            validation=held if train else (),
            limit=config.data.limit if train else 0,
            weights=(),
            validation_fraction=0.0,
            max_length=2**30,
            max_prompt_length=0,
            cache=folder,
        )
        yield from _tokens(load_dataset(unlimited, kind, tokenizer, seed=0), kind, config, tokenizer)


def _tokens(dataset: Any, kind: Kind, config: CheckConfig, tokenizer: Any) -> Iterator[str]:
    """Counts, lengths and the first rows of a data set."""
    from jaxalign.data import chat_of
    from jaxalign.data.stream import Stream
    from jaxalign.data.table import lengths_of

    lengths = np.concatenate([lengths_of(dataset.train), lengths_of(dataset.validation)])
    longest = config.data.within().max_length
    limit = f"{int(np.sum(lengths > longest))} longer than data.max_length = {longest}"
    part = "the first window of the stream: " if isinstance(dataset.train, Stream) else ""
    yield f"  as {kind}: {part}{_counted(dataset.counts)}; {limit}"
    yield from _remarks(dataset.counts)
    yield from histogram(lengths, "tokens")
    chat = chat_of(config.data, tokenizer)
    ends = ", ".join(f"{tokenizer.convert_ids_to_tokens(i)!r} ({i})" for i in chat.stop_ids) or "nothing"
    written = "the tokenizer's chat template" if chat.template == "tokenizer" else chat.template
    yield f"  template: {written}; a completion ends with {ends}"
    for index in range(min(config.rows, len(dataset.train))):
        yield from shown(dataset.train[index], tokenizer)


class Glance:
    """A look at a file without a tokenizer.

    Args:
      path: the file.
      config: how it is read.
      kind: what its rows are taken for; None takes what the first row is.

    Raises:
      DataError: no row that can be used, or a row that is wrong, by file and line.

    Attributes:
      format: its layout.
      kind: what its rows are taken for.
    """

    format: str
    kind: Kind

    def __init__(self, path: str, config: CheckConfig, kind: Kind | None) -> None:
        from jaxalign.data.readers import reader_for, reading_of

        self._path, self._data = path, config.data
        reading = reading_of(config.data)
        for place, row in self._rows():
            if isinstance(row, DataError):
                if config.data.on_bad_row == "stop":
                    raise row
                continue
            reader = reader_for(path, place, row, reading, kind)
            self.format = reader.format_name
            try:
                self.kind = kind or kind_of(reader.read(place, row))
            except BadRow as error:
                if config.data.on_bad_row == "stop":
                    raise DataError(f"{place}: {error}") from None
                continue
            except Unusable:
                continue
            self._reader = reader_for(path, place, row, reading, self.kind)
            return
        raise DataError(f"{path}: no usable row")

    def lines(self, rows: int, sample: Sample | None = None) -> Iterator[str]:
        """Counts, lengths in characters, and the first rows as text; of a sample, where one is named."""
        from jaxalign.data import Counts

        counts, lengths, first = Counts(), [], []
        for place, row in self._rows(sample):
            counts.read += 1
            if row is None:
                counts.filtered["over data.limit"] += 1
                continue
            try:
                if isinstance(row, DataError):
                    raise row
                record = self._reader.read(place, row)
            except Unusable as reason:
                counts.filtered[str(reason)] += 1
                continue
            except (BadRow, DataError) as error:
                if self._data.on_bad_row == "stop":
                    raise DataError(
                        f"{place}: {error}" if isinstance(error, BadRow) else str(error)
                    ) from None
                counts.filtered["malformed line" if isinstance(error, DataError) else "bad row"] += 1
                continue
            counts.used += 1
            lengths.append(len(text_of(record)))
            if len(first) < rows:
                first.append(record)
        counts.unread.update(self._reader.unread)
        yield f"data          {self._path}: format {self.format}, {_counted(counts)}"
        yield from _remarks(counts)
        yield from histogram(np.asarray(lengths), "characters")
        for record in first:
            yield f"  {record.source}: {_short(text_of(record), 200)}"

    def _rows(self, sample: Sample | None = None) -> Iterator[tuple[str, Any]]:
        from jaxalign.data.files import chunks_of

        data = self._data
        for chunk in chunks_of(self._path, max_bytes=data.max_bytes, streaming=data.streaming):
            yield from chunk.rows(sample.chosen(chunk.start, chunk.size) if sample else None)


def kind_of(record: Any) -> Kind:
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
    parts = [getattr(record, "prompt", ""), getattr(record, "text", "")]
    parts += getattr(record, "candidates", getattr(record, "steps", ()))
    parts += [getattr(record, name, None) or "" for name in ("completion", "chosen", "rejected")]
    texts = [part if isinstance(part, str) else "\n".join(turn.content for turn in part) for part in parts]
    return "\n".join(text for text in texts if text)


def histogram(lengths: Sequence[int] | np.ndarray, unit: str, *, width: int = 40) -> Iterator[str]:
    """Rows by length, in powers of two, with the quantiles that a context is chosen by."""
    if not len(lengths):
        return
    order = np.sort(np.asarray(lengths))
    parts = {"shortest": 0.0, "half": 0.5, "90%": 0.9, "99%": 0.99, "longest": 1.0}
    marks = ", ".join(f"{name} {order[round(q * (len(order) - 1))]}" for name, q in parts.items())
    yield f"  length in {unit}: {marks}"
    powers, counted = np.unique(np.frexp(np.maximum(order, 1))[1], return_counts=True)
    bins = Counter(dict(zip(powers.tolist(), counted.tolist(), strict=True)))
    most = max(bins.values())
    for power in range(min(bins), max(bins) + 1):
        count = bins[power]
        bar = "#" * -(-width * count // most)
        yield f"  {2 ** (power - 1):>7d} to {2**power - 1:<7d} {count:>7d} {bar}".rstrip()


def shown(example: Any, tokenizer: Any, *, ids: int = 12, text: int = 160) -> Iterator[str]:
    """An example's rows as runs of tokens that are in the loss or masked."""
    rows = list(zip(example.rows, example.masks, strict=True))
    rows = rows or [(example.prompt_tokens, (False,) * len(example.prompt_tokens))]
    for number, (tokens, mask) in enumerate(rows, 1):
        yield f"  {example.source} row {number} of {len(rows)}: {len(tokens)} tokens, {sum(mask)} in the loss"
        start = 0
        for counts, run in itertools.groupby(mask):
            part = list(tokens[start : start + len(list(run))])
            start += len(part)
            numbers = " ".join(map(str, part[:ids])) + (" ..." if len(part) > ids else "")
            words = _short(tokenizer.decode(part), text)
            yield f"    {'loss' if counts else 'masked':6s} {len(part):5d}  {words}  [{numbers}]"


def _counted(counts: Any) -> str:
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(counts.filtered.items()))
    return f"{counts.read} rows read, {counts.used} used" + (f", filtered: {reasons}" if reasons else "")


def _remarks(counts: Any) -> Iterator[str]:
    """What the rows say that was not used, and how they were written, with the number of rows."""
    if counts.unread:
        columns = ", ".join(f"{name} ({count} rows)" for name, count in sorted(counts.unread.items()))
        yield f"  unused columns: {columns}"
    for note, count in sorted(counts.notes.items()):
        yield f"  {count} rows: {note}"


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
