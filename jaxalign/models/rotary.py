"""Rotary positions: frequencies with their scaling, tables of cosines and sines, and the rotation of heads.

Two scalings depend on how long rows are. transformers looks at each call: one row beyond the trained length changes
the frequencies of all rows of its batch, and keys in a cache stay as they were turned. Here a token's numbers must not
depend on what stands beside it, nor change while a row grows: frequencies are those of rows of
`ModelConfig.max_positions` tokens, which is fixed before anything is compiled (`with_context`). For longrope that is
what transformers computes wherever its calls lie on the same side of the trained length as `max_positions` does; for
dynamic, where they are no longer than the trained length, or of `max_positions` tokens.
"""

import functools
import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float, Int

from jaxalign.errors import ModelError
from jaxalign.models.config import ModelConfig, RopeScaling, Rotation
from jaxalign.target import platform

Tables = tuple[jax.Array, jax.Array]


def with_context(config: ModelConfig, context: int, key: str = "context") -> ModelConfig:
    """The model for rows of at most `context` tokens; 0 keeps what its folder says.

    YaRN goes up to `factor` times the length that it stretches, longrope up to its folder's `max_position_embeddings`,
    dynamic anywhere, and all others up to `max_positions`.

    Raises:
      ModelError: longer rows than the model can read; it names `key`.
    """
    if not context:
        return config
    scaling, trained = config.rope_scaling, config.folder_positions or config.max_positions
    most = float(trained)
    if config.positions == "rope" and scaling.kind == "dynamic":
        most = math.inf
    elif config.positions == "rope" and scaling.kind == "yarn":
        most = max(most, scaling.factor * scaling.original_positions)
    if not 1 <= context <= most:
        raise ModelError(f"{key}={context}: the model can read rows of 1 to {most:.0f} tokens")
    return replace(config, max_positions=context, folder_positions=0 if context == trained else trained)


def check_length(config: ModelConfig, length: int) -> None:
    """Checks rows whose length is known before anything runs, where frequencies depend on it.

    Raises:
      ValueError: they are longer than those that the model was loaded for.
    """
    if config.positions == "rope" and config.rope_scaling.by_length and length > config.max_positions:
        raise ValueError(
            f"rows of {length} tokens, but the model was loaded for {config.max_positions}, on which its rotary "
            f"frequencies ({config.rope_scaling.kind}) depend; load it with context={length}"
        )


