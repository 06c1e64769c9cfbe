"""Loads and saves Hugging Face folders; checks every tensor's name and shape."""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike

from jaxalign.errors import ModelError
from jaxalign.kernels.int8 import Int8
from jaxalign.kernels.quantize import Weights
from jaxalign.mesh import Rules
from jaxalign.models.config import ModelConfig
from jaxalign.models.families import (
    FAMILIES,
    Tensor,
    config_from_json,
    config_to_json,
    fuse,
    read_part,
    stored_shape,
)
from jaxalign.models.folders import NOT_OF_A_MODEL, WEIGHTS
from jaxalign.models.gguf.families import architecture_of, config_json, gguf_names, tensors_of
from jaxalign.models.gguf.head import gguf_in, is_gguf, read_head
from jaxalign.models.gguf.tokenizer import gguf_tokenizer
from jaxalign.models.mxfp4 import Mxfp4
from jaxalign.models.rotary import with_context
from jaxalign.models.sharding import to_device
from jaxalign.models.stops import read_generation, write_generation
from jaxalign.models.tensor_dtypes import export_dtype
from jaxalign.models.tensor_files import (
    Leaf,
    Outgoing,
    Source,
    Stored,
    Together,
    on_host,
    outgoing,
    read_json,
    read_tensors,
    write_tensors,
)
from jaxalign.models.transformer import Transformer, parameter_shapes, with_dtypes
from jaxalign.models.whole_folder import whole_folder
from jaxalign.remote import local

ENSEMBLE_FILE = "ensemble.json"
MAX_SHARD_BYTES = 4 * 2**30


def load_pretrained(
    folder: str | Path,
    *,
    param_dtype: DTypeLike | None = None,
    compute_dtype: DTypeLike | None = None,
    mesh: Mesh | None = None,
    rules: Rules | None = None,
    revision: str | None = None,
    weights: Weights = "same",
    context: int = 0,
) -> Transformer:
    """Loads a causal language model from a Hugging Face folder, a GGUF file or a hub id.

    Args:
      folder: a folder with config.json and weights (`model.safetensors` or `flax_model.msgpack`,
        one file or sharded), a GGUF file (or a folder with nothing but one), or a hub id.
      param_dtype: dtype of the parameters; None is float32.
      compute_dtype: dtype of the matrix products; None is float32.
      mesh: shard the parameters over this mesh; None puts them on the default device.
      rules: logical -> mesh axes, in place of the default table.
      revision: revision of a hub id.
      weights: what `models.quantize` does to the weights (int8 rounds them to 8-bit integers), one at a time: a device
        holds at most one of them as floats.
      context: longest row in tokens; 0 takes what the folder says (see `models.rotary.with_context`).

    Raises:
      ModelError: a missing file, an unsupported family, a context that the model cannot have, or a missing, unexpected
        or wrongly shaped tensor.
    """
    path = local_folder(folder, revision)
    config = with_dtypes(
        load_config(path, context=context), param_dtype or "float32", compute_dtype or "float32"
    )
    params = to_device(read_params(path, config), config.param_dtype, mesh=mesh, rules=rules, weights=weights)
    return Transformer(replace(config, mesh=mesh if mesh is not None and mesh.size > 1 else None), params)


def load_config(
    folder: str | Path, *, revision: str | None = None, context: int = 0, key: str = "context"
) -> ModelConfig:
    """Loads the configuration of a model folder (or hub id), with the end tokens of both config files.

    Raises:
      ModelError: no config.json, or one that is not supported; a generation_config.json that cannot be read; a
        `context` (see `load_pretrained`) that the model cannot have, by the name of its `key`.
    """
    path = local_folder(folder, revision, weights=False)
    if is_gguf(path):
        return config_from_json(config_json(read_head(path)), str(path))
    config = config_from_json(read_json(path / "config.json"), str(path / "config.json"))
    generation = path / "generation_config.json"
    if generation.is_file():
        config = read_generation(config, read_json(generation), str(generation))
    return with_context(config, context, key)


