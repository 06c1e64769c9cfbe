"""Converts text and YAML scalars to the types of a configuration's fields."""

import difflib
import os
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union

import yaml


class Text(str):
    """A value typed on the command line: its field's type decides what it means."""


class Loader(yaml.SafeLoader):
    """YAML with the scalars of YAML 1.2: `no`, `off`, dates and `10:15` are text, `1e-4` is a number."""


Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern)
        for tag, pattern in resolvers
        if not tag.endswith((":bool", ":timestamp", ":float", ":int"))
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"(?i:true|false)$"), list("tTfF"))
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"(?:[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int",
    re.compile(r"[-+]?(?:0b[01_]+|0[0-7_]+|0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)$"),
    list("-+0123456789"),
)


def nearest(name: str, valid: Sequence[str]) -> str | None:
    """The valid name most like `name`, if any is like it."""
    found = difflib.get_close_matches(name, valid, n=1, cutoff=0.55)
    return found[0] if found else None


def type_name(hint: Any) -> str:
    """A type in words:  `text or null`, `a | b`, `list of int`."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return " | ".join(str(a) for a in args)
    if origin in (Union, types.UnionType):
        return " or ".join(type_name(a) for a in args)
    if origin in (tuple, list, Sequence):
        if origin is tuple and not (len(args) == 2 and args[1] is Ellipsis):
            return "list of " + ", ".join(type_name(a) for a in args)
        return f"list of {type_name(args[0])}" if args else "list"
    if origin in (dict, Mapping) or hint in (dict, Mapping):
        return f"mapping of {type_name(args[0])} to {type_name(args[1])}" if args else "mapping"
    if origin is typing.Annotated:
        return type_name(args[0])
    names = {str: "text", type(None): "null", Any: "any", Path: "path"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))


class Mismatch(Exception):
    """A value does not have the expected type; the text adds what the type's name does not say."""


def coerce(value: Any, hint: Any) -> Any:
    """A value as a type: None, bool, int, float, str, Path, Any, Literal, unions, lists, tuples, mappings.

    Raises:
      Mismatch: it is not of that type.
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return coerce(value, args[0])
    if origin in (Union, types.UnionType):
        return _coerce_union(value, args)
    if origin is Literal:
        for option in args:
            if value == option and isinstance(value, bool) == isinstance(option, bool):
                return option
            if isinstance(value, Text) and str(option) == value:
                return option
        close = nearest(str(value), [str(a) for a in args])
        raise Mismatch(f"did you mean {close}?" if close else "")
    if origin in (tuple, list, Sequence) or hint in (tuple, list):
        return _coerce_sequence(value, hint, origin or hint, args)
    if origin in (dict, Mapping) or hint in (dict, Mapping):
        value = parsed(value)
        if value is None:
            value = {}
        if not isinstance(value, Mapping):
            raise Mismatch
        of_key, of_value = args or (Any, Any)
        return {coerce(k, of_key): coerce(v, of_value) for k, v in value.items()}
    return _coerce_scalar(value, hint)


def is_null(value: Any) -> bool:
    """None, or its YAML spelling typed on the command line."""
    return value is None or (isinstance(value, Text) and value in ("null", "~"))


def _coerce_union(value: Any, options: tuple[Any, ...]) -> Any:
    if type(None) in options and is_null(value):
        return None
    # Text last: every text typed on the command line would fit it.
    for option in sorted(options, key=lambda o: o is str):
        if option is type(None):
            continue
        try:
            return coerce(value, option)
        except Mismatch:
            continue
    raise Mismatch


def _coerce_sequence(value: Any, hint: Any, origin: Any, args: tuple[Any, ...]) -> Any:
    make = list if origin is list else tuple
    if isinstance(value, Text):
        value = typed_items(value)
    elif isinstance(value, str):
        value = [value]  # one file where a list of files is meant
    if not isinstance(value, (list, tuple)):
        raise Mismatch
    fixed = make is tuple and args and not (len(args) == 2 and args[1] is Ellipsis)
    if fixed:
        if len(value) != len(args):
            raise Mismatch(f"{len(args)} values, not {len(value)}")
        return tuple(coerce(v, a) for v, a in zip(value, args, strict=True))
    of_item = args[0] if args else Any
    return make(coerce(v, of_item) for v in value)


def _coerce_scalar(value: Any, hint: Any) -> Any:
    if hint is str:
        if not isinstance(value, str):
            raise Mismatch("put it in quotes" if isinstance(value, (int, float)) else "")
        return str(value)
    if hint is Path:
        if not isinstance(value, (str, Path)):
            raise Mismatch
        return Path(value)
    value = parsed(value)
    if hint is Any:
        return {k: coerce(v, Any) for k, v in value.items()} if isinstance(value, dict) else value
    if hint is type(None):
        if value is not None:
            raise Mismatch
        return None
    if hint is bool:
        if not isinstance(value, bool):
            raise Mismatch("true or false")
        return value
    if hint in (int, float):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
            raise Mismatch
        if hint is int and isinstance(value, float) and not value.is_integer():
            raise Mismatch("a whole number")
        return hint(value)
    if isinstance(hint, type) and isinstance(value, hint):
        return value
    raise Mismatch


def typed_items(text: Text) -> list[Any]:
    """The items of a list as it is typed, each still text: `[1, no]` are two words where words are wanted.

    Anything else is one item (`[INST] hello`), and nothing is none.

    Raises:
      Mismatch: brackets that hold no YAML.
    """
    if not (text.strip().startswith("[") and text.strip().endswith("]")):
        return [text] if text else []

    def typed(value: Any) -> Any:
        if isinstance(value, list):
            return [typed(v) for v in value]
        if isinstance(value, dict):
            return {k: typed(v) for k, v in value.items()}
        return Text(value)

    try:
        return typed(yaml.load(text, Loader=yaml.BaseLoader))
    except yaml.YAMLError:
        raise Mismatch("not valid YAML") from None


def parsed(value: Any) -> Any:
    """Text from the command line as YAML would read it; anything else as it is."""
    if not isinstance(value, Text):
        return value
    try:
        return yaml.load(value, Loader=Loader)
    except yaml.YAMLError:
        raise Mismatch("not valid YAML") from None


def as_tuples(config: Any, *names: str) -> None:
    """In `__post_init__`: one value, a list or paths, as Python calls give them, become tuples of plain values."""
    for name in names:
        value = getattr(config, name)
        listed = value if isinstance(value, (tuple, list)) else (value,)
        plain = tuple(os.fspath(item) if isinstance(item, os.PathLike) else item for item in listed)
        object.__setattr__(config, name, plain)
