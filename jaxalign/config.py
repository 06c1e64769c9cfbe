"""Reads YAML files and `--dotted.key=value` into frozen dataclasses, and writes them back.

A configuration is a frozen dataclass whose fields are plain values or further
dataclasses. This module reads one from a file and command-line overrides, checks
every key and type, and raises one-line errors that name the place. The meaning that
`--help` prints is the `Attributes:` section of each dataclass's docstring.
"""

import dataclasses
import importlib.resources
import json
import os
import re
import tempfile
import types
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, Union

import yaml

from jaxalign.config_values import (
    Loader,
    Mismatch,
    Text,
    coerce,
    is_null,
    nearest,
    parsed,
    type_name,
    typed_items,
)
from jaxalign.config_words import RENAMED_VALUES, our_key
from jaxalign.errors import ConfigError, UserError

T = TypeVar("T")


def parse(cls: type[T], config: str | Path | None = None, overrides: Sequence[str] = ()) -> T:
    """Parses a configuration from a YAML file and overrides; other keys keep their defaults.

    Args:
      cls: a dataclass of plain values and dataclasses.
      config: a path, or the name of a configuration shipped with the package; None for defaults only.
      overrides: `--dotted.key=value` (the dashes are optional; `--dotted.key value` can be two items). Later
        overrides win over earlier ones and over the file.

    Raises:
      ConfigError: an unknown key (with the nearest valid one), a key given twice in the file, a value of the wrong
        type, or one that the dataclass rejects with ValueError. The message is one line with file, line and key.
    """
    tree: dict[str, Any] = {}
    sources: dict[str, str] = {}
    if config is not None:
        path = find_config(config)
        tree = _read_yaml(path, sources)
    for key, text in split_overrides(overrides):
        _set(tree, key, text)
        for old in [name for name in sources if name == key or name.startswith(key + ".")]:
            del sources[old]
        sources[key] = "command line"
    return _build(cls, tree, "", _Sources(sources, str(config) if config is not None else None, cls))


def from_dict(cls: type[T], values: Mapping[str, Any]) -> T:
    """A configuration from nested plain values, as `to_dict` gives them; checked like a file.

    Raises:
      ConfigError: as `parse`.
    """
    return _build(cls, dict(values), "", _Sources({}, None, cls))


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as nested plain values (dict, list, str, int, float, bool, None)."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
        if isinstance(value, Mapping):
            return {str(k): plain(v) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(v) for v in value]
        return str(value) if isinstance(value, (str, Path)) else value

    return plain(config)


def save_yaml(config: Any, path: str | Path) -> None:
    """Writes all keys of a configuration to a YAML file that `parse` reads back.

    The file is written atomically.
    """
    path = Path(path)
    text = yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True, width=110)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def shipped_configs() -> dict[str, Path]:
    """Name -> file of each configuration in the package's `configs`."""
    folder = Path(str(importlib.resources.files("jaxalign"))) / "configs"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_config(config: str | Path) -> Path:
    """The file of a path or of a shipped name.

    Raises:
      ConfigError: neither; the message names the nearest shipped configuration.
    """
    path = Path(config)
    if path.is_file():
        return path
    shipped = shipped_configs()
    name = str(config).replace("-", "_")
    if name in shipped:
        return shipped[name]
    what = "is a folder, not a YAML file" if path.is_dir() else "no such file"
    raise ConfigError(
        f"--config {config}: {what}; {_nearest(str(config), list(shipped), 'shipped configurations')}"
    )


