"""Logical axes of each parameter (`jaxalign.mesh` says where a logical axis lives), and parameters onto devices."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.tree_util import KeyPath, SequenceKey

from jaxalign.kernels.quantize import Weights, keys_of, quantizer_of
from jaxalign.mesh import DEFAULT_RULES, Rules, tree_shardings
from jaxalign.models.tensor_files import Leaf

# By the last key of a leaf; where layers are stacked, `layers` is in front.
_AXES: dict[str, tuple[str | None, ...]] = {
    "q_proj": ("embed", "heads"),
    "k_proj": ("embed", "kv_heads"),
    "v_proj": ("embed", "kv_heads"),
    "o_proj": ("heads", "embed"),
    "gate_proj": ("embed", "mlp"),
    "up_proj": ("embed", "mlp"),
    "down_proj": ("mlp", "embed"),
    "experts_gate_bias": ("experts", "mlp"),
    "experts_up_bias": ("experts", "mlp"),
    "experts_down_bias": ("experts", None),
    "router": ("embed", None),
    "experts_gate": ("experts", "expert_embed", "mlp"),
    "experts_up": ("experts", "expert_embed", "mlp"),
    "experts_down": ("experts", "mlp", "expert_embed"),
    "q_proj_bias": ("heads",),
    "k_proj_bias": ("kv_heads",),
    "v_proj_bias": ("kv_heads",),
    "gate_proj_bias": ("mlp",),
    "up_proj_bias": ("mlp",),
    "tokens": ("vocab", "embed"),
    "weight": ("vocab", "embed"),
    "positions": (None, "embed"),
    "hidden": ("embed", "mlp"),
}


def param_logical_axes(params: Any) -> Any:
    """The tree of `params` with a tuple of logical axis names in place of each array; None is replicated."""

    def axes(path: KeyPath, leaf: jax.Array) -> tuple[str | None, ...]:
        # Of `Frozen` weights the path ends in attributes: integers and scales lie as the array would.
        names, attribute = keys_of(path), getattr(path[-1], "name", None)
        own = _AXES.get(names[-1], ())
        if attribute == "codes":  # of NF4, whose bytes of a block stay together
            own = (own[0], None, own[1])
        known = (*(("layers",) if _stacked(path) else ()), *own)
        if len(known) != len(leaf.shape):
            return (None,) * len(leaf.shape)
        if attribute is None:
            return known
        return tuple(a if n > 1 else None for a, n in zip(known, leaf.shape, strict=True))

    return jax.tree_util.tree_map_with_path(axes, params)


def _stacked(path: KeyPath) -> bool:
    """Whether a leaf holds all layers; those of `decode_weights` are a list."""
    below = [path[i + 1] for i, part in enumerate(path[:-1]) if getattr(part, "key", None) == "layers"]
    return bool(below) and not isinstance(below[0], SequenceKey)


def on_mesh(params: Any, mesh: Mesh, rules: Rules | None = None) -> Any:
    """Parameters laid out on a mesh by their logical axes, each device with its part; what lies so already stays."""
    return jax.device_put(
        params, tree_shardings(params, param_logical_axes(params), mesh, rules or DEFAULT_RULES)
    )


def to_device(
    params: Any,
    dtype: str,
    *,
    mesh: Mesh | None = None,
    rules: Rules | None = None,
    weights: Weights = "same",
) -> Any:
    """Parameters in files as JAX arrays of the parameter dtype, one after the other; the normalizer stays float32.

    Args:
      params: a tree of `tensor_files.Leaf`. Of each only what the devices of this process hold is read, one device's
        part at a time.
      dtype: of what is not quantized.
      mesh: the devices, each of which gets its part alone; None for the default device.
      rules: logical -> mesh axes, where not the default table.
      weights: what is quantized, from the files' numbers as they are; see `quantize_params`.
    """

    def convert(path: KeyPath, leaf: Leaf, sharding: NamedSharding | None = None) -> Any:
        names = keys_of(path)
        quantizer = quantizer_of(weights, names, dtype=dtype)
        wanted = leaf.dtype if quantizer else jnp.dtype("float32" if "normalizer" in names else dtype)
        placed = _placed(leaf, wanted, sharding)
        # The floats must be gone before the next ones come.
        return jax.block_until_ready(quantizer(placed)) if quantizer else placed

    if mesh is None:
        return jax.tree_util.tree_map_with_path(convert, params)
    shardings = tree_shardings(params, param_logical_axes(params), mesh, rules or DEFAULT_RULES)
    return on_mesh(jax.tree_util.tree_map_with_path(convert, params, shardings), mesh, rules)


def _placed(leaf: Leaf, dtype: np.dtype, sharding: NamedSharding | None) -> jax.Array:
    if sharding is None:
        return jax.device_put(leaf.read(tuple(slice(0, size) for size in leaf.shape), dtype))
    # Not `jax.make_array_from_callback`, which has the parts of all devices on the host at once, and reads a part
    # again for each device that holds it.
    holders: dict[tuple[tuple[int, int], ...], list[jax.Device]] = {}
    for device, index in sharding.addressable_devices_indices_map(leaf.shape).items():
        bounds = tuple(one.indices(size)[:2] for one, size in zip(index or (), leaf.shape, strict=True))
        holders.setdefault(bounds, []).append(device)
    parts = []
    for bounds, devices in holders.items():
        part = leaf.read(tuple(slice(*bound) for bound in bounds), dtype)
        parts += jax.block_until_ready([jax.device_put(part, device) for device in devices])
    return jax.make_array_from_single_device_arrays(leaf.shape, sharding, parts, dtype=dtype)
