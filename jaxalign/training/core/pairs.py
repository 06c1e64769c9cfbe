"""Comparison batches with the pair as an axis.

Batches hold chosen rows first, then rejected rows, [2B, T]. Inside an update the rows
are split into micro-batches, so a pair must stay together: [B, 2, T].
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

ROW_FIELDS = ("tokens", "mask", "lengths", "kl_tokens", "kl_mask", "kl_lengths")


def pair_axis(batch: Mapping[str, Any], group: int = 2) -> dict[str, Any]:
    """[group * B, ...] in blocks -> [B, group, ...] for the fields that hold rows."""
    result = dict(batch)
    for name in set(ROW_FIELDS) & set(batch):
        array = np.asarray(batch[name])
        result[name] = array.reshape(group, -1, *array.shape[1:]).swapaxes(0, 1)
    return result


def question_axis(batch: Mapping[str, Any]) -> dict[str, Any]:
    """[B * K, ...], the candidates of a question together -> [B, K, ...]."""
    rows = len(batch["row_ids"])
    result = dict(batch)
    for name in set(ROW_FIELDS) & set(batch):
        array = np.asarray(batch[name])
        result[name] = array.reshape(rows, -1, *array.shape[1:])
    return result


def flatten(batch: Mapping[str, Any], prefix: str = "") -> tuple[jax.Array, jax.Array, jax.Array]:
    """tokens [B*G, T], mask [B*G, T] (False in filler rows), lengths [B*G]; of the fields with this prefix."""
    tokens = batch[prefix + "tokens"]
    rows = tokens.shape[0] * tokens.shape[1]
    mask = batch[prefix + "mask"] & batch["valid"][:, None, None]
    return (
        tokens.reshape(rows, tokens.shape[2]),
        mask.reshape(rows, tokens.shape[2]),
        batch[prefix + "lengths"].reshape(rows),
    )


def valid_rows(batch: Mapping[str, Any]) -> jax.Array:
    """The number of pairs (questions) that count."""
    return jnp.sum(batch["valid"], dtype=jnp.float32)