def split_overrides(overrides: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(dotted key, text) of each override.

    Raises:
      ConfigError: an item that is not `--key=value` or `--key value`.
    """
    items = iter(range(len(overrides)))
    for i in items:
        item = overrides[i]
        key, equals, value = item.partition("=")
        if not equals:
            following = overrides[i + 1] if i + 1 < len(overrides) else None
            if not item.startswith("--"):
                raise ConfigError(f"{item!r}: expected --dotted.key=value")
            if following is None or following.startswith("--"):
                raise ConfigError(f"{item}: expected a value, as in {item}=VALUE")
            value = overrides[next(items)]
        key = key.removeprefix("--").replace("-", "_")
        if not re.fullmatch(r"[A-Za-z_][\w]*(\.[\w]+)*", key):
            raise ConfigError(f"{item!r}: expected --dotted.key=value")
        yield key, value


@dataclasses.dataclass(frozen=True, kw_only=True)
class Key:
    """One key of a configuration.

    Attributes:
      name: dotted name.
      type: its type, for people.
      default: its default as YAML, or "required".
      meaning: its line in the docstring.
    """

    name: str
    type: str
    default: str
    meaning: str


def describe(cls: type, prefix: str = "") -> list[Key]:
    """Every key of a configuration with type, default and meaning, in order of the fields."""
    return [
        Key(
            name=name,
            type=type_name(hint),
            default="required" if default is dataclasses.MISSING else _one_line(default),
            meaning=meaning,
        )
        for name, hint, default, meaning in _keys(cls, prefix, None)
    ]


def defaults(cls: type) -> dict[str, Any]:
    """Dotted key -> default, a plain value, of every key of a configuration that has one."""
    return {
        name: to_dict(default)
        for name, _, default, _ in _keys(cls, "", None)
        if default is not dataclasses.MISSING
    }


def _keys(cls: type, prefix: str, base: Any) -> Iterator[tuple[str, Any, Any, str]]:
    """(dotted name, type, default or MISSING, meaning) of every key; defaults of `base` where it is given."""
    hints, meanings = typing.get_type_hints(cls), attribute_docs(cls)
    for f in _fields(cls):
        default = _default(f) if base is None else getattr(base, f.name)
        inner = _dataclass_of(hints[f.name])
        if inner is not None:
            yield from _keys(inner, f"{prefix}{f.name}.", default if isinstance(default, inner) else None)
            continue
        yield prefix + f.name, hints[f.name], default, meanings.get(f.name, "")


def is_list(cls: type, key: str) -> bool:
    """Whether a dotted key of a configuration takes a list of any length."""
    hint = next((hint for name, hint, _, _ in _keys(cls, "", None) if name == key), None)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    return origin in (list, Sequence) or (origin is tuple and args[-1:] == (Ellipsis,))


def listed(text: str) -> list[Any]:
    """The items of a list as it is typed: `[a, b]` are two, anything else is one.

    Raises:
      ConfigError: brackets that hold no YAML.
    """
    try:
        return typed_items(Text(text))
    except Mismatch:
        raise ConfigError(f"{text}: not valid YAML") from None


def attribute_docs(cls: type) -> dict[str, str]:
    """Field -> meaning, from the `Attributes:` section of the docstrings of a class and its bases."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        lines = (base.__dict__.get("__doc__") or "").expandtabs().splitlines()
        heads = [i for i, line in enumerate(lines) if line.strip() == "Attributes:"]
        if not heads:
            continue
        outer = len(lines[heads[0]]) - len(lines[heads[0]].lstrip())
        name, entry = None, outer + 4
        for line in lines[heads[0] + 1 :]:
            indent = len(line) - len(line.lstrip())
            if not line.strip():
                continue
            if indent <= outer:
                break
            match = re.match(r"\s*(\w+(?:, \w+)*)\s*(?:\([^)]*\))?:\s*(.*)$", line)
            if match and indent <= entry:
                name, entry = match.group(1), indent
                for one in name.split(", "):
                    found[one] = match.group(2)
            elif name is not None:
                for one in name.split(", "):
                    found[one] = f"{found[one]} {line.strip()}".strip()
    return found


# --- reading -----------------------------------------------------------------------------------


def _read_yaml(path: Path, sources: dict[str, str]) -> dict[str, Any]:
    """The tree of a file; `sources` gets "file:line" of every dotted key."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text: {error}") from None
    try:
        node = yaml.compose(text, Loader=Loader)
        if node is None:
            return {}
        if not isinstance(node, yaml.MappingNode):
            raise ConfigError(f"{path}: expected keys and values (a YAML mapping) at the top")
        _check_keys(node, str(path), "", sources)
        tree = yaml.load(text, Loader=Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark is not None else str(path)
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        raise ConfigError(f"{where}: not valid YAML: {problem}") from None
    return tree


def _check_keys(node: yaml.Node, file: str, prefix: str, sources: dict[str, str]) -> None:
    """Records where keys stand; refuses a key that stands twice, which YAML would let pass in silence."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _check_keys(item, file, prefix, {})
    if not isinstance(node, yaml.MappingNode):
        return
    seen: dict[str, int] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise ConfigError(f"{file}:{line}: a key must be one word")
        key = str(key_node.value)
        if key in seen:
            raise ConfigError(f"{file}:{line}: key {prefix + key} is given twice; first on line {seen[key]}")
        seen[key] = line
        sources[prefix + key] = f"{file}:{line}"
        _check_keys(value_node, file, f"{prefix}{key}.", sources)


def _set(tree: dict[str, Any], key: str, text: str) -> None:
    """Puts the text of an override into the tree; keys are checked when the tree is built."""
    *groups, last = key.split(".")
    for i, name in enumerate(groups):
        below = tree.setdefault(name, {})
        if not isinstance(below, dict):
            raise ConfigError(f"--{key}: {'.'.join(groups[: i + 1])} is a value, not a section")
        # A copy: the tree of a shipped file must not change under another reader.
        tree[name] = dict(below)
        tree = tree[name]
    tree[last] = Text(text)


@dataclasses.dataclass(frozen=True)
class _Sources:
    """Where each key was set, for messages."""

    by_key: Mapping[str, str]
    file: str | None
    root: type

    def of(self, key: str) -> str:
        """`file:line: key`, or `--key`, or `key`."""
        parts = key.split(".")
        for length in range(len(parts), 0, -1):
            source = self.by_key.get(".".join(parts[:length]))
            if source == "command line":
                return f"--{key}"
            if source is not None:
                return f"{source}: {key}"
        return key

    def of_group(self, key: str) -> str:
        """Prefix for an error about a group of keys: the file, if one was read."""
        return f"{self.file}: " if self.file else ""


# --- building ----------------------------------------------------------------------------------


def _build(cls: type[T], tree: Any, prefix: str, sources: _Sources, base: Any = None) -> T:
    """An instance of a dataclass from nested values; what they leave out comes from `base`."""
    if isinstance(tree, Text):
        tree = _load_text(tree, prefix.rstrip("."), sources)
    if tree is None:
        tree = {}
    if not isinstance(tree, Mapping):
        raise ConfigError(f"{sources.of(prefix.rstrip('.'))}: expected keys and values, got {_shown(tree)}")
    fields = {f.name: f for f in _fields(cls)}
    hints = typing.get_type_hints(cls)
    for name in tree:
        if name not in fields:
            raise ConfigError(
                f"{sources.of(prefix + str(name))}: unknown key; "
                f"{_near_key(str(name), tree[name], cls, prefix, sources.root)}"
            )
    values: dict[str, Any] = {}
    for name, f in fields.items():
        key, hint = prefix + name, hints[name]
        default = _default(f) if base is None else getattr(base, name)
        inner = _dataclass_of(hint)
        given = name in tree
        if inner is not None and given and _optional(hint) and is_null(tree[name]):
            values[name] = None
        elif inner is not None and (given or default is dataclasses.MISSING):
            start = default if isinstance(default, inner) else None
            values[name] = _build(inner, tree.get(name), key + ".", sources, start)
        elif given:
            values[name] = _convert(tree[name], hint, key, sources)
        elif default is dataclasses.MISSING:
            raise ConfigError(
                f"{sources.of_group(key)}{key} is required ({type_name(hint)}); set it with --{key}=VALUE"
            )
        else:
            values[name] = default
    try:
        return cls(**values)
    except UserError:
        raise
    except ValueError as error:
        group = prefix.rstrip(".")
        message = " ".join(str(error).split())
        named = not group or group.rsplit(".", 1)[-1] in message
        raise ConfigError(sources.of_group(group) + (message if named else f"{group}: {message}")) from None


def _convert(value: Any, hint: Any, key: str, sources: _Sources) -> Any:
    """A value as its field's type.

    Raises:
      ConfigError: it is not of that type.
    """
    try:
        return coerce(value, hint)
    except Mismatch as error:
        detail = f" ({error})" if str(error) else ""
        now = RENAMED_VALUES.get(str(value), "")
        if now and now in type_name(hint):
            detail = f", which is named {now} now"
        raise ConfigError(
            f"{sources.of(key)}: expected {type_name(hint)}, got {_shown(value)}{detail}"
        ) from None


def _load_text(text: Text, key: str, sources: _Sources) -> Any:
    try:
        return parsed(text)
    except Mismatch as error:
        raise ConfigError(
            f"{sources.of(key)}: expected keys and values, got {_shown(text)} ({error})"
        ) from None


# --- small helpers -----------------------------------------------------------------------------


def _fields(cls: type) -> list[dataclasses.Field]:
    return [f for f in dataclasses.fields(cls) if f.init]


def _default(f: dataclasses.Field) -> Any:
    if f.default is not dataclasses.MISSING:
        return f.default
    if f.default_factory is not dataclasses.MISSING:
        try:
            return f.default_factory()
        except TypeError:
            return dataclasses.MISSING  # a group with a required key: built from what is given
    return dataclasses.MISSING


def _dataclass_of(hint: Any) -> type | None:
    """The dataclass of `C` or `C | None`."""
    candidates = typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)
    found = [c for c in candidates if dataclasses.is_dataclass(c) and isinstance(c, type)]
    return found[0] if len(found) == 1 else None


