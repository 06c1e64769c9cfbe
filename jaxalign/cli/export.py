"""`jaxalign export`: a checkpoint of any run as a Hugging Face folder or GGUF file, on disk or on the hub."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jaxalign.errors import ConfigError, UserError


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Which checkpoint to export, and where to.

    Attributes:
      run: the run folder; RUN@best, RUN@latest or RUN@1200 also selects the checkpoint.
      checkpoint: checkpoint to export: a step, best (by run.best_metric) or latest; empty uses the best if
        run.best_metric is set, else the latest.
      merge: for a LoRA run, write the whole model with the adapter merged, which every program can load; false writes
        only the adapter, as a PEFT folder.
      format: huggingface writes a Hugging Face folder; gguf writes a folder with model.gguf for llama.cpp, which is
        read back and, if llama-cpp-python is installed, must generate the model's tokens.
      dtype: dtype of the weights; empty uses the run's run.export_dtype, and auto the dtype of the initial model's
        files; q8_0 (8 bits) only with --format=gguf.
      output: folder to write; empty writes to exports/ in the run folder, once per checkpoint. With --format=gguf a
        name ending in .gguf writes only that file.
      base: the initial model, if it has moved since the run or was passed live from Python.
      push_to_hub: OWNER/NAME of a Hugging Face hub repository to upload the folder to, with the token from HF_TOKEN
        or `hf auth login`; empty uploads nothing.
      private: make the hub repository private if this upload creates it.
    """

    run: str = ""
    checkpoint: str = ""
    merge: bool = True
    format: Literal["huggingface", "gguf"] = "huggingface"
    dtype: Literal["", "auto", "float32", "bfloat16", "float16", "q8_0"] = ""
    output: str = ""
    base: str = ""
    push_to_hub: str = ""
    private: bool = True


def export(config: ExportConfig) -> Path:
    """Exports a checkpoint of a run as a Hugging Face folder or GGUF file, and prints its path.

    Args:
      config: see `ExportConfig`.

    Returns:
      The folder.

    Raises:
      UserError: no such run, checkpoint or base; or the hub refuses the upload.
    """
    if not config.run:
        raise ConfigError("expected the run: jaxalign export RUN")
    if config.push_to_hub:
        check_repository(config.push_to_hub)
        if config.output.endswith(".gguf"):
            raise ConfigError("--push-to-hub uploads a folder; name one with --output, or leave it out")
    if config.output.endswith(".gguf") and config.format != "gguf":
        raise ConfigError(f"--output={config.output}: the name of a GGUF file; add --format=gguf")
    import jax

    # Nothing is computed, and a run that is training needs the accelerator for itself.
    jax.config.update("jax_platforms", "cpu")
    from jaxalign.export.checkpoint_export import export_checkpoint
    from jaxalign.models.folders import checkpoint_named

    run, checkpoint = config.run, config.checkpoint
    if named := checkpoint_named(run):
        if checkpoint and checkpoint != named[1]:
            raise ConfigError(f"{run} and --checkpoint={checkpoint} name different checkpoints")
        run, checkpoint = named
    done = export_checkpoint(
        run,
        checkpoint,
        output=config.output,
        merge=config.merge,
        dtype=config.dtype,
        base=config.base,
        format=config.format,
    )
    print(f"step {done.step}: {done.folder}{'' if done.new else ' (exported before)'}")
    if config.push_to_hub:
        print(f"uploaded: {push(done.folder, config.push_to_hub, step=done.step, private=config.private)}")
    return done.folder


def check_repository(name: str) -> None:
    """A repository's name, before anything is written.

    Raises:
      ConfigError: it is no OWNER/NAME.
    """
    owner, slash, rest = name.partition("/")
    if not (owner and slash and rest) or "/" in rest:
        raise ConfigError(f"--push-to-hub={name}: expected OWNER/NAME")


def push(folder: Path, repository: str, *, step: int, private: bool) -> str:
    """Uploads a folder to the hub, without the record of where it lay here; returns the address of the commit.

    Raises:
      UserError: the hub cannot be reached, or refuses; in one line.
    """
    from huggingface_hub import HfApi

    from jaxalign.training.core.exports import RECORD_FILE

    api = HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            commit_message=f"Step {step}, exported by jaxalign",
            ignore_patterns=[f"**/{RECORD_FILE}", RECORD_FILE],
        )
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"--push-to-hub={repository}: the hub rejected the upload ({reason[:300]}); the folder is {folder}"
        ) from None
    return str(commit)
