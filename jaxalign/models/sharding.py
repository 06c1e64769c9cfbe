"""Logical axes of each parameter; `jaxalign.mesh` says where a logical axis lives."""

from typing import Any

import jax

# By the last key of a leaf; stacked layers get `layers` in front.
_AXES: dict[str, tuple[str | None, ...]] = {
    "q_proj": ("embed", "heads"),
    "k_proj": ("embed", "kv_heads"),
    "v_proj": ("embed", "kv_heads"),
    "o_proj": ("heads", "embed"),
    "gate_proj": ("embed", "mlp"),
    "up_proj": ("embed", "mlp"),
    "down_proj": ("mlp", "embed"),
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

    def axes(path, leaf) -> tuple[str | None, ...]:
        # Of an `Int8` the path ends in an attribute: integers and scales lie as the array would.
        names = [str(p.key) for p in path if hasattr(p, "key")]
        own = _AXES.get(names[-1], ())
        stacked = ("layers",) if "layers" in names else ()
        known = (*stacked, *own)
        if len(known) != leaf.ndim:
            return (None,) * leaf.ndim
        return (
            known
            if len(names) == len(path)
            else tuple(a if n > 1 else None for a, n in zip(known, leaf.shape, strict=True))
        )

    return jax.tree_util.tree_map_with_path(axes, params)
