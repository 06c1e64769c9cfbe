"""Folders as large as the model: only slices that are held are read, and only after all heads are checked."""

import shutil
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxalign import models
from jaxalign.errors import ModelError
from jaxalign.mesh import MeshConfig, make_mesh
from jaxalign.models.tensor_files import Stored, outgoing
from tests.models.test_huggingface import GOLDEN

MESHES = [{"fsdp": 8}, {"fsdp": 4, "tensor": 2}, {"data": 2, "fsdp": 2, "tensor": 2}]


@pytest.fixture
def reads(monkeypatch):
    """(name, bytes) of everything that is read of tensors."""
    seen, plain = [], Stored.__getitem__

    def read(self, index):
        found = plain(self, index)
        seen.append((self.name, found.nbytes))
        return found

    monkeypatch.setattr(Stored, "__getitem__", read)
    return seen


def stored_bytes(folder):
    return sum(array.nbytes for array in load_file(folder / "model.safetensors").values())


# Phi-3 and GPT-2 fuse by rows, which slice as others do.
@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2"])
def test_each_number_is_read_once_for_all_devices_that_hold_it(family, devices, reads):
    mesh = make_mesh(MeshConfig(data=2, fsdp=4), devices)
    config = models.load_config(GOLDEN / family)
    assert config.hidden_size % 4 == 0
    params = models.load_pretrained(GOLDEN / family, mesh=mesh).params
    found = sum(size for _, size in reads)
    assert found == sum(x.nbytes for x in jax.tree.leaves(params))
    largest = max(size for _, size in reads)
    assert largest <= max(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(params))


def test_a_device_reads_its_own_slices_alone(devices, reads, monkeypatch):
    """As a process does whose only device is one of those of the mesh."""
    plain = jax.sharding.NamedSharding.addressable_devices_indices_map
    held = []

    def own(self, shape):
        found = plain(self, shape)
        held.append(found[devices[3]])
        return {devices[3]: held[-1]}

    monkeypatch.setattr(jax.sharding.NamedSharding, "addressable_devices_indices_map", own)
    monkeypatch.setattr(
        jax, "make_array_from_single_device_arrays", lambda shape, sharding, parts, dtype: parts[0]
    )
    monkeypatch.setattr("jaxalign.models.sharding.on_mesh", lambda params, *_: params)
    params = models.load_pretrained(GOLDEN / "llama", mesh=make_mesh(MeshConfig(fsdp=8), devices)).params
    assert {device for x in jax.tree.leaves(params) for device in x.devices()} == {devices[3]}
    assert sum(size for _, size in reads) == sum(x.nbytes for x in jax.tree.leaves(params))
    assert sum(size for _, size in reads) < 0.2 * stored_bytes(GOLDEN / "llama")


@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize("family", ["gpt_neox", "phi3", "gemma2"])
def test_a_mesh_holds_and_saves_the_same_bits(family, mesh, devices, tmp_path):
    on = make_mesh(MeshConfig(**mesh), devices)
    whole = models.load_pretrained(GOLDEN / family, param_dtype="bfloat16")
    parts = models.load_pretrained(GOLDEN / family, param_dtype="bfloat16", mesh=on)
    jax.tree.map(np.testing.assert_array_equal, parts.params, whole.params)
    for name, model in (("whole", whole), ("parts", parts)):
        models.save_pretrained(model, tmp_path / name, dtype="float32", max_shard_bytes=30_000)
    assert_same_files(tmp_path / "whole", tmp_path / "parts")


def assert_same_files(one: Path, other: Path) -> None:
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in other.iterdir())
    assert len(names) > 4
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def changed(folder, change):
    shutil.copytree(GOLDEN / "llama", folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return folder


def last_norm(tensors):
    tensors["model.norm.weight"] = np.zeros(31, np.float32)


def unexpected(tensors):
    tensors["model.extra"] = np.zeros(31, np.float32)


def integers(tensors):
    tensors["model.layers.1.mlp.up_proj.weight"] = tensors["model.layers.1.mlp.up_proj.weight"].astype(
        np.int8
    )


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda tensors: tensors.pop("lm_head.weight"), "missing tensor lm_head.weight"),
        (last_norm, r"model.norm.weight has shape \[31\], expected \[32\]"),
        (unexpected, "unexpected tensors for a llama model: model.extra"),
        (integers, "up_proj.weight has dtype I8, expected F64, F32, BF16, F16; quantized weights"),
    ],
)
def test_a_wrong_tensor_is_refused_before_a_number_is_read(change, expected, reads, tmp_path):
    with pytest.raises(ModelError, match=expected):
        models.load_pretrained(changed(tmp_path / "model", change))
    assert not reads


def test_a_wrong_trunk_of_a_reward_model_is_refused_before_its_head_is_read(reads, tmp_path):
    scalar = models.create_scalar_model(models.load_pretrained(GOLDEN / "llama"), key=jax.random.key(0))
    models.save_reward_model(scalar, tmp_path / "reward")
    tensors = load_file(tmp_path / "reward" / "model.safetensors")
    last_norm(tensors)
    save_file(tensors, tmp_path / "reward" / "model.safetensors")
    reads.clear()
    with pytest.raises(ModelError, match=r"model.norm.weight has shape \[31\]"):
        models.load_reward_model(tmp_path / "reward")
    assert not reads


@pytest.mark.parametrize("dtype", [np.float64, np.float16, ml_dtypes.bfloat16])
def test_files_of_any_float_are_read(dtype, tmp_path):
    def narrowed(tensors):
        tensors |= {name: array.astype(dtype) for name, array in tensors.items()}

    found = models.load_pretrained(changed(tmp_path / "model", narrowed)).params
    wanted = models.load_pretrained(GOLDEN / "llama").params
    jax.tree.map(
        lambda x, y: np.testing.assert_array_equal(x, np.asarray(y).astype(dtype).astype(np.float32)),
        found,
        wanted,
    )


def test_a_file_is_written_before_the_next_one_is_gathered(tmp_path, monkeypatch):
    model, seen = models.load_pretrained(GOLDEN / "llama"), []
    plain = models.huggingface.on_host
    monkeypatch.setattr(
        models.huggingface, "on_host", lambda *arguments: (seen.append("gather"), plain(*arguments))[1]
    )
    monkeypatch.setattr("safetensors.numpy.save_file", lambda held, *_, **__: seen.append(len(held)))
    models.save_pretrained(model, tmp_path / "saved", max_shard_bytes=20_000)
    files = [count for count in seen if count != "gather"]
    assert len(files) > 2
    # Embedding, last norm and head are gathered by `outgoing`.
    assert seen.count("gather") == sum(files) - 3
    assert seen.index(files[0]) <= files[0] < seen.count("gather")


def test_an_array_keeps_no_copy_of_what_was_gathered_from_it(devices):
    mesh = make_mesh(MeshConfig(fsdp=8), devices)
    leaf = jax.device_put(
        np.arange(16.0), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
    )
    np.testing.assert_array_equal(outgoing(leaf).fetch(), np.arange(16.0))
    assert leaf._npy_value is None
