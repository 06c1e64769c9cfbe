"""Where devices lie on a mesh, and which axes split what."""

from types import SimpleNamespace

import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxalign.errors import ConfigError
from jaxalign.mesh import (
    ROLLOUT_RULES,
    MeshConfig,
    make_mesh,
    over_slices,
    partition_spec,
    row_shards,
    slices_of,
)


class Device(SimpleNamespace):
    """A device that can stand in a mesh."""

    __hash__ = object.__hash__
    __eq__ = object.__eq__


def sliced(*sizes, platform="cpu"):
    """Devices of several slices, as `jax.devices()` has them on several TPU slices."""
    return [
        [
            Device(
                id=100 * number + i,
                slice_index=number,
                platform=platform,
                device_kind=platform,
                process_index=number,
                coords=[i % 4, i // 4, 0],
                core_on_chip=0,
            )
            for i in range(size)
        ]
        for number, size in enumerate(sizes)
    ]


def test_only_rows_cross_slices():
    grid = over_slices((4, 2, 1, 2), sliced(8, 8))
    assert grid.shape == (4, 2, 1, 2)
    assert [{device.slice_index for device in part.flat} for part in grid] == [{0}, {0}, {1}, {1}]
    assert sorted(device.id for device in grid.flat) == [*range(8), *range(100, 108)]
    part = over_slices((2, 3, 1, 1), sliced(8, 8))
    assert [[device.id for device in one.flat] for one in part] == [[0, 1, 2], [100, 101, 102]]


@pytest.mark.parametrize(
    "axes",
    [{"data": 2, "fsdp": 16}, {"data": 4, "fsdp": 4, "tensor": 2}, {"data": 2, "fsdp": 8, "tensor": 2}],
)
def test_a_mesh_of_two_slices_of_tpus_has_all_their_devices(axes):
    devices = [device for one in sliced(16, 16, platform="tpu") for device in one]
    mesh = make_mesh(MeshConfig(**axes), devices)
    assert {name: mesh.shape[name] for name in axes} == axes
    assert set(map(id, mesh.devices.flat)) == set(map(id, devices))
    assert {device.slice_index for device in mesh.devices[: axes["data"] // 2].flat} == {0}


def test_hosts_of_gpus_are_no_slices():
    for platform, number in (("tpu", 2), ("gpu", 1)):
        # However JAX lists them.
        devices = [device for pair in zip(*sliced(4, 4, platform=platform), strict=True) for device in pair]
        assert [len(one) for one in slices_of(devices)] == [8 // number] * number


@pytest.mark.parametrize(
    ("shape", "sizes", "message"),
    [
        ((1, 8, 1, 1), (8, 8), r"^mesh\.data=1: there are 2 TPU slices, .* be a multiple of 2"),
        ((2, 8, 1, 2), (8, 16), r"^mesh\.data=2: each of 2 TPU slices would need 16 devices, but one has 8"),
    ],
)
def test_a_replica_that_would_cross_slices_is_refused(shape, sizes, message):
    with pytest.raises(ConfigError, match=message):
        over_slices(shape, sliced(*sizes))


def test_a_context_that_is_no_power_of_two_is_refused():
    with pytest.raises(ValueError, match=r"^mesh\.context must be a power of two, got 6$"):
        MeshConfig(context=6)
    with pytest.raises(ValueError, match=r"^mesh\.context must be a positive number"):
        MeshConfig(context=0)


def test_the_rest_of_the_devices_become_replicas(devices):
    mesh = make_mesh(MeshConfig(data=-1, context=2, tensor=2), devices)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 1, "expert": 1, "context": 2, "tensor": 2}
    with pytest.raises(
        ConfigError, match=r"8 devices are not divisible by fsdp x expert x context x tensor = 12"
    ):
        make_mesh(MeshConfig(data=-1, fsdp=3, context=4), devices)


def test_experts_are_split_over_their_axis_and_all_else_as_over_fsdp(devices):
    mesh = make_mesh(MeshConfig(fsdp=2, expert=4), devices)
    assert partition_spec(("batch", "length", None), (8, 16, 8), mesh) == PartitionSpec(
        ("fsdp", "expert"), None, None
    )
    assert partition_spec(("embed", "mlp"), (16, 8), mesh) == PartitionSpec(("fsdp", "expert"), None)
    experts = ("experts", "expert_embed", "mlp")
    assert partition_spec(experts, (8, 16, 8), mesh) == PartitionSpec("expert", "fsdp", None)
    assert partition_spec(experts, (8, 16, 8), mesh, ROLLOUT_RULES) == PartitionSpec(None, None, None)
    assert row_shards(mesh) == row_shards(mesh, ROLLOUT_RULES) == 8


def test_context_splits_tokens_and_parameters_in_training_and_rows_in_rollouts(devices):
    mesh = make_mesh(MeshConfig(fsdp=2, context=4), devices)
    assert partition_spec(("batch", "length", None), (4, 16, 8), mesh) == PartitionSpec(
        "fsdp", "context", None
    )
    assert partition_spec(("embed", "mlp"), (16, 8), mesh) == PartitionSpec(("fsdp", "context"), None)
    # What one of them divides alone is whole.
    assert partition_spec(("embed", "mlp"), (12, 8), mesh) == PartitionSpec(None, None)
    assert row_shards(mesh) == 2
    assert row_shards(mesh, ROLLOUT_RULES) == 8
    assert np.prod([*mesh.shape.values()]) == 8