def local_folder(folder: str | Path, revision: str | None = None, *, weights: bool = True) -> Path:
    """The folder itself, or the cached one of a URL or hub id; without `weights` only its small files are downloaded.

    A GGUF file stands for itself, and for a folder that has one and no config.json.

    Raises:
      ModelError: neither a folder, a GGUF file nor an accessible hub id; or a reward ensemble.
      RemoteError: a URL that cannot be read.
    """
    path = Path(local(folder, NOT_OF_A_MODEL + WEIGHTS))
    if (path / ENSEMBLE_FILE).is_file():
        raise ModelError(
            f"{path}: expected one model, but this is a reward ensemble; name a member, such as {path / 'member-0'}"
        )
    if (file := gguf_in(path)) is not None:
        return file
    if path.is_dir():
        if weights:
            local(path, (*NOT_OF_A_MODEL, "*.msgpack"))
            if not any(path.glob("*.safetensors")):
                local(path, NOT_OF_A_MODEL)
        return path
    text = str(folder)
    if path.is_file():
        raise ModelError(
            f"{text}: not a GGUF file; expected one, a Hugging Face folder or a hub id (owner/name)"
        )
    if path.is_absolute() or text.startswith((".", "~")) or text.count("/") != 1 or path.suffix == ".gguf":
        raise ModelError(
            f"{text}: no such folder or file; expected a Hugging Face folder, a GGUF file or a hub id (owner/name)"
        )
    try:
        from huggingface_hub import snapshot_download

        small = ["*.json", "*.model", "*.txt", "*.jinja"]
        path = Path(snapshot_download(text, revision=revision, allow_patterns=small))
        if weights:
            path = Path(snapshot_download(text, revision=revision, allow_patterns=[*small, "*.safetensors"]))
            if not list(path.glob("*.safetensors")):
                path = Path(snapshot_download(text, revision=revision, allow_patterns=[*small, "*.msgpack"]))
        return path
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"{text}: no such folder, and it could not be loaded from the hub: {reason}"
        ) from None


def read_params(path: Path, config: ModelConfig) -> dict[str, Any]:
    """Our parameter tree, of leaves that are still in the files of a folder, or in a GGUF file."""
    if not is_gguf(path):
        return from_tensors(read_tensors(path), config, str(path))
    head = read_head(path)
    names = gguf_names(architecture_of(head), config.family, config.num_layers)
    return from_tensors(tensors_of(head, config), config, str(path), names)


