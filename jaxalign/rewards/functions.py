"""Python reward functions and judges by name, `package.module:function` or `file.py:function`."""

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxalign.errors import ConfigError


def load_function(name: str, *, kind: str = "reward function") -> Callable[..., Any]:
    """The function that `name` names; `kind` says in messages what it is for.

    Raises:
      ConfigError: no such file, module or function; or the name has no colon.
    """
    where, colon, attribute = name.rpartition(":")
    if not colon:
        raise ConfigError(f"{kind} {name!r}: expected module:function or file.py:function")
    if where.endswith(".py"):
        path = Path(where)
        if not path.is_file():
            raise ConfigError(f"{kind} {name!r}: there is no file {where}")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    else:
        try:
            module = importlib.import_module(where)
        except ModuleNotFoundError as error:
            raise ConfigError(f"{kind} {name!r}: {error}") from None
    function = getattr(module, attribute, None)
    if not callable(function):
        raise ConfigError(f"{kind} {name!r}: {where} has no function {attribute}")
    return function
