"""The generator samples with the policy in training, whose weights it lays out for decoding once a run."""

from types import SimpleNamespace

import jax
import pytest

from jaxalign import models
from jaxalign.mesh import MeshConfig, make_mesh
from jaxalign.rollout import SamplingConfig, decode
from jaxalign.training.core import setup
from jaxalign.training.core.generator import Generator

SHAPE = models.ModelConfig(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8,
    max_positions=64, bos_id=1, eos_ids=(2,), pad_id=0,
)  # fmt: skip
WORDS = SimpleNamespace(decode=str, batch_decode=lambda rows, **_: [str(row) for row in rows])
PROMPTS = [[3, 4], [5] * 9, [6, 7, 8]]


@pytest.fixture
def laid_out(monkeypatch):
    """One item for each time that weights are laid out for decoding."""
    seen, function = [], decode.decode_weights

    def run(*args):
        seen.append(function(*args))
        return seen[-1]

    monkeypatch.setattr(decode, "decode_weights", run)
    return seen


def opened(mesh, lora):
    model = setup.place_model(models.create(SHAPE, key=jax.random.key(0)), mesh)
    policy, trained, frozen = setup.policy_of(model, lora, mesh, key=jax.random.key(1))
    trained = jax.tree.map(lambda x: x + 0.1, trained)
    sampling = SamplingConfig(max_new_tokens=12, stop_tokens=())
    return Generator(policy, frozen, sampling, WORDS, jax.random.key(2), storage={"block": 4}), trained


@pytest.mark.long
@pytest.mark.parametrize(
    "lora", [models.LoraConfig(), models.LoraConfig(enabled=True, rank=2)], ids=["full", "lora"]
)
def test_an_update_lays_weights_out_once_and_its_samples_are_those_of_one_device(lora, laid_out, devices):
    generator, trained = opened(make_mesh(MeshConfig(fsdp=8), devices), lora)
    engine = generator.refresh(trained)
    assert laid_out == []
    # With an adapter in them they lie as without.
    for name in ("q_proj", "down_proj"):
        weight = engine.params["layers"][name]
        assert weight.addressable_shards[0].data.size == weight.size / 8
    shown = generator.samples(trained, PROMPTS, step=3)
    assert len(laid_out) == 1
    assert laid_out[0]["layers"][1]["q_proj"].is_fully_replicated
    alone, trained = opened(make_mesh(MeshConfig(), devices[:1]), lora)
    assert shown == alone.samples(trained, PROMPTS, step=3)
