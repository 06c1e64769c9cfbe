"""Arrays in the host's memory: the same values, laid out the same way, and back."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxalign.host_memory import HOST, on_device, to_host
from jaxalign.mesh import MeshConfig, make_mesh


def kinds(tree):
    return {x.sharding.memory_kind for x in jax.tree.leaves(tree)}


def test_arrays_of_a_mesh_go_to_the_host_and_come_back_as_they_were(devices):
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2), devices)
    split = jax.device_put(np.arange(64.0).reshape(8, 8), NamedSharding(mesh, P("fsdp", "tensor")))
    tree = {"split": split, "alone": jnp.arange(3)}
    device_kind = devices[0].default_memory().kind
    assert kinds(tree) == {device_kind} != {HOST}
    away = to_host(tree)
    assert kinds(away) == {HOST}
    assert away["split"].sharding.spec == split.sharding.spec
    back = on_device(away)
    assert kinds(back) == {device_kind}
    assert back["split"].sharding == split.sharding
    jax.tree.map(np.testing.assert_array_equal, back, tree)


def test_what_lies_on_the_device_is_not_copied():
    tree = {"a": jnp.ones(3)}
    assert on_device(tree)["a"] is tree["a"]
    assert on_device({}) == to_host({}) == {}
