"""`jaxalign export`: a checkpoint of any run as a folder that others load, here or on the hub."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jaxalign.errors import ConfigError, UserError


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """A checkpoint of a run as a folder.

    Attributes:
      run: the run folder; RUN@best, RUN@latest and RUN@1200 name the checkpoint too.
      checkpoint: a step, best (by the run's run.best_metric) or latest; empty takes the best where run.best_metric is
        set, else the latest.
      merge: a run with LoRA: write the whole model with the adapter merged, which every program loads; false writes the
        adapter alone, as a PEFT folder.
      dtype: dtype of the weights; empty takes the run's run.export_dtype, whose auto is that of the files which the run
        began with.
      output: the folder; empty writes to exports/ inside the run, where it is made once.
      base: the model that the run began with, where it is no longer where it was, or was given live from Python.
      push_to_hub: OWNER/NAME of a repository of the Hugging Face hub that the folder is uploaded to, with the token of
        HF_TOKEN or `hf auth login`; empty for none.
      private: make that repository private, where it is made now.
    """

    run: str = ""
    checkpoint: str = ""
    merge: bool = True
    dtype: Literal["", "auto", "float32", "bfloat16", "float16"] = ""
    output: str = ""
    base: str = ""
    push_to_hub: str = ""
    private: bool = True


def export(config: ExportConfig) -> Path:
    """Writes a checkpoint of a run as a folder that transformers and others load, and says where.

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
    import jax

    # Nothing is computed, and a run that is training needs the accelerator for itself.
    jax.config.update("jax_platforms", "cpu")
    from jaxalign.export.checkpoint_export import export_checkpoint
    from jaxalign.models.folders import checkpoint_named

    run, checkpoint = config.run, config.checkpoint
    if named := checkpoint_named(run):
        if checkpoint and checkpoint != named[1]:
            raise ConfigError(f"{run} and --checkpoint={checkpoint} name two checkpoints")
        run, checkpoint = named
    done = export_checkpoint(
        run,
        checkpoint,
        output=config.output,
        merge=config.merge,
        dtype=config.dtype,
        base=config.base,
    )
    print(f"step {done.step}: {done.folder}{'' if done.new else ' (made before)'}")
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
            f"--push-to-hub={repository}: the hub did not take it ({reason[:300]}); the folder is {folder}"
        ) from None
    return str(commit)
