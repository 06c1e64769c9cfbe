"""What a run leaves for others: folders with weights in their source's dtype, tokenizer, card, and a record of both.

Beside the Hugging Face files (or PEFT's) lie README.md, the model card, and `jaxalign_export.json`, which says of what
checkpoint the folder is, so that nobody takes it for another.
"""

import importlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from optax import contrib

import jaxalign
from jaxalign import models
from jaxalign.checkpoints import CheckpointStore, best_step, read_part, saved_at, saved_metrics, saved_tree
from jaxalign.config import defaults, from_dict
from jaxalign.data import DataConfig, chat_of
from jaxalign.data.markers import with_marker_template
from jaxalign.errors import DamagedCheckpointError
from jaxalign.models.folders import checkpoint_named, model_folder
from jaxalign.models.huggingface import local_folder
from jaxalign.models.lora import LoraConfig
from jaxalign.models.peft import partly_fused
from jaxalign.models.tensor_dtypes import device_dtype, folder_dtype
from jaxalign.models.whole_folder import whole_folder
from jaxalign.remote import as_named
from jaxalign.runs import Run
from jaxalign.runs.card import CardFacts, model_card
from jaxalign.training.core.state import TrainState
from jaxalign.training.core.update_rules import averaged_params

RECORD_FILE = "jaxalign_export.json"
LARGEST_FLOAT16 = 65504.0
# Command -> where its configuration is; imported when it is asked for, as they import what is here.
CONFIGS = {
    "sft": "training.sft:SFTConfig",
    "reward": "training.reward_model.trainer:RewardConfig",
    "distill": "training.distill.config:DistillConfig",
    "dpo": "training.preference.config:DPOConfig",
    "tfpo": "llmdoctor.tfpo_config:TFPOConfig",
    "ppo": "training.rl.ppo_config:PPOConfig",
    "grpo": "training.rl.grpo_config:GRPOConfig",
    "online-dpo": "training.rl.online_dpo_config:OnlineDPOConfig",
}