def from_tensors(
    tensors: Mapping[str, Source], config: ModelConfig, where: str, named: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Our parameter tree from tensors under Hugging Face names; no numbers are read yet.

    Args:
      tensors: by name.
      config: the model's shape.
      where: what errors call the files.
      named: Hugging Face name -> what errors call the tensor, where that is another.

    Raises:
      ModelError: naming each missing, unexpected or wrongly shaped tensor.
    """
    family = FAMILIES[config.family]
    shapes = parameter_shapes(config)
    left = {name: source for name, source in tensors.items() if not name.endswith(family.ignored)}
    called = {} if named is None else named
    leave_out(left, family.beside, where)

    def take(name: str, trunk: str = family.trunk) -> Source | None:
        # A trunk saved on its own lacks the prefix. Beside images it has another, which depends on the version.
        inner = f"{trunk}language_model.{name}" if trunk else name
        for candidate in (trunk + name, name, "language_model." + trunk + name, inner):
            if candidate in left:
                return left.pop(candidate)
        return None

    def find(tensor: Tensor, name: str, wanted: Mapping[str, tuple[int, ...]]) -> Source:
        if "{e}" in name:
            own = {leaf: wanted[leaf][1:] for leaf in tensor.leaves}
            return Together([find(tensor, name.format(e=e), own) for e in range(config.mixture.experts)])
        source = take(name)
        if source is None and family.trunk + name + "_blocks" in left:
            parts = [take(f"{name}_{part}") for part in ("blocks", "scales")]
            if not all(isinstance(part, Stored) for part in parts):
                raise ModelError(f"{where}: missing tensor {family.trunk}{name}_scales")
            source = Mxfp4(*parts)
        if source is None:
            raise ModelError(
                f"{where}: missing tensor {called.get(family.trunk + name, family.trunk + name)}"
            )
        check(family.trunk + name, source, stored_shape(tensor, [wanted[leaf] for leaf in tensor.leaves]))
        return source

    def check(name: str, source: Source, expected: tuple[int, ...]) -> None:
        if source.shape != expected:
            own = called.get(name, name)
            raise ModelError(f"{where}: {own} has shape {list(source.shape)}, expected {list(expected)}")

    def there(tensors: Sequence[Tensor], wanted: Mapping[str, tuple[int, ...]]) -> list[Tensor]:
        return [tensor for tensor in tensors if any(leaf in wanted for leaf in tensor.leaves)]

    def leaves(tensor: Tensor, found: list[Source], wanted: Mapping[str, tuple[int, ...]], stacked: bool):
        sizes = [wanted[leaf][-1] for leaf in tensor.leaves]
        for number, leaf in enumerate(tensor.leaves):
            part = partial(read_part, tensor, number, sizes, config.num_heads)
            shape = (len(found), *wanted[leaf]) if stacked else wanted[leaf]
            yield leaf, Leaf(shape, found, part, stacked)

    flat = {
        f"{g}/{leaf}": shape
        for g, leaves in shapes.items()
        if g != "layers"
        for leaf, shape in leaves.items()
    }
    tree: dict[str, Any] = {}
    for tensor in there(family.outer, flat):
        for name, leaf in leaves(tensor, [find(tensor, tensor.name, flat)], flat, stacked=False):
            group, own = name.split("/")
            tree.setdefault(group, {})[own] = leaf
    wanted = {name: shape[1:] for name, shape in shapes["layers"].items()}
    layered = there(family.layer, wanted)
    found = [
        [find(tensor, tensor.name.format(i=layer, e="{e}"), wanted) for tensor in layered]
        for layer in range(config.num_layers)
    ]
    tree["layers"] = {
        name: leaf
        for tensor, sources in zip(layered, map(list, zip(*found, strict=True)), strict=True)
        for name, leaf in leaves(tensor, sources, wanted, stacked=True)
    }
    head = take(f"{family.head}.weight", "")
    if not config.tied_head:
        if head is None:
            raise ModelError(f"{where}: missing tensor {family.head}.weight (tie_word_embeddings is false)")
        check(f"{family.head}.weight", head, shapes["head"]["weight"])
        tree["head"] = {"weight": Leaf(head.shape, [head])}
    if left:
        names = sorted(called.get(name, name) for name in left)
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        raise ModelError(
            f"{where}: unexpected tensors for a {config.family} model: {', '.join(names[:4])}{more}"
        )
    return tree


def leave_out(tensors: dict[str, Source], modules: Sequence[str], where: str) -> None:
    """Takes away the tensors of a model's other modules, and says so in one line."""
    counts: dict[str, int] = {}
    for name in list(tensors):
        own = next((m for m in modules if name.removeprefix("model.").startswith(m + ".")), None)
        if own is not None:
            counts[own] = counts.get(own, 0) + 1
            del tensors[name]
    if counts:
        parts = ", ".join(f"{module} ({count})" for module, count in counts.items())
        logging.getLogger(__name__).warning(
            "%s: only the text part is loaded; %d tensors for images are left out: %s",
            where,
            sum(counts.values()),
            parts,
        )


def to_tensors(params: Mapping[str, Any], config: ModelConfig) -> dict[str, Outgoing]:
    """Tensors under Hugging Face names, the inverse of `from_tensors`; ValueError for 8-bit weights."""
    if isinstance(params["embed"]["tokens"], Int8):
        raise ValueError("a model with 8-bit weights cannot be saved; save the model it was quantized from")
    family = FAMILIES[config.family]
    flat = {f"{g}/{leaf}": a for g, leaves in params.items() if g != "layers" for leaf, a in leaves.items()}
    tensors = {
        family.trunk + tensor.name: outgoing(flat[tensor.leaves[0]])
        for tensor in family.outer
        if tensor.leaves[0] in flat
    }
    for tensor in family.layer:
        if tensor.leaves[0] not in params["layers"]:
            continue
        leaves = [params["layers"][leaf] for leaf in tensor.leaves]
        apart = "{e}" in tensor.name
        shape = stored_shape(tensor, [leaf.shape[1 + apart :] for leaf in leaves])
        places = [(layer,) for layer in range(config.num_layers)]
        if apart:
            places = [(layer, e) for (layer,) in places for e in range(config.mixture.experts)]
        for place in places:

            def fetch(
                tensor: Tensor = tensor, leaves: list[Any] = leaves, place: tuple[int, ...] = place
            ) -> np.ndarray:
                return fuse(tensor, [on_host(leaf, *place) for leaf in leaves], config.num_heads)

            name = family.trunk + tensor.name.format(i=place[0], e=place[-1])
            tensors[name] = Outgoing(shape, leaves[0].dtype, fetch)
    if not config.tied_head and "head" in params:
        tensors[f"{family.head}.weight"] = outgoing(params["head"]["weight"])
    return tensors


def save_pretrained(
    model: Transformer,
    folder: str | Path,
    *,
    tokenizer: Any = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    dtype: str | None = None,
) -> Path:
    """Saves a folder that `transformers` can load, atomically.

    Args:
      model: the model.
      folder: destination; an existing model is replaced once the new folder is complete.
      tokenizer: saved with the weights if given.
      max_shard_bytes: larger weights are split into several files with an index.
      dtype: of the weights in the files: float32, bfloat16 or float16; None keeps that of the parameters.

    Raises:
      ModelError: the folder holds something else, or a weight exceeds the dtype's range.
    """
    config = model.config
    tensors = to_tensors(model.params, config)
    return write_folder(
        Path(folder), config_to_json(config), tensors, tokenizer, config, max_shard_bytes, dtype=dtype
    )


def write_folder(
    folder: Path,
    config_json: dict[str, Any],
    tensors: Mapping[str, Outgoing],
    tokenizer: Any,
    config: ModelConfig,
    max_shard_bytes: int,
    extra_files: Mapping[str, Any] | None = None,
    *,
    dtype: str | None = None,
) -> Path:
    """Writes tensors by their Hugging Face names and what stands beside them, whole or not at all.

    Args:
      folder: where; a model that is there is replaced once the new one is complete.
      config_json: the body of config.json.
      tensors: as they are written, but for `dtype`; the host holds those of one file at a time.
      tokenizer: saved too, unless None.
      config: the model's shape, of which generation_config.json is made.
      max_shard_bytes: size of a file of tensors, at most.
      extra_files: further JSON files, name -> body.
      dtype: that of the tensors in the files; None for theirs.

    Raises:
      ModelError: a number that is too large for `dtype`.
    """
    if dtype is not None:
        config_json = config_json | {"dtype": export_dtype(dtype).name, "torch_dtype": dtype}
    with whole_folder(folder, "config.json") as temporary:
        write_tensors(temporary, tensors, max_shard_bytes, dtype)
        (temporary / "config.json").write_text(json.dumps(config_json, indent=2))
        generation = write_generation(config, config_json)
        (temporary / "generation_config.json").write_text(json.dumps(generation, indent=2))
        for name, body in (extra_files or {}).items():
            (temporary / name).write_text(json.dumps(body, indent=2))
        if tokenizer is not None:
            tokenizer.save_pretrained(temporary)
    return folder


def transformers_module() -> Any:
    """The `transformers` package, imported without its advice to install torch, which only models need."""
    name = "TRANSFORMERS_NO_ADVISORY_WARNINGS"
    was_set = name in os.environ
    os.environ.setdefault(name, "1")
    try:
        import transformers
    finally:
        if not was_set:
            del os.environ[name]
    return transformers


def load_tokenizer(folder: str | Path, *, revision: str | None = None) -> Any:
    """Loads the tokenizer of a folder (or hub id) with transformers, or that of a GGUF file.

    Raises:
      ModelError: there is none, or it cannot be read.
    """
    path = local_folder(folder, revision, weights=False)
    if is_gguf(path):
        return gguf_tokenizer(read_head(path))
    names = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
    if not any((path / name).is_file() for name in names):
        raise ModelError(f"{path}: no tokenizer; expected tokenizer.json (or set model.tokenizer)")
    AutoTokenizer = transformers_module().AutoTokenizer
    try:
        return AutoTokenizer.from_pretrained(str(path))
    except Exception as error:
        raise ModelError(f"{path}: cannot read the tokenizer: {str(error).strip().splitlines()[0]}") from None


def check_vocabulary(config: ModelConfig, tokenizer: Any) -> None:
    """Checks that the model has an embedding for every token of the tokenizer.

    Raises:
      ModelError: naming both sizes.
    """
    if tokenizer is None:
        return
    size = max(len(tokenizer), max(tokenizer.get_vocab().values(), default=-1) + 1)
    if size > config.vocab_size:
        raise ModelError(
            f"the tokenizer has {size} tokens, but the model's vocabulary has {config.vocab_size}; they do not "
            "match"
        )
