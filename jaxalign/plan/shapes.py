"""Shapes with places on a mesh, which stand for a model's arrays."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxalign import models
from jaxalign.mesh import DEFAULT_RULES, replicated, tree_shardings
from jaxalign.models.transformer import parameter_shapes


def parameters_of(shape: models.ModelConfig, mesh: Mesh) -> Any:
    """Shapes of a model's leaves on the mesh."""
    tree = jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s, jnp.dtype(shape.param_dtype)),
        parameter_shapes(shape),
        is_leaf=lambda s: isinstance(s, tuple),
    )
    return placed(tree, mesh)


def placed(tree: Any, mesh: Mesh) -> Any:
    """Shapes of a model's leaves, or of some, laid out by their logical axes."""
    return with_shardings(tree, tree_shardings(tree, models.param_logical_axes(tree), mesh, DEFAULT_RULES))


def everywhere(tree: Any, mesh: Mesh) -> Any:
    """Shapes of arrays that every device has."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh)), tree)


def key_on(mesh: Mesh) -> jax.ShapeDtypeStruct:
    """The shape of a random key."""
    return everywhere(jax.eval_shape(lambda: jax.random.key(0)), mesh)


def with_shardings(tree: Any, shardings: Any) -> Any:
    """Shapes with these shardings."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree, shardings
    )