def config_class(command: str) -> Any:
    """The dataclass of a training command's configuration."""
    module, name = CONFIGS[command].split(":")
    return getattr(importlib.import_module(f"jaxalign.{module}"), name)


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Which weights of which run are exported, and how.

    Attributes:
      run: the run folder.
      metadata: what its metadata.json holds.
      step: of the checkpoint.
      say: takes a line for the user.
      dtype: of the weights: a name, or auto, which takes `source_dtype`.
      source_dtype: that of the files that the run began with; empty keeps that of the parameters.
      base: folder or hub id of the model that the run began with; empty where it has none.
      revision: of a hub id.
      normalizer: gain and bias of the scores of each model, as far as there are any.
      note: a line for the card.
    """

    run: Path
    metadata: Mapping[str, Any]
    step: int
    say: Callable[[str], None]
    dtype: str = "auto"
    source_dtype: str = ""
    base: str = ""
    revision: str = ""
    normalizer: tuple[float, ...] = ()
    note: str = ""

    def weights_dtype(self, params: Any) -> str:
        """The dtype that these parameters are written in."""
        if self.dtype != "auto":
            return self.dtype
        kept = str(jax.tree.leaves(params)[0].dtype)
        if self.source_dtype == "float16" and not _fits_float16(params):
            self.say(
                f"export: a weight exceeds the largest float16 (the dtype of {self.base}); exported as {kept}"
            )
            return kept
        return self.source_dtype or kept

    def record(self, form: str, dtype: str) -> dict[str, Any]:
        """What tells an export from others: two with the same record hold the same."""
        return {
            "run": str(self.run),
            "step": self.step,
            "saved": saved_at(self.run / "checkpoints", self.step),
            "form": form,
            "dtype": dtype,
            "base": self.base,
            "revision": self.revision,
            "normalizer": list(self.normalizer),
            "jaxalign": jaxalign.__version__,
        }

    def card(self, form: str, dtype: str) -> str:
        """The text of the model card."""
        config = self.metadata.get("config", {})
        usual = defaults(config_class(self.metadata["command"]))
        settings = {key: value for key, value in _flat(config, usual).items() if usual.get(key) != value}
        if scale := self.metadata.get("reward_scale"):
            settings["loss.reward_scale"] = f"{scale['value']:.4g} (configured: {scale['asked']})"
        facts = CardFacts(
            run=self.run.name,
            step=self.step,
            form=form,
            metrics=saved_metrics(self.run / "checkpoints", self.step),
            dtype=dtype,
            base=self.base,
            revision=self.revision,
            settings=settings,
            note=self.note,
        )
        return model_card(self.metadata, facts)

    def tokenizer(self, tokenizer: Any) -> Any:
        """The tokenizer with the chat template that the run wrote its chats by, where that were turn markers."""
        config = from_dict(DataConfig, self.metadata.get("config", {}).get("data") or {})
        chat = chat_of(replace(config, date=config.date or self.metadata.get("date", "")), tokenizer)
        if chat.template != "markers":
            return tokenizer
        found, problem = with_marker_template(chat)
        if problem:
            self.say(f"export: no chat template written for the turn markers: {problem}")
        return found


def origin(
    run: Path, metadata: Mapping[str, Any], step: int, say: Callable[[str], None], dtype: str = "auto"
) -> Origin:
    """The `Origin` of a checkpoint, from what its run has noted."""
    loaded = (metadata.get("models") or {}).get("model") or {}
    drawn = loaded.get("random_init", False)
    return Origin(
        run=Path(run).absolute(),
        metadata=metadata,
        step=step,
        say=say,
        dtype=dtype,
        source_dtype="" if drawn else loaded.get("dtype") or "",
        base=loaded.get("path") or "",
        revision=loaded.get("revision") or "",
    )


def origin_of(run: Run) -> Origin:
    """That of a run which ends; its weights are those of the step that its metadata names."""
    metadata = run.metadata()
    step = int(metadata.get("exported_step", 0))
    return origin(run.folder, metadata, step, run.warn, run.config.export_dtype)


# --- folders ----------------------------------------------------------------------------------


def write_model(
    origin: Origin, model: Any, folder: Path, tokenizer: Any, more: Callable[[Path], Any] | None = None
):
    """A language model as a Hugging Face folder; `more` adds files to it."""
    dtype = origin.weights_dtype(model.params)

    def fill(place: Path) -> None:
        models.save_pretrained(model, place, tokenizer=origin.tokenizer(tokenizer), dtype=dtype)
        if more is not None:
            more(place)

    write_folder(origin, folder, "config.json", "model", dtype, fill)


def write_reward(origin: Origin, found: Any, folder: Path, tokenizer: Any) -> None:
    """A scalar model in the layout of classifiers, or several as the folder of an ensemble."""
    several = isinstance(found, Sequence)
    scales = [model.params["normalizer"] for model in (found if several else [found])]
    origin = replace(
        origin, normalizer=tuple(float(scale[name]) for scale in scales for name in ("gain", "bias"))
    )
    dtype = origin.weights_dtype((found[0] if several else found).params["trunk"])
    save: Callable[..., Any] = models.save_reward_ensemble if several else models.save_reward_model
    marker, form = ("ensemble.json", "ensemble") if several else ("config.json", "reward")

    def fill(place: Path) -> None:
        save(found, place, tokenizer=origin.tokenizer(tokenizer), dtype=dtype)

    write_folder(origin, folder, marker, form, dtype, fill)


def write_adapter(
    origin: Origin, leaves: Any, folder: Path, lora: LoraConfig, config: models.ModelConfig, tokenizer: Any
) -> None:
    """An adapter as a PEFT folder, which names the model that it belongs to.

    Raises:
      ModelError: its family has modules that PEFT adapts as a whole only.
    """
    drawn = ((origin.metadata.get("models") or {}).get("model") or {}).get("random_init", False)

    def fill(place: Path) -> None:
        models.save_adapter(
            leaves,
            place,
            lora,
            config,
            base="" if drawn else origin.base,
            revision="" if drawn else origin.revision,
            tokenizer=origin.tokenizer(tokenizer),
        )

    write_folder(origin, folder, "adapter_config.json", "adapter", "float32", fill)


def write_folder(
    origin: Origin, folder: Path, marker: str, form: str, dtype: str, fill: Callable[[Path], None]
) -> None:
    """A folder that `fill` fills, with card and record, whole or not at all; `marker` is a file that it makes."""
    with whole_folder(Path(folder), marker) as place:
        fill(place)
        (place / "README.md").write_text(origin.card(form, dtype), encoding="utf-8")
        (place / RECORD_FILE).write_text(json.dumps(origin.record(form, dtype), indent=2))


def export_adapter(
    run: Run, leaves: Any, lora: LoraConfig, config: models.ModelConfig, tokenizer: Any
) -> None:
    """The `adapter/` of a run which ends; a line where its family has none that PEFT could read."""
    if why := partly_fused(leaves, config):
        run.warn(f"no adapter/ exported: {why}; export/ contains it merged")
        return
    write_adapter(origin_of(run), leaves, run.folder / "adapter", lora, config, tokenizer)


def to_stderr(line: str) -> None:
    """A line for the user where no run takes it."""
    print(line, file=sys.stderr)


def _fits_float16(params: Any) -> bool:
    return all(
        float(jnp.max(jnp.abs(x), initial=0)) <= LARGEST_FLOAT16  # where it lies, which may be many hosts
        for x in jax.tree.leaves(params)
    )


def _flat(tree: Any, known: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value; a mapping that is itself a value stays whole."""
    if isinstance(tree, Mapping) and prefix.rstrip(".") not in known:
        return {
            k: v for name, value in tree.items() for k, v in _flat(value, known, f"{prefix}{name}.").items()
        }
    return {prefix.rstrip("."): tree}


