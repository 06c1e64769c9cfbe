"""What decoding reads of a device's memory."""

import jax
import pytest

from jaxalign import models
from jaxalign.mesh import MeshConfig, make_mesh
from jaxalign.models.sharding import on_mesh
from jaxalign.rollout import Sampler

VOCABULARY, WIDTH, LAYERS, HEADS, SIZE = 64, 32, 2, 4, 8


def generated(*, tied, mesh=None):
    """A sampler that has drawn 9 tokens for each of 4 prompts of 5, one block after the prompts' own token."""
    config = models.ModelConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=48, num_layers=LAYERS, num_heads=HEADS,
        num_kv_heads=HEADS, head_dim=SIZE, max_positions=32, tied_head=tied, mesh=mesh,
    )  # fmt: skip
    model = models.create(config, key=jax.random.key(0))
    if mesh is not None:
        definition, params = models.split(model)
        model = models.merge(definition, on_mesh(params, mesh))
    sampler = Sampler(model, block=8)
    prompts = [list(range(1, 6))] * 4
    sampler.generate(prompts, max_new_tokens=9, key=jax.random.key(1), stop_tokens=())
    return sampler, models.params_count(model.params)


@pytest.mark.parametrize("tied", [True, False])
def test_a_step_reads_all_weights_but_the_embeddings_and_the_whole_cache(tied):
    sampler, parameters = generated(tied=tied)
    weights = 4 * (parameters - (0 if tied else VOCABULARY * WIDTH))
    # Prompts of 5 tokens lie in 8 columns; 8 more tokens in 16.
    cache = 2 * 4 * LAYERS * 4 * HEADS * 16 * SIZE
    assert sampler.traffic.bytes == 8 * (weights + cache)
    assert sampler.traffic.seconds > 0


def test_the_next_call_counts_anew():
    sampler, _ = generated(tied=True)
    before = sampler.traffic.bytes
    sampler.generate([[1]], max_new_tokens=1, key=jax.random.key(1), stop_tokens=())
    assert before > 0 and sampler.traffic.bytes == 0  # the prompt's own token alone


@pytest.mark.long
def test_on_a_mesh_it_is_what_one_device_reads(devices):
    one, parameters = generated(tied=True)
    mesh = make_mesh(MeshConfig(data=2, tensor=2), devices)
    many, _ = generated(tied=True, mesh=mesh)
    # Norms are whole on each device; half of the matrices, and half of the heads of half of the rows, are not.
    norms = (2 * LAYERS + 1) * WIDTH
    cache = one.traffic.bytes - 8 * 4 * parameters
    assert many.traffic.bytes == 8 * 4 * ((parameters - norms) // 2 + norms) + cache // 4
