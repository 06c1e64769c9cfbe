"""One of several models that a run trains at once, with the interface of a `Run`."""

from typing import Any

from jaxalign.runs.run import Run


class RunPart(Run):
    """A run whose facts stand under `metadata.json: dimensions.NAME` and whose lines begin with the name.

    Args:
      run: the open run.
      name: of the dimension.
    """

    def __init__(self, run: Run, name: str) -> None:
        self.__dict__.update(vars(run))
        self._whole, self._name = run, name

    def metadata(self) -> dict[str, Any]:
        """What metadata.json holds, the part's own facts in place of the run's."""
        return metadata_of(self._whole.metadata(), self._name)

    def add_metadata(self, **values: Any) -> None:
        """Adds facts of the part."""
        parts = self._whole.metadata().get("dimensions", {})
        own = parts.get(self._name, {}) | values
        self._whole.add_metadata(dimensions=parts | {self._name: own})

    def info(self, message: str) -> None:
        """As of a `Run`, the name before it."""
        self._whole.info(f"{self._name}: {message}")

    def note(self, message: str) -> None:
        """As of a `Run`, the name before it."""
        self._whole.note(f"{self._name}: {message}")

    def tell(self, part: str, message: str) -> None:
        """As of a `Run`, the name with it."""
        self._whole.tell(f"{part} ({self._name})", message)

    def warn(self, message: str) -> None:
        """As of a `Run`, the name before it."""
        self._whole.warn(f"{self._name}: {message}")


def metadata_of(metadata: dict[str, Any], name: str) -> dict[str, Any]:
    """A run's metadata with the facts of one of its dimensions in place of the run's."""
    return metadata | metadata.get("dimensions", {}).get(name, {})
