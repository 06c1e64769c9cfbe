"""The tokens that end a completion: of a folder's files, of a tokenizer, and of what a run has taught.

A model's stop set is `ModelConfig.eos_ids`: the union of generation_config.json's eos_token_id, config.json's, the
tokenizer's end-of-sequence token, and what a run trained as the end of a turn. It is sampled with and exported.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from jaxalign.errors import ModelError
from jaxalign.models.composite import CompositeDefinition
from jaxalign.models.config import ModelConfig

SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")
# Fields of generation_config.json that are not kept: the stop set is our own, and who wrote the file is no setting.
OURS = ("eos_token_id", "transformers_version")
# What transformers writes into each and takes where it is left out.
DEFAULTS = {"use_cache": True, "output_attentions": False, "output_hidden_states": False}


def eos_ids(fields: Mapping[str, Any]) -> tuple[int, ...]:
    """The end tokens of a config.json or generation_config.json: of none, one or several; a negative one is none."""
    eos = fields.get("eos_token_id")
    listed = eos if isinstance(eos, list) else [] if eos is None else [eos]
    return tuple(dict.fromkeys(token for token in map(int, listed) if token >= 0))


def tokenizer_stops(tokenizer: Any) -> tuple[int, ...]:
    """A tokenizer's end-of-sequence token; () where it has none, or there is no tokenizer."""
    eos = getattr(tokenizer, "eos_token_id", None)
    return () if eos is None else (int(eos),)


def stopping(definition: Any, ids: Iterable[int]) -> Any:
    """The static part of a model (see `models.split`) that stops at these tokens too; see `models.with_stops`."""
    if isinstance(definition, CompositeDefinition):
        stops = definition.with_stops(ids)
        return definition if stops == definition else stops
    config = definition.config
    new = [token for token in dict.fromkeys(map(int, ids)) if token not in config.eos_ids]
    for token in new:
        if not 0 <= token < config.vocab_size:
            raise ModelError(
                f"stop token {token} is outside the model's vocabulary of {config.vocab_size} tokens; model and "
                "tokenizer do not match"
            )
    return replace(definition, config=replace(config, eos_ids=(*config.eos_ids, *new))) if new else definition


def read_generation(config: ModelConfig, fields: Any, where: str) -> ModelConfig:
    """The config of a folder with what its generation_config.json says: more end tokens, and fields to keep.

    Raises:
      ModelError: not an object, or an end token that is no number; names the file.
    """
    if not isinstance(fields, dict):
        raise ModelError(f"{where}: expected an object, got {type(fields).__name__}")
    try:
        stops = eos_ids(fields)
    except (TypeError, ValueError):
        raise ModelError(
            f"{where}: eos_token_id: expected a token id or a list of them, got {fields['eos_token_id']!r}"
        ) from None
    said = {**DEFAULTS, "bos_token_id": config.bos_id, "pad_token_id": config.pad_id}
    kept = {
        name: value
        for name, value in fields.items()
        if value is not None and not name.startswith("_") and name not in OURS and value != said.get(name)
    }
    return replace(
        config,
        eos_ids=tuple(dict.fromkeys((*stops, *config.eos_ids))),
        generation=json.dumps(kept) if kept else "",
    )


def write_generation(config: ModelConfig, config_json: Mapping[str, Any]) -> dict[str, Any]:
    """The generation_config.json of a model: its special tokens, and what the file that it was read from has else."""
    kept = json.loads(config.generation) if config.generation else {}
    fields = {name: config_json[name] for name in SPECIAL} | kept
    return {name: value for name, value in fields.items() if value is not None}
