"""Python reward functions and judges by name, `package.module:function` or `file.py:function`."""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from jaxalign.errors import ConfigError
from jaxalign.rewards.user_code import user_code

# By path: what a file held when it was loaded, and its module. Two functions of a file share one.
_LOADED: dict[Path, tuple[bytes, ModuleType]] = {}


def load_function(name: str, *, kind: str = "reward function") -> Callable[..., Any]:
    """Loads the function `name`; `kind` describes it in messages.

    A file runs as a module that can import from its folder, like a script. It runs once for all its functions, and
    again when it has changed.

    Raises:
      ConfigError: no such file, module or function; or the name has no colon.
      UserCodeError: the file or module raised.
    """
    where, colon, attribute = name.rpartition(":")
    if not colon:
        raise ConfigError(f"{kind} {name!r}: expected module:function or file.py:function")
    if where.endswith(".py"):
        path = Path(where)
        if not path.is_file():
            raise ConfigError(f"{kind} {name!r}: no such file {where}")
        with user_code(f"{kind} {name!r}"):
            module = _run_file(path.resolve())
    else:
        with user_code(f"{kind} {name!r}"):
            try:
                module = importlib.import_module(where)
            except ModuleNotFoundError as error:
                beside = Path(f"{where.replace('.', '/')}.py")
                hint = f"; the file is {beside}:{attribute}" if beside.is_file() else ""
                raise ConfigError(f"{kind} {name!r}: {error}{hint}") from None
    function = getattr(module, attribute, None)
    if not callable(function):
        raise ConfigError(f"{kind} {name!r}: {where} has no function {attribute}")
    return function


def _run_file(path: Path) -> ModuleType:
    """The module of a file; it stands in `sys.modules`, where dataclasses and pickle look for it."""
    source = path.read_bytes()
    if path in _LOADED and _LOADED[path][0] == source:
        return _LOADED[path][1]
    _open_folder(path.parent)
    name = _free_name(path)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(name)
    sys.modules[name] = module
    try:
        # Compiled here: Python's own loader would keep a `.pyc`, which a change within the second leaves as it is.
        exec(compile(source, path, "exec"), vars(module))
    except BaseException:
        del sys.modules[name]
        if before is not None:
            sys.modules[name] = before
        raise
    _LOADED[path] = source, module
    return module


def _free_name(path: Path) -> str:
    """The file's own name, which a child process can import, or another one where that is somebody else's."""
    held = sys.modules.get(path.stem)
    if path.stem not in sys.stdlib_module_names and (held is None or _file_of(held) == path):
        return path.stem
    return f"{path.stem}_of_{abs(hash(path)):x}"


def _open_folder(folder: Path) -> None:
    """Makes what stands in a folder importable, before what other files' folders hold by the same names."""
    others = {path.parent for path in _LOADED} - {folder}
    for name in [p.stem for p in folder.iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file()]:
        held = sys.modules.get(name)
        if held is not None and (file := _file_of(held)) is not None and others & set(file.parents[:2]):
            # The modules that imported it keep it.
            del sys.modules[name]
    if str(folder) in sys.path:
        sys.path.remove(str(folder))
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()


def _file_of(module: ModuleType) -> Path | None:
    file = getattr(module, "__file__", None)
    return Path(file).resolve() if file else None
