"""Data sets of the `datasets` library: saved folders, folders of data files, and hub ids."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxalign.data.chunks import Chunk, Parsed, Tabled, plain_row
from jaxalign.errors import DataError

_HUB = re.compile(
    r"(?P<where>[\w.-]+/[\w.-]+)(:(?P<configuration>[^@#]+))?(@(?P<revision>[^#]+))?(#(?P<split>.+))?"
)
_SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")


@dataclass(frozen=True)
class Name:
    """What a path says of a data set; empty where it says nothing."""

    where: str
    configuration: str = ""
    revision: str = ""
    split: str = ""

    @property
    def folder(self) -> bool:
        """Whether it is a folder here."""
        return Path(self.where).is_dir()


def named_dataset(path: str) -> Name | None:
    """folder, folder#split or owner/name:configuration@revision#split; None where the path is none of them."""
    if Path(path).is_dir():
        return Name(path)
    where, _, split = path.rpartition("#") if "#" in path else (path, "", "")
    if Path(where).is_dir():
        return Name(where, split=split)
    before, _, configuration = where.rpartition(":")
    if before and Path(before).is_dir():
        return Name(before, configuration, split=split)
    known = where.removesuffix(".gz").endswith(_SUFFIXES)
    found = None if known or path.startswith((".", "/", "~")) else _HUB.fullmatch(path)
    return Name(**{name: value or "" for name, value in found.groupdict().items()}) if found else None


def is_hub_id(path: str) -> bool:
    """Whether the path names a data set of the hub."""
    name = named_dataset(path)
    return name is not None and not name.folder and not Path(path).is_file()


def open_dataset(path: str, name: Name, *, streaming: bool = False) -> Any:
    """The `datasets.Dataset` of a name (or its iterable form).

    Raises:
      DataError: no such data set, configuration or split; the line says which there are, where that is known.
    """
    if name.folder and not name.configuration and _is_saved(Path(name.where)):
        return _saved(Path(name.where), name.split)
    import datasets

    if name.folder and not any(Path(name.where).rglob("*.*")):
        raise DataError(f"{name.where}: a folder without data; expected one saved by datasets.save_to_disk")
    try:
        return datasets.load_dataset(
            name.where,
            name.configuration or None,
            split=name.split or "train",
            revision=name.revision or None,
            streaming=streaming,
        )
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        if name.folder:
            said = "not a folder saved by datasets.save_to_disk, nor one of data files"
        else:
            said = "there is no such file, and the hub did not give it"
        raise DataError(f"{path}: {said}: {lines[0]}") from None


def _is_saved(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("state.json", "dataset_dict.json"))


def _saved(folder: Path, split: str) -> Any:
    import datasets

    try:
        data: Any = datasets.load_from_disk(str(folder))
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{folder}: not a folder saved by datasets.save_to_disk ({reason})") from None
    if isinstance(data, dict):
        split = split or ("train" if len(data) > 1 else next(iter(data)))
        if split not in data:
            raise DataError(f"{folder}: no split {split!r}; name one as {folder}#split: {', '.join(data)}")
        return data[split]
    if split:
        raise DataError(f"{folder}: the folder has no splits, so #{split} names none")
    return data


def chunks_of_dataset(path: str, name: Name, most_rows: int, *, streaming: bool = False) -> Iterator[Chunk]:
    """The pieces of a data set, in order; a stream's with the rows that are parsed already."""
    data = open_dataset(path, name, streaming=streaming)
    start = 0
    if streaming and not hasattr(data, "__len__"):
        for batch in data.iter(batch_size=most_rows):
            names = list(batch)
            rows = [dict(zip(names, values, strict=True)) for values in zip(*batch.values(), strict=True)]
            yield Parsed(
                path, start, [(f"row {start + i + 1}", plain_row(row)) for i, row in enumerate(rows)]
            )
            start += len(rows)
    else:
        # As Arrow has them: nothing is decoded, images neither.
        tables = data.with_format("arrow")
        for start in range(0, len(data), most_rows):
            yield Tabled(path, start, tables[start : start + most_rows])
        start = len(data)
    if not start:
        raise DataError(f"{path}: the data set has no rows")
