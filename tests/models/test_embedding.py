"""Token embeddings: the sorted gradient is the scattered one, on one device and on eight."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxalign.mesh import MeshConfig, make_mesh, shard_batch
from jaxalign.models import embedding
from jaxalign.models.embedding import token_embeddings
from jaxalign.target import compiling_for
from tests.training.cases import sft_case

IDS = jnp.asarray([[3, 0, 3, 7, 3, 3], [3, 9, 0, 3, 3, 3]])


def gradient(form, table, monkeypatch):
    monkeypatch.setattr(embedding, "embedding_form", lambda mesh=None: form)
    weights = jax.random.normal(jax.random.key(1), (*IDS.shape, table.shape[1])).astype(table.dtype)
    return jax.jit(jax.grad(lambda t: (token_embeddings(t, IDS) * weights).sum()))(table), weights


def test_each_row_gets_the_sum_of_what_its_tokens_get(monkeypatch):
    table = jax.random.normal(jax.random.key(0), (10, 5))
    found, weights = gradient("sorted", table, monkeypatch)
    expected = np.zeros((10, 5))
    np.add.at(expected, np.asarray(IDS), np.asarray(weights))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    # Added in the same order: the same bits.
    np.testing.assert_array_equal(found, gradient("scatter", table, monkeypatch)[0])


@pytest.mark.parametrize("form", ["scatter", "sorted"])
def test_sums_of_bfloat16_are_rounded_once(form, monkeypatch):
    table = jax.random.normal(jax.random.key(0), (10, 5)).astype(jnp.bfloat16)
    found, weights = gradient(form, table, monkeypatch)
    exact = np.zeros((10, 5), np.float32)
    np.add.at(exact, np.asarray(IDS), np.asarray(weights, np.float32))
    np.testing.assert_array_equal(found, exact.astype(jnp.bfloat16))


def test_a_cpu_scatters_and_no_other_backend_does():
    assert embedding.embedding_form() == "scatter"
    for backend in ("gpu", "tpu"):
        with compiling_for(SimpleNamespace(platform=backend)):
            assert embedding.embedding_form() == "sorted"


@pytest.mark.long
@pytest.mark.parametrize("form", ["scatter", "sorted"])
@pytest.mark.parametrize("axes", [{"data": 2, "fsdp": 2, "tensor": 2}, {"fsdp": 8}, {"data": 8}], ids=str)
def test_over_a_mesh_the_gradient_is_that_of_one_device(axes, form, devices, monkeypatch):
    monkeypatch.setattr(embedding, "embedding_form", lambda mesh=None: form)

    def gradient(mesh):
        loss, counts, trained, frozen, batch = sft_case(mesh)
        placed = shard_batch(batch, mesh)
        whole = jax.grad(lambda p: loss(p, frozen, placed, None, counts(placed))[0])
        return jax.jit(lambda p: whole(p)["embed"]["tokens"])(trained), trained["embed"]["tokens"]

    one, _ = gradient(make_mesh(MeshConfig(), devices))
    eight, table = gradient(make_mesh(MeshConfig(**axes), devices))
    assert table.sharding.spec == PartitionSpec(
        "tensor" if "tensor" in axes else None, "fsdp" if "fsdp" in axes else None
    )
    np.testing.assert_allclose(eight, one, atol=1e-5 * float(np.linalg.norm(one)))
