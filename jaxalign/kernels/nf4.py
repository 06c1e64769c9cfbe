"""NF4: weights that do not learn as 4-bit numbers, 4.13 bits each with their scales (QLoRA, arXiv:2305.14314)."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxalign.kernels.frozen import Frozen

# Numbers that share a scale, along the inputs of a projection; and scales that share a unit, along its outputs.
BLOCK, GROUP = 64, 256
# Quantiles of the normal distribution in [-1, 1], with 0 among them: arXiv:2305.14314, appendix E.
LEVELS = np.array(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ],
    np.float32,
)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class NF4(Frozen):
    """A projection [K, M], or all layers of one [L, K, M], in blocks of 64 inputs with a scale each.

    The scales are integers too ("double quantization"): scale = offset + unit * integer.

    Attributes:
      codes: uint8 [*L, K / 64, 32, M]; input j of a block in the low half of byte j, input 32 + j in the high half.
      scales: int8 [*L, K / 64, M].
      units: float32 [*L, K / 64, M / G], each of G scales, which are at most 256.
      offset: float32 [*L], the mean of the scales.
      inputs: K, where the last block is not full.
      kind: name of the dtype that the numbers become where nothing else is asked for.
    """

    codes: Any
    scales: Any
    units: Any
    offset: Any
    inputs: int = field(metadata={"static": True})
    kind: str = field(default="float32", metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the numbers."""
        return (*self.codes.shape[:-3], self.inputs, self.codes.shape[-1])

    @property
    def dtype(self) -> Any:
        """What the numbers become where nothing else is asked for."""
        return jnp.dtype(self.kind)

    def astype(self, dtype: DTypeLike) -> jax.Array:
        """The numbers as a plain array."""
        units = jnp.repeat(self.units, self.scales.shape[-1] // self.units.shape[-1], axis=-1)
        scales = self.offset[..., None, None] + units * self.scales.astype(jnp.float32)
        codes = jnp.concatenate([self.codes & 15, self.codes >> 4], axis=-2)
        numbers = rearrange(_levels(codes) * scales[..., None, :], "... block k m -> ... (block k) m")
        return numbers[..., : self.inputs, :].astype(dtype)


def _levels(codes: jax.Array) -> jax.Array:
    """LEVELS[codes], by choices in place of a table, which accelerators would read number by number."""
    # Not `jnp.where`, whose constants XLA keeps beside a loop as arrays as large as the weight.
    values = [jnp.full(codes.shape, level, jnp.float32) for level in LEVELS]
    for bit in range(4):
        odd = (codes >> bit) & 1 == 1
        values = [jax.lax.select(odd, *pair) for pair in zip(values[1::2], values[::2], strict=True)]
    return values[0]


@partial(jax.jit, static_argnames="kind")
def quantized_nf4(x: Float[Array, "*L K M"], *, kind: str = "float32") -> NF4:
    """The nearest of the 16 levels, of a block whose largest number is 1; zeros stay zeros.

    Source: arXiv:2305.14314, section 3. The scales are rounded to 255 equal steps, not to an 8-bit float.
    """
    return jax.lax.map(partial(_matrix, kind=kind), x) if x.ndim == 3 else _matrix(x, kind=kind)


def _matrix(x: Float[Array, "K M"], *, kind: str) -> NF4:
    inputs, outputs = x.shape
    padded = jnp.pad(x.astype(jnp.float32), [(0, -inputs % BLOCK), (0, 0)])
    blocks = rearrange(padded, "(block k) m -> block k m", k=BLOCK)
    most = jnp.max(jnp.abs(blocks), axis=1)
    parts = blocks / jnp.where(most > 0, most, 1)[:, None]
    between = (LEVELS[1:] + LEVELS[:-1]) / 2
    codes = jnp.zeros(parts.shape, jnp.uint8)
    for middle in between:
        codes = codes + (parts > middle).astype(jnp.uint8)
    offset = jnp.mean(most)
    group = max(size for size in range(1, min(GROUP, outputs) + 1) if outputs % size == 0)
    groups = rearrange(most - offset, "block (group m) -> block group m", m=group)
    units = jnp.max(jnp.abs(groups), axis=-1) / 127
    scales = jnp.round(groups / jnp.where(units > 0, units, 1)[..., None]).astype(jnp.int8)
    half = BLOCK // 2
    return NF4(
        codes=codes[:, :half] | codes[:, half:] << 4,
        scales=rearrange(scales, "block group m -> block (group m)"),
        units=units,
        offset=offset,
        inputs=inputs,
        kind=kind,
    )
