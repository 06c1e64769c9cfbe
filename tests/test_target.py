"""Which device programs are compiled for."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp

from jaxalign.mesh import MeshConfig, make_mesh
from jaxalign.target import compiling_for, is_nvidia, memory_of, platform, target_device
from tests.fake_devices import H100


def test_the_mesh_goes_before_what_is_compiled_for_and_that_before_the_default_device(devices):
    mesh = make_mesh(MeshConfig(fsdp=2), devices[2:4])
    assert target_device() == jax.devices()[0]
    with jax.default_device(devices[1]):
        assert target_device() == devices[1]
        with compiling_for(H100):
            assert target_device() is H100 and platform() == "gpu"
            assert target_device(mesh) == devices[2] and platform(mesh) == "cpu"
    with jax.default_device("cpu"):
        assert target_device() == jax.devices("cpu")[0]


def test_what_was_traced_for_another_device_is_traced_again():
    @jax.jit
    def traced(x):
        return jnp.sin(x) if platform() == "gpu" else x

    def number():
        return traced.lower(jnp.float32(0)).as_text().count("stablehlo.sine")

    assert number() == 0
    with compiling_for(H100):
        assert number() == 1
    assert number() == 0


def test_a_device_that_can_only_be_compiled_for_is_known_by_its_kind():
    assert is_nvidia(H100)
    assert not is_nvidia(jax.devices()[0])

    def refuse():
        raise jax.errors.JaxRuntimeError("MemoryStats is only supported for addressable PjRt devices.")

    assert memory_of(SimpleNamespace(memory_stats=refuse)) == 0
    assert memory_of(SimpleNamespace(memory_stats=lambda: {"bytes_limit": 5})) == 5
