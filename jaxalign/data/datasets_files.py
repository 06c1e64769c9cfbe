"""Data sets of the `datasets` library: saved folders, folders of data files, and hub ids."""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxalign.data.chunks import Chunk, Parsed, Tabled, plain_row, rows_at_once
from jaxalign.errors import DataError
from jaxalign.remote import local, scheme

_HUB = re.compile(
    r"(?P<where>[\w.-]+/[\w.-]+)(:(?P<configuration>[^@#]+))?(@(?P<revision>[^#]+))?(#(?P<split>.+))?"
)
_SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
_NOT_SAVED = "not a folder saved by datasets.save_to_disk"
# What of a builder's settings says which files there are, and not how they are read.
_OF_FILES = ("name", "version", "data_dir", "data_files", "description")
# Files that `datasets` writes beside the data, and that it leaves out.
_ABOUT = ("config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json")


@dataclass(frozen=True)
class Name:
    """The parts of a data set's path; empty parts are not given."""

    where: str
    configuration: str = ""
    revision: str = ""
    split: str = ""

    @property
    def folder(self) -> bool:
        """Whether it is a folder here."""
        return Path(self.where).is_dir()


def here(path: str) -> str:
    """The path on this host for a URL (URL#split, of a folder), which is fetched; any other as it is.

    Raises:
      RemoteError: see `remote.local`.
    """
    if not scheme(path):
        return path
    url, mark, split = path.partition("#")
    return local(url) + mark + split


def named_dataset(path: str) -> Name | None:
    """folder, folder#split or owner/name:configuration@revision#split; None where the path is none of them."""
    path = here(path)
    if Path(path).is_dir():
        return Name(path)
    where, _, split = path.rpartition("#") if "#" in path else (path, "", "")
    if Path(where).is_dir():
        return Name(where, split=split)
    before, _, configuration = where.rpartition(":")
    if before and Path(before).is_dir():
        return Name(before, configuration, split=split)
    known = where.removesuffix(".gz").endswith(_SUFFIXES)
    match = None if known or path.startswith((".", "/", "~")) else _HUB.fullmatch(path)
    return Name(**{name: value or "" for name, value in match.groupdict().items()}) if match else None


def is_hub_id(path: str) -> bool:
    """Whether the path names a data set of the hub."""
    name = named_dataset(path)
    return name is not None and not name.folder and not Path(here(path)).is_file()


def open_dataset(path: str, name: Name, *, streaming: bool = False) -> Any:
    """The `datasets.Dataset` of a saved folder or a hub id (or its iterable form).

    Raises:
      DataError: no such data set, configuration or split; the line says which there are, where that is known.
    """
    import datasets

    if name.folder:
        try:
            return datasets.load_from_disk(str(_saved(name)))
        except DataError:
            raise
        except Exception as error:
            raise DataError(f"{path}: {_NOT_SAVED} ({_first_line(error)})") from None
    try:
        return datasets.load_dataset(
            name.where,
            name.configuration or None,
            split=name.split or "train",
            revision=name.revision or None,
            streaming=streaming,
        )
    except Exception as error:
        said = "there is no such file, and the hub did not give it"
        raise DataError(f"{path}: {said}: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def is_saved(name: Name) -> bool:
    """Whether it is a folder that `datasets` saved, and not one of data files."""
    files = (Path(name.where) / file for file in ("state.json", "dataset_dict.json"))
    return name.folder and not name.configuration and any(file.is_file() for file in files)


def _saved(name: Name) -> Path:
    """The folder of one split of a saved data set."""
    folder, split = Path(name.where), name.split
    if (folder / "state.json").is_file():
        if split:
            raise DataError(f"{folder}: the folder has no splits, so #{split} cannot be selected")
        return folder
    try:
        splits = [str(split) for split in json.loads((folder / "dataset_dict.json").read_text())["splits"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder}: {_NOT_SAVED} ({_first_line(error)})") from None
    split = split or (splits[0] if len(splits) == 1 else "train")
    if split not in splits or not (folder / split).is_dir():
        raise DataError(f"{folder}: no split {split!r}; name one as {folder}#split: {', '.join(splits)}")
    return folder / split


def files_of_folder(path: str, name: Name) -> dict[str, Path]:
    """The files that a split of a folder consists of, by their names in it.

    Raises:
      DataError: no such split; no data; data or settings that would not be read.
    """
    folder = Path(name.where)
    if is_saved(name):
        home = _saved(name)
        # `datasets` keeps what it computes beside the data.
        return {
            file.name: file
            for file in sorted(home.iterdir())
            if file.is_file() and not file.name.startswith(("cache-", "tmp"))
        }
    import datasets

    try:
        config: Any = datasets.load_dataset_builder(name.where, name.configuration or None).config
    except Exception as error:
        raise DataError(f"{path}: {_NOT_SAVED}, nor one of data files ({_first_line(error)})") from None
    base = folder.resolve()
    splits = {
        str(split): {os.path.relpath(file, base): Path(file) for file in files}
        for split, files in config.data_files.items()
    }
    split = name.split or "train"
    if split not in splits:
        raise DataError(f"{path}: no split {split!r}; name one as {folder}#split: {', '.join(splits)}")
    plain = type(config)(data_files=config.data_files)
    said = [
        key for key in vars(plain) if key not in _OF_FILES and getattr(config, key) != getattr(plain, key)
    ]
    if said:
        raise DataError(
            f"{path}: its README sets {', '.join(said)}, which is not supported; name its files one by one"
        )
    left = _data_files(base) - {of for files in splits.values() for of in files}
    readme = folder / "README.md"
    if left and not (readme.is_file() and "data_files" in readme.read_text(errors="replace")):
        raise DataError(
            f"{path}: {min(left)} belongs to no split ({', '.join(splits)}); name the files one by one"
        )
    return splits[split]


def _data_files(folder: Path) -> set[str]:
    """Names of files in a folder that look as if they held rows."""
    files = (file.relative_to(folder) for file in folder.rglob("*") if file.is_file())
    return {
        str(file)
        for file in files
        if file.name.removesuffix(".gz").endswith(_SUFFIXES)
        and file.name not in _ABOUT
        and not any(part.startswith((".", "__")) for part in file.parts)
    }


def chunks_of_dataset(
    path: str, name: Name, most_rows: int, most_bytes: int, *, streaming: bool = False
) -> Iterator[Chunk]:
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
        each = rows_at_once(len(data), data.data.nbytes, most_rows, most_bytes)
        for start in range(0, len(data), each):
            yield Tabled(path, start, tables[start : start + each])
        start = len(data)
    if not start:
        raise DataError(f"{path}: the data set has no rows")
