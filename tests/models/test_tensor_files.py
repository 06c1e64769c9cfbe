"""Folders are read by slices and written one file at a time."""

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxalign import models
from jaxalign.errors import ModelError
from jaxalign.mesh import MeshConfig, make_mesh
from jaxalign.models.tensor_files import Stored


@pytest.fixture
def reads(monkeypatch):
    """The sizes of all slices that are read."""
    sizes: list[int] = []
    plain = Stored.__getitem__

    def counted(self, index):
        found = plain(self, index)
        sizes.append(found.size)
        return found

    monkeypatch.setattr(Stored, "__getitem__", counted)
    return sizes


def test_a_device_reads_its_part_alone_and_the_numbers_are_those_of_one_device(
    tiny_model_folder, reads, devices
):
    whole = models.load_pretrained(tiny_model_folder).params
    total, largest = sum(reads), max(reads)
    reads.clear()
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2), devices)
    split = models.load_pretrained(tiny_model_folder, mesh=mesh).params
    assert sum(reads) == total == sum(leaf.size for leaf in jax.tree.leaves(whole))
    assert max(reads) == largest / 4
    jax.tree.map(lambda one, other: np.testing.assert_array_equal(one, other), split, whole)


def test_a_tensor_of_the_wrong_shape_is_refused_before_any_number_is_read(tiny_model_folder, reads, tmp_path):
    tensors = load_file(tiny_model_folder / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    save_file(tensors | {name: tensors[name][:-1].copy()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((tiny_model_folder / "config.json").read_text())
    with pytest.raises(ModelError, match=rf"{name} has shape \[15, 32\], expected \[16, 32\]"):
        models.load_pretrained(tmp_path)
    assert reads == []


def test_a_model_that_lies_on_a_mesh_is_written_byte_for_byte_as_one_on_a_device(
    tiny_model_folder, tmp_path, devices
):
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2), devices)
    for name, options in (("one", {}), ("split", {"mesh": mesh})):
        model = models.load_pretrained(tiny_model_folder, **options)
        models.save_pretrained(model, tmp_path / name, max_shard_bytes=4096)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert len([name for name in files if name.endswith(".safetensors")]) > 2
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "split" / name).read_bytes(), name
