"""Whether a judge is the model that it judges. Models favour what they wrote themselves (arXiv:2404.13076)."""

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

PORTS = {"http": 80, "https": 443}
LOOPBACK = {"localhost", "127.0.0.1", "::1", "0.0.0.0"}


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """Where a model comes from: a folder or hub id, or an endpoint.

    Attributes:
      path: a folder, or owner/name of the hub; empty for an endpoint.
      base_url, model: of an endpoint; empty for a path.
    """

    path: str = ""
    base_url: str = ""
    model: str = ""

    def __post_init__(self) -> None:
        if bool(self.path) == bool(self.base_url) or bool(self.base_url) != bool(self.model):
            raise ValueError("expected either a path, or base_url and model")


def same_model(one: ModelSource, other: ModelSource) -> bool:
    """Whether two sources are known to be one model: the same folder, hub id, or name at the same endpoint.

    A server names a model by the path that it was started with, so a path is also the endpoint's model of that name.
    Copies of a folder, and two names for one model, are not seen.
    """
    if one.base_url and other.base_url and _address(one.base_url) != _address(other.base_url):
        return False
    return _place(one.path or one.model) == _place(other.path or other.model)


def _place(name: str) -> str:
    """A folder's own path, whatever leads there; a name that is no folder as it is."""
    path = Path(name).expanduser()
    return os.path.realpath(path) if path.exists() else name.strip("/")


def _address(base_url: str) -> tuple[str, int | None, str]:
    """Host, port and path: what two spellings of an address have in common. The scheme decides the port alone."""
    parts = urlsplit(base_url)
    host = (parts.hostname or "").rstrip(".")
    port = parts.port or PORTS.get(parts.scheme)
    return "localhost" if host in LOOPBACK else host, port, parts.path.rstrip("/").removesuffix("/v1")