def _optional(hint: Any) -> bool:
    return type(None) in typing.get_args(hint)


def _near_key(name: str, value: Any, cls: type, prefix: str, root: type) -> str:
    """What to say of an unknown key: what its class says of keys that it goes WITHOUT, else which key may be meant.

    Of a group that another program writes, our key for each of its keys.
    """
    if (reason := getattr(cls, "WITHOUT", {}).get(name)) is not None:
        return reason
    here, every = [f.name for f in _fields(cls)], {key.name for key in describe(root)}
    if (ours := our_key(name, every, prefix)) is not None:
        return f"here it is {ours}"
    close = nearest(name, here)
    if isinstance(value, Mapping):
        near = f"{prefix}{close}." if close else ""
        inside = {
            str(key): our_key(str(key), every, near) or _elsewhere(str(key), every, near) for key in value
        }
        if said := [f"{key} is {ours}" for key, ours in inside.items() if ours]:
            unknown = [key for key, ours in inside.items() if not ours]
            return f"here {', '.join(said)}" + (f"; nothing is like {', '.join(unknown)}" if unknown else "")
    if close is not None:
        return f"did you mean {prefix}{close}?"
    if elsewhere := _elsewhere(name, every, prefix):
        return f"did you mean {elsewhere}?"
    return f"valid keys {'of ' + prefix.rstrip('.') if prefix else 'at the top'}: {', '.join(here)}"


def _elsewhere(name: str, every: Collection[str], prefix: str) -> str | None:
    """A key of this name in another section: the right word in the wrong section is the commonest slip."""
    found = [key for key in every if key.rsplit(".", 1)[-1] == name]
    return min(found, key=lambda key: (not key.startswith(prefix), key.count("."), key), default=None)


def _nearest(name: str, valid: Sequence[str], what: str) -> str:
    close = nearest(name, valid)
    if close is not None:
        return f"did you mean {close}?"
    return f"{what}: {', '.join(valid) or 'none'}"


def _shown(value: Any) -> str:
    text = repr(str(value)) if isinstance(value, str) else _as_yaml(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _one_line(value: Any) -> str:
    text = _as_yaml(value)
    return text if text.isprintable() else json.dumps(to_dict(value))


def _as_yaml(value: Any) -> str:
    plain = to_dict(value)
    text = yaml.safe_dump(plain, default_flow_style=True, allow_unicode=True, width=10_000)
    return text.removesuffix("...\n").strip()