def rope_frequencies(size: int, theta: float, scaling: RopeScaling, positions: int) -> np.ndarray:
    """Inverse frequencies [size / 2], float64, after scaling, for rows of `positions` tokens at most.

    Source: as `transformers.modeling_rope_utils` computes them. yarn: arXiv:2309.00071; longrope: arXiv:2402.13753.
    """
    exponents = np.arange(0, size, 2, dtype=np.float64) / size
    inverse = 1.0 / theta**exponents
    original = scaling.original_positions
    if scaling.kind == "linear":
        return inverse / scaling.factor
    if scaling.kind == "llama3":
        wavelength = 2 * np.pi / inverse
        low = original / scaling.low_frequency_factor
        high = original / scaling.high_frequency_factor
        span = scaling.high_frequency_factor - scaling.low_frequency_factor
        smooth = (original / wavelength - scaling.low_frequency_factor) / span
        between = (1 - smooth) * inverse / scaling.factor + smooth * inverse
        return np.where(
            wavelength > low, inverse / scaling.factor, np.where(wavelength < high, inverse, between)
        )
    if scaling.kind == "yarn":
        low, high = (
            size * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))
            for turns in (scaling.beta_fast, scaling.beta_slow)
        )
        if scaling.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, size - 1)
        ramp = np.clip((np.arange(size // 2) - low) / (high - low or 0.001), 0, 1)
        return inverse / scaling.factor * ramp + inverse * (1 - ramp)
    if scaling.kind == "longrope":
        stretch = scaling.long_factor if positions > original else scaling.short_factor
        return inverse / np.asarray(stretch, np.float64)
    if scaling.kind == "dynamic":
        grown = scaling.factor * max(positions, original) / original - (scaling.factor - 1)
        return 1.0 / (theta * grown ** (size / (size - 2))) ** exponents
    return inverse


def attention_factor(scaling: RopeScaling) -> float:
    """What rotated queries and keys are multiplied by."""
    if scaling.kind not in ("yarn", "longrope"):
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.factor <= 1:
        return 1.0
    log = math.log(scaling.factor)
    if scaling.kind == "longrope":
        return math.sqrt(1 + log / math.log(scaling.original_positions))
    if scaling.mscale and scaling.mscale_all_dim:
        return (0.1 * scaling.mscale * log + 1) / (0.1 * scaling.mscale_all_dim * log + 1)
    return 0.1 * log + 1


def rope_tables(
    positions: Int[Array, "B T"], config: ModelConfig, rotation: Rotation
) -> tuple[Float[Array, "B T 1 R"], Float[Array, "B T 1 R"]]:
    """Cosines and sines, float32, R = rotary size / 2, of the layers with a rotation (see `config.layer_rotations`)."""
    if rotation == "none":
        ones = jnp.ones((*positions.shape, 1, config.rotary_size // 2), jnp.float32)
        return ones, jnp.zeros_like(ones)
    local = rotation == "local"
    theta = config.rope_theta_local if local else config.rope_theta
    scaling = RopeScaling() if local else config.rope_scaling
    frequencies = jnp.asarray(
        rope_frequencies(config.rotary_size, float(theta or 1.0), scaling, config.max_positions), jnp.float32
    )
    angles = positions[..., None].astype(jnp.float32) * frequencies
    cos, sin = jnp.cos(angles)[:, :, None, :], jnp.sin(angles)[:, :, None, :]
    scale = attention_factor(scaling)
    return (cos, sin) if scale == 1.0 else (cos * scale, sin * scale)


def rope_tables_apart(
    positions: Int[Array, "B T"], config: ModelConfig, rotation: Rotation
) -> tuple[Float[Array, "B T 1 R"], Float[Array, "B T 1 R"]]:
    """`rope_tables` of whole rows; on a CPU by a loop over two halves of the columns.

    XLA's CPU compiler computes sines and cosines again for each layer and head where it can; out of a loop it
    cannot (a barrier does not stop it). Elsewhere that costs less than the memory traffic of tables.
    """
    if platform(config.mesh) != "cpu" or positions.shape[1] % 2 or config.positions != "rope":
        return rope_tables(positions, config, rotation)
    halves = rearrange(positions, "b (half t) -> half b t", half=2)
    tables = jax.lax.map(lambda half: rope_tables(half, config, rotation), halves)
    return jax.tree.map(lambda x: rearrange(x, "half b t ... -> b (half t) ..."), tables)


def rotated(x: Float[Array, "B T N H"], tables: Tables, config: ModelConfig) -> Float[Array, "B T N H"]:
    """Queries or keys, rotated; themselves where the model has no rotary positions."""
    return rotate(x, tables, config.rotary_interleaved) if config.positions == "rope" else x


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def rotate(x: Float[Array, "B T N H"], tables: Tables, interleaved: bool = False) -> Float[Array, "B T N H"]:
    """Rotates the leading dimensions of each head: halves paired, or neighbours where `interleaved`."""
    cos, sin = tables
    half = cos.shape[-1]
    turning, rest = x[..., : 2 * half].astype(jnp.float32), x[..., 2 * half :]
    a, b = (
        (turning[..., 0::2], turning[..., 1::2])
        if interleaved
        else (turning[..., :half], turning[..., half:])
    )
    parts = (a * cos - b * sin, b * cos + a * sin)
    turned = jnp.stack(parts, -1).reshape(turning.shape) if interleaved else jnp.concatenate(parts, axis=-1)
    turned = turned.astype(x.dtype)
    return jnp.concatenate([turned, rest], axis=-1) if rest.shape[-1] else turned


def _rotate_forward(x: jax.Array, tables: Tables, interleaved: bool):
    return rotate(x, tables, interleaved), tables


def _rotate_backward(interleaved: bool, tables: Tables, d_out: jax.Array):
    # The transpose of a rotation turns back.
    cos, sin = tables
    return rotate(d_out, (cos, -sin), interleaved), None


rotate.defvjp(_rotate_forward, _rotate_backward)
