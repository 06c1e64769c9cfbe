"""Shapes of the models that are measured; needs jaxalign and the standard library alone."""

import functools
import json
from pathlib import Path

from cases import MODELS

from jaxalign.models import ModelConfig

# Made by `python benchmarks/lengths.py`.
LENGTHS = Path(__file__).parent / "lengths.json"


@functools.cache
def dialogue_lengths() -> list[int]:
    """Tokens of real dialogues: their quantiles 1/128, 3/128, ..."""
    return json.loads(LENGTHS.read_text())["tokens"]


def shape(name: str) -> ModelConfig:
    """A Llama of one of the sizes of `MODELS`."""
    sizes = MODELS[name]
    return ModelConfig(
        family="llama",
        vocab_size=sizes["vocab"],
        hidden_size=sizes["width"],
        intermediate_size=sizes["mlp"],
        num_layers=sizes["layers"],
        num_heads=sizes["heads"],
        num_kv_heads=sizes["kv_heads"],
        head_dim=sizes["width"] // sizes["heads"],
        max_positions=max(1024, sizes["length"]),
        # A vocabulary as large as this has one table for both ends in models of a billion parameters.
        tied_head=sizes["vocab"] > 100_000,
        bos_id=1,
        eos_ids=(2,),
        pad_id=0,
    )
