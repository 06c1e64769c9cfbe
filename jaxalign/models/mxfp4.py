"""Weights in MXFP4, as gpt-oss is published: numbers of 4 bits in blocks of 32 with one power of two.

Source: OCP Microscaling Formats (MX) v1.0, E2M1 with E8M0 scales; laid out as `transformers.integrations.mxfp4` reads.
"""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

# By the 4 bits: sign, exponent, mantissa.
_VALUES = np.asarray([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
VALUES = np.concatenate([_VALUES, -_VALUES])


@dataclass(frozen=True)
class Mxfp4:
    """The matrices [E, K, M] of a layer's experts, whose inputs K lie in blocks.

    Attributes:
      blocks: uint8 [E, M, K / 32, 16], two numbers a byte, the lower four bits first.
      scales: uint8 [E, M, K / 32], exponents of 2 from -127 on.
    """

    blocks: Any
    scales: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the matrices."""
        experts, outputs, groups, half = self.blocks.shape
        return experts, groups * half * 2, outputs

    @property
    def dtype(self) -> np.dtype:
        """That holds all numbers exactly."""
        return jnp.dtype("bfloat16")

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        """The numbers of a slice, float32."""
        experts, inputs, outputs = index
        everything = slice(None)
        packed = self.blocks.raw((experts, outputs, everything, everything))
        exponents = self.scales.raw((experts, outputs, everything)).astype(np.int32) - 127
        numbers = np.stack([VALUES[packed & 15], VALUES[packed >> 4]], axis=-1)
        numbers = np.ldexp(numbers.reshape(*packed.shape[:-1], -1), exponents[..., None])
        return numbers.reshape(*packed.shape[:2], -1)[..., inputs].swapaxes(1, 2)
