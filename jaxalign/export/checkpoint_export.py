"""Exports any checkpoint of any run as a Hugging Face folder.

Of the checkpoint the trained leaves alone are read; beside the run folder nothing is needed but the model that the
run
began with: its config.json and tokenizer, and where an adapter was trained its weights. No data, reward or optimizer.
"""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign import models
from jaxalign.checkpoints import saved_metrics, saved_steps
from jaxalign.config import from_dict
from jaxalign.data import chat_of
from jaxalign.errors import CheckpointError, ConfigError, DamagedCheckpointError, ModelError
from jaxalign.export import checkpoint_doctors
from jaxalign.export.checkpoint_names import find_step, read_metadata
from jaxalign.export.gguf_files import save_gguf
from jaxalign.models.folders import model_folder
from jaxalign.models.huggingface import local_folder
from jaxalign.models.tensor_dtypes import folder_dtype
from jaxalign.models.transformer import parameter_shapes, with_dtypes
from jaxalign.training.core import exports
from jaxalign.training.core.exports import CONFIGS, RECORD_FILE, Origin, config_class, export_params, origin
from jaxalign.training.core.members import member_of
from jaxalign.training.core.scoring import CausalPolicy, ScalarPolicy

Format = Literal["huggingface", "gguf"]
GGUF_FILE = "model.gguf"


@dataclass(frozen=True)
class Exported:
    """The result of an export.

    Attributes:
      folder: the folder; of an export to a GGUF file alone that file.
      step: of the checkpoint.
      new: whether it was made now, and not found.
    """

    folder: Path
    step: int
    new: bool


def checkpoint_folder(run: str, checkpoint: str) -> str:
    """The folder of the model RUN@CHECKPOINT, made inside the run where it is not there yet."""
    return str(export_checkpoint(run, checkpoint).folder)


def export_checkpoint(
    run: str | Path,
    checkpoint: str = "",
    *,
    output: str | Path = "",
    merge: bool = True,
    dtype: str = "",
    base: str = "",
    format: Format = "huggingface",
    say: Callable[[str], None] | None = None,
) -> Exported:
    """Exports a checkpoint as a Hugging Face folder or GGUF file, atomically.

    Args:
      run: the run folder; the run may be under way.
      checkpoint: a step, `best` or `latest`; empty takes the best where `run.best_metric` is set, else the latest.
      output: where; empty takes a folder inside the run, which is made once and found again. With the format gguf a
        name that ends in .gguf is a file, without the card.
      merge: whether a LoRA adapter is merged into its base; else it is written alone, as a PEFT folder.
      dtype: of the weights, as `run.export_dtype`, which empty takes; or q8_0 with the format gguf.
      base: folder or hub id of the model that the run began with, in place of the one that the run noted.
      format: huggingface, or gguf for a folder with a checked `model.gguf` (see `gguf_files.save_gguf`).
      say: takes lines that the user should read; None puts them on standard error.

    Raises:
      ConfigError: what is no run, no checkpoint's name, or a run of a live model without `base`.
      CheckpointError: no such checkpoint, or files that cannot be read; in place of a damaged `best` or `latest` the
        next is taken, which is said.
      ModelError: a base that is not there or has another shape.
    """
    say, damaged = say or exports.to_stderr, []
    while True:
        try:
            return _exported(
                Path(run),
                checkpoint,
                damaged,
                output=output,
                merge=merge,
                dtype=dtype,
                base=base,
                format=format,
                say=say,
            )
        except DamagedCheckpointError as error:
            damaged.append(error)
            if checkpoint.isdigit() or set(saved_steps(Path(run) / "checkpoints")) <= {
                e.step for e in damaged
            }:
                raise CheckpointError("; ".join(map(str, damaged))) from error


