"""Which folder holds the model that a path means."""

from pathlib import Path

from jaxalign.errors import ModelError


def model_folder(path: str) -> str:
    """A run folder stands for the model it exported; anything else for itself.

    Raises:
      ModelError: a run folder that has exported nothing yet.
    """
    folder = Path(path)
    if (folder / "export").is_dir():
        return str(folder / "export")
    if (folder / "metadata.json").is_file() and not (folder / "config.json").is_file():
        raise ModelError(f"{path}: this run has no export/ folder yet; finish it, or go on with --resume")
    return path
