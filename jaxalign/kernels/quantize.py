"""Which weights of a model are quantized, and into what."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import jax

from jaxalign.errors import ModelError
from jaxalign.kernels.frozen import Frozen
from jaxalign.kernels.int8 import Int8, quantized
from jaxalign.kernels.nf4 import quantized_nf4

# As they are; the projections, embedding and head as `Int8`; the projections alone as `Int8` or `NF4`.
Weights = Literal["same", "int8", "int8_projections", "nf4"]


def quantizer_of(
    weights: Weights, names: Sequence[str], *, dtype: str = "float32"
) -> Callable[[Any], Frozen] | None:
    """What quantizes a leaf; None where it stays.

    Norms, biases, learned positions and the head of a scalar model always stay; so does what lies under "experts":
    models that guide the one to be decoded.

    Args:
      weights: which leaves are quantized, and how.
      names: the keys on the path of the leaf.
      dtype: what the numbers become again where nothing else is asked for.

    Raises:
      ModelError: the experts of a mixture, most of its weights: a product with them knows floats alone.
    """
    if weights == "same" or "experts" in names:
        return None
    if names[-1].startswith("experts_"):
        raise ModelError(
            f"the experts of a mixture cannot be kept in {weights}; expected weights as they are (same)"
        )
    if "layers" in names and names[-1].endswith("_proj"):
        return partial(quantized_nf4, kind=dtype) if weights == "nf4" else partial(quantized, axis=-2)
    if weights == "int8" and tuple(names[-2:]) in (("embed", "tokens"), ("head", "weight")):
        return partial(quantized, axis=-1)
    return None


def keys_of(path: Sequence[Any]) -> list[str]:
    """The keys of dicts on the path of a leaf."""
    return [str(part.key) for part in path if hasattr(part, "key")]


def quantize_params(params: Any, weights: Weights = "int8") -> Any:
    """The tree with `Frozen` leaves in place of those that `weights` names; those that are frozen already stay.

    `Int8` has a scale an output of a projection, and a scale a token of the embedding and the head. What is `NF4` or
    adapted becomes `Int8` where that is asked for.
    """

    def changed(path: Sequence[Any], leaf: Any) -> Any:
        if isinstance(leaf, Frozen) and (weights != "int8" or isinstance(leaf, Int8)):
            return leaf
        quantizer = quantizer_of(weights, keys_of(path), dtype=str(leaf.dtype))
        return leaf if quantizer is None else quantizer(leaf)

    return jax.tree_util.tree_map_with_path(changed, params, is_leaf=lambda x: isinstance(x, Frozen))