def _exported(
    run: Path,
    checkpoint: str,
    damaged: Sequence[DamagedCheckpointError],
    *,
    output: str | Path,
    merge: bool,
    dtype: str,
    base: str,
    format: Format,
    say: Callable[[str], None],
) -> Exported:
    without = [error.step for error in damaged]
    one = Checkpoint.find(run, checkpoint, base=base, dtype=dtype, merge=merge, say=say, without=without)
    if format == "gguf":
        one = replace(one, gguf=True)
        one.check_gguf()
    elif dtype == "q8_0":
        raise ConfigError(
            "--dtype=q8_0: only GGUF has it; add --format=gguf, or use float32, bfloat16 or float16"
        )
    for error in damaged[-1:]:
        say(f"{error}; taking that of step {one.origin.step}")
    # Where it would be, and where a finished run has put its own.
    places = [one.place()] if not output else []
    if places and merge and not dtype and not one.gguf:
        places.append(one.run / "export")
    for place in places:
        if one.is_there(place):
            return Exported(place, one.origin.step, new=False)
    folder = Path(output or places[0])
    one.write(folder)
    return Exported(folder, one.origin.step, new=True)


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint of a run, and how it is to be exported.

    Attributes:
      run: the run folder.
      config: the run's configuration.
      origin: what is written beside the weights.
      base: the model that the run began with, as `setup.ModelSource` names one.
      merge: whether an adapter is merged.
      given: whether the base was named now, and not by the run.
      gguf: whether a GGUF file is written.
    """

    run: Path
    config: Any
    origin: Origin
    base: Mapping[str, Any]
    merge: bool
    given: bool
    gguf: bool = False

    @staticmethod
    def find(
        run: Path,
        name: str,
        *,
        base: str,
        dtype: str,
        merge: bool,
        say: Callable[[str], None],
        without: Collection[int] = (),
    ) -> "Checkpoint":
        """The checkpoint of that name, see `find_step`; errors are those of `export_checkpoint`."""
        metadata = read_metadata(run)
        command = str(metadata.get("command"))
        if command not in CONFIGS:
            raise ConfigError(
                f"{run}: a run of `{command}` cannot be exported; expected a run of {', '.join(CONFIGS)}"
            )
        config = from_dict(config_class(command), metadata["config"])
        step = find_step(run, name, config.run, without)
        run_origin = origin(run, metadata, step, say, dtype or config.run.export_dtype)
        source = (metadata.get("models") or {}).get("model") or {}
        if base:
            folder = model_folder(base)
            noted = {"path": exports.full_name(folder), "revision": "", "tokenizer": "", "random_init": False}
            run_origin = replace(
                run_origin, base=noted["path"], revision="", source_dtype=folder_dtype(folder) or ""
            )
            source = noted
        if not source:
            raise ConfigError(
                f"{run}: the initial model was passed live (or the run is from an earlier version), so its "
                f"config.json and tokenizer are unknown; name a folder that has them: jaxalign export {run} "
                f"--checkpoint={step} --base=FOLDER"
            )
        if not merge and command == "tfpo" and config.dimensions:
            raise ConfigError(
                f"--merge=false: {run}: a run with several doctors always exports each adapter/; remove the flag"
            )
        if not merge and (command == "reward" or not config.lora.enabled):
            why = (
                "a reward model's adapter is nothing without its head"
                if config.lora.enabled
                else "it trained no adapter"
            )
            raise ConfigError(f"--merge=false: {run}: {why}; remove the flag")
        one = Checkpoint(run.absolute(), config, run_origin, source, merge, bool(base))
        if command == "reward":
            gains, note = one.normalizer()
            if note:
                say(f"{run}: {note}")
            one = replace(
                one,
                origin=replace(
                    run_origin, normalizer=tuple(np.ravel(gains).astype(np.float32).tolist()), note=note
                ),
            )
        return one

    # --- where -----------------------------------------------------------------------------------

    def place(self) -> Path:
        """Where an export without a place of its own goes."""
        usual = self.origin.dtype == self.config.run.export_dtype
        ends = ([] if usual else [self.origin.dtype]) + ([] if self.merge else ["adapter"])
        ends += ["gguf"] if self.gguf else []
        return self.run / "exports" / "-".join([f"step-{self.origin.step}", *ends])

    def is_there(self, folder: Path) -> bool:
        """Whether a folder holds just this export."""
        try:
            record = json.loads((folder / RECORD_FILE).read_text())
        except (OSError, ValueError):
            return False
        # What `auto` comes to is known when the weights are read; the folder was made by the same rule.
        wanted = self.origin.record(self.form, record.get("dtype", ""))
        named = self.origin.dtype
        return record == wanted and wanted["saved"] > 0 and named in ("auto", record["dtype"])

    @property
    def form(self) -> str:
        """What is written: model, reward, ensemble, doctors, adapter or gguf."""
        if self.gguf:
            return "gguf"
        if self.several:
            return "doctors"
        if self.origin.metadata["command"] != "reward":
            return "model" if self.merge else "adapter"
        return "ensemble" if self.config.ensemble.size > 1 else "reward"

    @property
    def several(self) -> bool:
        """Whether the run trained a doctor for each of several dimensions."""
        return self.origin.metadata["command"] == "tfpo" and bool(self.config.dimensions)

    # --- what ------------------------------------------------------------------------------------

    def write(self, folder: Path) -> None:
        """Writes the export."""
        if self.origin.metadata["command"] == "reward":
            exports.write_reward(self.origin, self.scalars(), folder, self.tokenizer)
            return
        if self.several:
            checkpoint_doctors.write_several(self, folder)
            return
        policy, trained, frozen = self.policy()
        model, adapter = policy.parts(trained, frozen)
        if not self.merge:
            exports.write_adapter(
                self.origin, trained, folder, self.config.lora, model.config, self.tokenizer
            )
            return
        begun = model
        if adapter is not None:
            model = models.merge_adapter(model, adapter)
        if self.gguf:
            self.write_gguf(model, folder)
            return
        more = (
            partial(checkpoint_doctors.add_doctor, self, trained, begun) if "value" in self.params else None
        )
        exports.write_model(self.origin, model, folder, self.tokenizer, more)

    def check_gguf(self) -> None:
        """The run trained a language model, and the whole of it is written.

        Raises:
          ConfigError: it did not, or only an adapter is wanted.
        """
        command = self.origin.metadata["command"]
        if not self.merge:
            raise ConfigError(f"--merge=false: {self.run}: GGUF files have whole models; remove the flag")
        if command in ("reward", "tfpo"):
            raise ConfigError(
                f"--format=gguf: {self.run}: a run of `{command}` trained a head, which GGUF has not"
            )

    def write_gguf(self, model: Any, place: Path) -> None:
        """Writes the model as a GGUF file: `place` itself, or in a folder with the card."""
        dtype = self.origin.weights_dtype(model.params)
        arguments: dict[str, Any] = {
            "tokenizer": self.origin.tokenizer(self.tokenizer),
            "dtype": dtype,
            "name": f"{self.run.name} step {self.origin.step}",
            "say": self.origin.say,
        }
        if place.suffix == ".gguf":
            save_gguf(model, place, **arguments)
            return

        def fill(inside: Path) -> None:
            save_gguf(model, inside / GGUF_FILE, called=str(place / GGUF_FILE), **arguments)

        exports.write_folder(self.origin, place, GGUF_FILE, self.form, dtype, fill)

    @cached_property
    def params(self) -> Any:
        """The trained leaves."""
        return export_params(self.run / "checkpoints", self.origin.step)

    @cached_property
    def folder(self) -> Path:
        """The base's, here.

        Raises:
          ModelError: it is not here.
        """
        path, revision = self.base["path"], self.base.get("revision") or None
        weights = self.config.lora.enabled and not self.base.get("random_init")
        try:
            return local_folder(path, revision, weights=weights)
        except ModelError as error:
            raise ModelError(
                f"{self.run}: the initial model was not found; name it with --base ({error})"
            ) from None

    @cached_property
    def tokenizer(self) -> Any:
        """The run's tokenizer."""
        return models.load_tokenizer(self.base.get("tokenizer") or self.folder)

    @property
    def base_config(self) -> models.ModelConfig:
        """The base's shape, in the dtypes of the run, with its tokenizer's end."""
        config = with_dtypes(models.load_config(self.folder), self.config.model.param_dtype, "float32")
        return models.stopping(models.Definition(config), models.tokenizer_stops(self.tokenizer)).config

    def base_params(self) -> Any:
        """The base's weights as the run kept them: of its folder, or drawn as the run drew them."""
        dtype, weights = self.config.model.param_dtype, self.config.lora.weights
        if self.base.get("random_init"):
            config = models.load_config(self.folder)
            drawn = models.create(config, key=jax.random.key(self.config.run.seed), param_dtype=dtype)
            return models.quantize(drawn, weights).params
        return models.load_pretrained(self.folder, param_dtype=dtype, weights=weights).params

    def policy(self) -> tuple[CausalPolicy, Any, Any]:
        """As `setup.policy_of`: how to score, the trained leaves, and the frozen ones."""
        config, lora = self.base_config, self.config.lora
        data = replace(self.config.data, date=self.config.data.date or self.origin.metadata.get("date", ""))
        definition = models.stopping(models.Definition(config), chat_of(data, self.tokenizer).stop_ids)
        trained = self.params.get("policy", self.params)
        if not lora.enabled:
            self.check(trained, parameter_shapes(config))
            return CausalPolicy(definition), trained, {}
        self.check(member_of(trained, 0) if self.several else trained, adapter_shapes(config, lora))
        return CausalPolicy(definition, lora), as_jax(trained), self.base_params()

    def scalars(self) -> Any:
        """The scalar model, or all of an ensemble, with adapters merged."""
        config, lora, size = replace(self.base_config, tied_head=True, head_bias=False), self.config.lora, 1
        steps = None
        if self.config.loss.labels == "steps":
            steps = models.StepConfig(separator=self.config.data.separator)
        definition = models.ScalarDefinition(config, self.config.head, steps)
        policy = ScalarPolicy(definition, lora if lora.enabled else None)
        size, frozen = self.config.ensemble.size, {}
        members = (
            [self.params]
            if size == 1
            else [jax.tree.map(lambda x, k=k: x[k], self.params) for k in range(size)]
        )
        if "trunk" in members[0]:
            self.check(
                members[0]["trunk"], {k: v for k, v in parameter_shapes(config).items() if k != "head"}
            )
        else:
            if lora.enabled:
                self.check(members[0]["adapter"], adapter_shapes(config, lora))
            frozen = {"trunk": {name: leaf for name, leaf in self.base_params().items() if name != "head"}}
        pairs = np.reshape(self.origin.normalizer, (-1, 2))
        scalars = []
        for trained, (gain, bias) in zip(members, pairs, strict=True):
            model, adapter = policy.parts(
                as_jax(trained), models.with_normalizer(frozen, gain=gain, bias=bias)
            )
            scalars.append(model if adapter is None else models.merge_adapter(model, adapter))
        return scalars if size > 1 else scalars[0]

    def normalizer(self) -> tuple[Any, str]:
        """(gain and bias of each model [K, 2], a line where it is not what the run itself would have given).

        A run sets them at its end, from all held-out scores. A checkpoint before that has the mean and deviation of
        the scores of its own evaluation, where it was evaluated.
        """
        size = self.config.ensemble.size
        raw = np.tile([1.0, 0.0], (size, 1))
        if not self.config.normalizes:
            return raw, ""
        final = self.origin.metadata.get("final_metrics") or {}
        prefixes = ["final/"] if size == 1 else [f"final/member-{k}/" for k in range(size)]
        if self.origin.step == self.origin.metadata.get("exported_step") and f"{prefixes[0]}gain" in final:
            return [[final[f"{p}gain"], final[f"{p}bias"]] for p in prefixes], ""
        seen = saved_metrics(self.run / "checkpoints", self.origin.step)
        prefixes = ["eval/"] if size == 1 else [f"eval/member-{k}/" for k in range(size)]
        if f"{prefixes[0]}score_std" not in seen:
            return raw, (
                f"Step {self.origin.step} was not evaluated, so that the scale of its scores is not known: "
                "gain is 1 and bias 0"
            )
        moments = [(seen[f"{p}score_mean"], seen[f"{p}score_std"] ** 2) for p in prefixes]
        note = "Scores have mean 0 and variance 1 over the held-out rows of train.eval_batches"
        return [
            models.gain_and_bias(*pair) for pair in moments
        ], note if self.config.train.eval_batches else ""

    def check(self, leaves: Any, shapes: Any) -> None:
        """Every leaf has the shape that the base gives it.

        Raises:
          ModelError: naming the first that has not.
        """
        here = {
            jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
            for path, leaf in jax.tree_util.tree_leaves_with_path(leaves)
        }
        there = {
            jax.tree_util.keystr(path, simple=True, separator="/"): tuple(shape)
            for path, shape in jax.tree_util.tree_leaves_with_path(
                shapes, is_leaf=lambda x: isinstance(x, tuple)
            )
        }
        for name in sorted(here.keys() | there.keys()):
            if here.get(name) != there.get(name):
                raise ModelError(
                    f"{self.run}: {name} of the checkpoint has shape {list(here.get(name, ())) or 'none'}, but in "
                    f"{self.base['path']} {list(there.get(name, ())) or 'none'}; name the run's initial model with "
                    "--base"
                )


def adapter_shapes(config: models.ModelConfig, lora: models.LoraConfig) -> Any:
    """The shapes of an adapter's leaves."""
    shapes = parameter_shapes(config)["layers"].items()
    layers = {name: jax.ShapeDtypeStruct(shape, "float32") for name, shape in shapes}
    made = jax.eval_shape(
        lambda key, layers: models.create_adapter(config, lora, key=key, layers=layers),
        jax.random.key(0),
        layers,
    )
    return jax.tree.map(lambda leaf: leaf.shape, made)


def as_jax(tree: Any) -> Any:
    """Host arrays as JAX arrays of the same dtypes."""
    return jax.tree.map(jnp.asarray, tree)
