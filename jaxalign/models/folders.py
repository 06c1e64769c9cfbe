"""Which folder holds the model that a path means: a run's export, one of its checkpoints, or the path itself."""

import importlib
import re
from pathlib import Path

from jaxalign.errors import ModelError
from jaxalign.remote import local, scheme

# What is not fetched of a model behind a URL: a run's checkpoints, and weights in formats that are not read.
NOT_OF_A_MODEL = ("checkpoints/*", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.gguf", "*.h5", "*.onnx")
WEIGHTS = ("*.safetensors", "*.msgpack")
# Makes a folder of a run's checkpoint. By name: it reads what trainers wrote, and so lies above models.
EXPORTER = "jaxalign.export.checkpoint_export"


def checkpoint_named(path: str) -> tuple[str, str] | None:
    """(run folder, checkpoint) of RUN@best, RUN@latest or RUN@1200; None of a path that is there, and of all others."""
    run, _, name = path.rpartition("@")
    if not run or Path(path).exists() or not re.fullmatch(r"best|latest|\d+", name):
        return None
    return run, name


def model_folder(path: str) -> str:
    """The folder of the model that a path means.

    Args:
      path: RUN@best, RUN@latest or RUN@1200 is a checkpoint of the run in the folder RUN, of which a model folder is
        made inside the run, once; RUN is the model that the run exported. Anything else stands for itself. A URL is
        fetched: its weights where they are read; of RUN@NAME the whole run but its exports.

    Raises:
      ModelError: a run folder that has exported nothing yet, or a checkpoint of what is no run.
      UserError: a checkpoint that is not there, or of which no model can be made.
    """
    if (named := checkpoint_named(path)) is not None:
        run, name = named
        place = local(run, ["export/*", "exports/*"]) if scheme(run) else run
        if not (Path(place) / "metadata.json").is_file():
            raise ModelError(f"{path}: {run} is not a run folder; expected RUN@{name} with a run folder")
        return importlib.import_module(EXPORTER).checkpoint_folder(place, name)
    if scheme(path):
        path = local(path, NOT_OF_A_MODEL + WEIGHTS)
    folder = Path(path)
    if (folder / "export" / "doctors.json").is_file():
        raise ModelError(
            f"{path}: this run has several doctors; name one as {path}/export/NAME, or all with --doctor={path}"
        )
    if (folder / "export").is_dir():
        return str(folder / "export")
    if (folder / "metadata.json").is_file() and not (folder / "config.json").is_file():
        raise ModelError(
            f"{path}: this run has no export/ yet; finish it with --resume, or use a checkpoint: {path}@latest"
        )
    return path