# --- while a run goes -------------------------------------------------------------------------


def note_model(run: Run, section: str, folder: str, source: Any) -> None:
    """Notes in a run's metadata where one of its models (a `ModelSource`) lies, whatever the working directory."""
    noted = {
        "path": full_name(folder),
        "revision": source.revision,
        "tokenizer": full_name(source.tokenizer),
        "dtype": folder_dtype(local_folder(folder, source.revision or None, weights=False)),
        "random_init": source.random_init,
    }
    run.add_metadata(models=run.metadata().get("models", {}) | {section: noted})


def full_name(path: str) -> str:
    """A folder or file by its whole path, or the URL that it was fetched from; a hub id as it is."""
    return as_named(str(Path(path).resolve())) if path and Path(path).exists() else path


def begun_with(run: Run | None, section: str, path: str) -> str:
    """The folder of a model that a configuration names; of RUN@best that which a resumed run began with."""
    if run is not None and run.resumed and checkpoint_named(path):
        before = (run.metadata().get("models", {}).get(section) or {}).get("path", "")
        if before and Path(before).is_dir():
            return before
    return model_folder(path)


def kept_dtype(
    run: Run | None, section: str, source: Any, name: Literal["param_dtype", "compute_dtype"], device: Any
) -> tuple[str, str]:
    """A dtype of a model, and why: where it is left to the device, of a resumed run that which it began with."""
    setting = getattr(source, name)
    if setting == "auto" and run is not None and run.resumed:
        metadata = run.metadata()
        noted = metadata.get("models", {}).get(section) or {}
        # Earlier versions noted no compute dtype, but their configurations name it.
        before = noted.get(name) or (metadata.get("config", {}).get(section) or {}).get(name, setting)
        if before != "auto":
            return before, noted.get(f"{name}_reason", "the run began with it")
    return device_dtype(setting, device), "configured" if setting != "auto" else f"a {device.platform}"


def chosen_state(run: Run, store: CheckpointStore, state: TrainState, step: int) -> TrainState:
    """The state whose parameters a run which ends exports: its own, or where `run.best_metric` is set the best's.

    Args:
      run: the run; its metadata is told the step.
      store: its checkpoints.
      state: the final state.
      step: its step.
    """
    metric = run.config.best_metric
    if not metric:
        run.add_metadata(exported_step=step)
        return state
    store.wait()
    damaged: list[int] = []
    while (best := best_step(store.folder, metric, run.config.best_mode, damaged)) not in (None, step):
        try:
            state = replace(state, params=best_params(store.folder, best, state))
            break
        except DamagedCheckpointError as error:
            run.warn(f"{error}; exporting the best of the others")
            damaged.append(best)
    run.add_metadata(exported_step=step if best is None else best)
    if best is None:
        there = sorted({name for each in store.steps() for name in saved_metrics(store.folder, each)})
        run.warn(
            f"run.best_metric={metric}: no checkpoint was evaluated by it (metrics: {', '.join(there) or 'none'}); "
            "exporting the last checkpoint"
        )
        return state
    value = saved_metrics(store.folder, best)[metric]
    run.note(f"export: step {best} of {step}, the best by {metric} ({value:.6g})")
    return state


def best_params(folder: Path, step: int, state: TrainState) -> Any:
    """The parameters to export of a checkpoint, laid out as those of a state of its run."""
    found = export_params(folder, step)
    return jax.tree.map(
        lambda host, like: jax.device_put(host.astype(like.dtype), like.sharding), found, state.params
    )


def export_params(folder: Path, step: int) -> Any:
    """The trained leaves that a checkpoint is exported with, on the host; nothing else of it is read.

    But of a schedule-free optimizer, whose state has the average that is exported (see `averaged_params`).
    """
    params = read_part(folder, step, ("params",))
    if not _averages(saved_tree(folder, step)["opt_state"]):
        return params
    (state,) = _averages(read_part(folder, step, ("opt_state",)))
    state = contrib.ScheduleFreeState(**{name: state[name] for name in contrib.ScheduleFreeState._fields})
    # JAX's arithmetic, which is the run's: NumPy's rounds a division another way.
    params, state = jax.tree.map(jnp.asarray, (params, state))
    return jax.tree.map(np.asarray, averaged_params(params, state))


def _averages(tree: Any) -> list[Any]:
    """What a saved tree has of states of schedule-free optimizers."""
    if isinstance(tree, Mapping):
        if {"z", "b1", "weight_sum"} <= tree.keys():
            return [tree]
        tree = list(tree.values())
    return [found for part in tree for found in _averages(part)] if isinstance(tree, (list, tuple)) else []
