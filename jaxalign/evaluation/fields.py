"""Objects of JSON files of our own, whose fields are checked."""

from collections.abc import Callable, Mapping
from typing import Any

from jaxalign.errors import DataError

_NEEDED: Any = object()


class Fields:
    """An object of JSON whose fields are checked; null is the same as nothing."""

    def __init__(self, place: str, fields: Any) -> None:
        if not isinstance(fields, Mapping):
            raise DataError(f"{place}: expected an object, got {told(fields)}")
        self.place, self.fields = place, fields

    def text(self, name: str, default: Any = _NEEDED) -> Any:
        """A text, the default where there is none."""
        return self._checked(name, default, "a text", _is_text)

    def whole(self, name: str) -> int:
        """A whole number."""
        return self._checked(name, _NEEDED, "a whole number", _is_whole)

    def number(self, name: str, default: Any = _NEEDED) -> Any:
        """A number, which may be NaN; the default where there is none."""
        value = self._checked(name, default, "a number", _is_number)
        return value if value is default else float(value)

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of texts, empty where there is none."""
        return tuple(self._checked(name, (), "a list of texts", _all(_is_text)))

    def numbers(self, name: str) -> tuple[float, ...]:
        """A list of numbers, empty where there is none."""
        return tuple(map(float, self._checked(name, (), "a list of numbers", _all(_is_number))))

    def wholes(self, name: str) -> tuple[int, ...]:
        """A list of whole numbers, empty where there is none."""
        return tuple(self._checked(name, (), "a list of whole numbers", _all(_is_whole)))

    def object(self, name: str, default: Any = _NEEDED) -> "Fields":
        """An object, the default where there is none."""
        value = self._checked(name, default, "an object", lambda value: isinstance(value, Mapping))
        return Fields(f"{self.place}: {name}", value)

    def _checked(self, name: str, default: Any, expected: str, good: Callable[[Any], bool]) -> Any:
        value = self.fields.get(name)
        if value is None and default is not _NEEDED:
            return default
        if not good(value):
            raise DataError(f"{self.place}: expected {expected} in {name!r}, got {told(value)}")
        return value


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    # JSON has no names for these: `runs.records` writes them as text.
    return _is_whole(value) or isinstance(value, float) or value in ("nan", "inf", "-inf")


def _all(good: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(good, value))


def told(value: Any) -> str:
    """A value as messages show it."""
    return "nothing" if value is None else f"{value!r:.60}"
