"""What a training step moves between devices and holds on each, read off the compiled program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import models
from jaxalign.logprobs import linear_logprobs
from jaxalign.mesh import MeshConfig, make_mesh, shard_batch, tree_shardings
from jaxalign.models import embedding
from jaxalign.models.transformer import parameter_shapes
from jaxalign.plan.collectives import collectives
from jaxalign.training.core.scoring import CausalPolicy
from jaxalign.training.sft import DemonstrationBatch, SFTLossConfig, make_sft_loss, sft_counts

ROWS, LENGTH, WIDTH, VOCABULARY = 8, 64, 32, 128


def lowered_loss(devices, axes, *, gradient):
    """The loss of supervised fine-tuning, or its gradient, for parameters on the mesh."""
    mesh = make_mesh(MeshConfig(**axes), devices)
    config = models.ModelConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=48, num_layers=10, num_heads=4, num_kv_heads=4,
        head_dim=8, max_positions=LENGTH, mesh=mesh, attention="plain", remat="full",
    )  # fmt: skip
    shapes = jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32),
        parameter_shapes(config),
        is_leaf=lambda x: isinstance(x, tuple),
    )
    places = tree_shardings(shapes, models.param_logical_axes(shapes), mesh)
    mask = np.arange(LENGTH) > np.zeros((ROWS, 1))
    batch = DemonstrationBatch(
        tokens=np.zeros((ROWS, LENGTH), np.int32),
        lengths=np.full(ROWS, LENGTH, np.int32),
        mask=mask,
        valid=np.ones(ROWS, bool),
        weights=mask.astype(np.float32),
    )
    loss = make_sft_loss(CausalPolicy(models.Definition(config)), SFTLossConfig())

    def whole(params, batch):
        return loss(params, {}, batch, None, sft_counts(batch))[0]

    program = jax.jit(jax.grad(whole) if gradient else whole, in_shardings=(places, None))
    return program.lower(shapes, shard_batch(batch, mesh))


def moved(lowered, kind, *, in_loop=None):
    """Bytes that the collectives of a kind move, and the largest array among them."""
    found = [one for one in collectives(lowered.compile().as_text()) if one.kind == kind]
    found = [one for one in found if in_loop in (None, one.in_loop)]
    return sum(one.total_bytes for one in found), max((one.bytes for one in found), default=0)


@pytest.mark.parametrize("gradient", [False, True])
def test_parameters_are_gathered_and_activations_of_the_whole_batch_are_not_summed(gradient, devices):
    step = lowered_loss(devices, {"fsdp": 8}, gradient=gradient)
    # The activations of all rows inside the MLP, of one layer.
    assert moved(step, "all-reduce")[1] < 4 * ROWS * LENGTH * WIDTH
    assert moved(step, "all-gather")[0] > 0


def test_devices_that_share_the_tokens_of_a_row_exchange_them_for_heads_and_gather_none(devices):
    step = lowered_loss(devices, {"fsdp": 2, "context": 4}, gradient=False)
    # Of the activations of a device's rows, all tokens: of no product is the input gathered.
    assert moved(step, "all-gather")[1] < 4 * (ROWS // 2) * LENGTH * WIDTH
    assert moved(step, "all-reduce")[1] < 4 * (ROWS // 2) * LENGTH * WIDTH // 4
    # Queries, keys and values (4 heads of 8) to heads and the output back, in each of 10 layers.
    exchanged = 10 * 4 * (4 * (ROWS // 2) * LENGTH * WIDTH // 4)
    assert exchanged <= moved(step, "all-to-all", in_loop=True)[0] < 1.1 * exchanged


def test_a_device_holds_its_tokens_of_a_row_alone(devices):
    def temporaries(axes):
        return lowered_loss(devices, axes, gradient=True).compile().memory_analysis().temp_size_in_bytes

    assert temporaries({"context": 4}) < 0.5 * temporaries({})


@pytest.mark.parametrize("axes", [{"tensor": 8}, {"fsdp": 2, "tensor": 4}], ids=str)
def test_no_chunk_of_the_head_gathers_its_vocabulary(axes, devices):
    mesh = make_mesh(MeshConfig(**axes), devices)
    rows = shard_batch(np.zeros((ROWS, LENGTH), np.int32), mesh)
    hidden = jax.ShapeDtypeStruct((ROWS, LENGTH, WIDTH), jnp.float32)
    head = jax.ShapeDtypeStruct((VOCABULARY, WIDTH), jnp.float32)
    places = tree_shardings({"weight": head}, models.param_logical_axes({"weight": head}), mesh)["weight"]

    def loss(head, hidden):
        return linear_logprobs(hidden, head, rows, chunk_size=4, mesh=mesh).logps.sum()

    program = jax.jit(jax.grad(loss, argnums=(0, 1)), in_shardings=(places, rows.sharding)).lower(
        head, hidden
    )
    assert moved(program, "all-gather", in_loop=True) == (0, 0)


def test_the_gradient_of_the_embedding_holds_no_token_of_another_device_in_full(devices, monkeypatch):
    monkeypatch.setattr(embedding, "embedding_form", lambda mesh: "sorted")  # as on accelerators
    mesh = make_mesh(MeshConfig(fsdp=8), devices)
    ids = shard_batch(np.zeros((ROWS, LENGTH), np.int32), mesh)
    table = jax.ShapeDtypeStruct((VOCABULARY, WIDTH), jnp.float32)
    places = tree_shardings({"tokens": table}, models.param_logical_axes({"tokens": table}), mesh)["tokens"]
    weights = jax.device_put(np.ones((ROWS, LENGTH, WIDTH), np.float32), ids.sharding)

    def loss(table, weights):
        return (embedding.token_embeddings(table, ids, mesh) * weights).sum()

    program = jax.jit(jax.grad(loss), in_shardings=(places, None), out_shardings=places).lower(table, weights)
    for kind in ("all-gather", "all-reduce", "reduce-scatter"):
        assert moved(program, kind)[1] < 4 * ROWS * LENGTH * WIDTH // 2, kind
    # A device's tokens in full, and its columns of all.
    assert program.compile().memory_analysis().temp_size_in_bytes < 4 * 4 * ROWS * LENGTH * WIDTH // 8
