"""Arrays that are stored in host memory while the accelerator does not use them."""

from typing import Any

import jax

HOST = "pinned_host"


def to_host(tree: Any) -> Any:
    """The same tree of arrays in page-locked memory of the host, laid out over the mesh as they were."""
    return jax.tree.map(lambda x: jax.device_put(x, x.sharding.with_memory_kind(HOST)), tree)


def on_device(tree: Any) -> Any:
    """The same tree with the arrays that lie in the host's memory copied to their devices.

    The copies are freed with the last reference to them; arrays that lie on a device already are given back.
    """

    def moved(x: jax.Array) -> jax.Array:
        if x.sharding.memory_kind != HOST:
            return x
        kind = next(iter(x.devices())).default_memory().kind
        return jax.device_put(x, x.sharding.with_memory_kind(kind))

    return jax.tree.map(moved, tree)
