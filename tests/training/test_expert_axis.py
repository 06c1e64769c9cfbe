"""Runs of a mixture of experts with `mesh.expert`: what one device does, also where another mesh goes on."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from jaxalign import models
from jaxalign.mesh import MeshConfig
from jaxalign.models.config import Mixture
from jaxalign.training.core.loop import TrainConfig
from jaxalign.training.core.optimizer import OptimizerConfig
from jaxalign.training.core.setup import ModelSource
from jaxalign.training.rl.ppo import train_ppo
from jaxalign.training.rl.ppo_config import CriticConfig
from jaxalign.training.sft import train_sft

EXPERTS = MeshConfig(data=2, expert=4)


@pytest.fixture(scope="module")
def folder(tiny_model_folder, byte_tokenizer, tmp_path_factory):
    """The tiny model, with four experts in each layer."""
    shape = replace(
        models.load_config(tiny_model_folder), family="mixtral", mixture=Mixture(experts=4, per_token=2)
    )
    live = models.create(shape, key=jax.random.key(0))
    return models.save_pretrained(live, tmp_path_factory.mktemp("mixture"), tokenizer=byte_tokenizer)


def rows_of(run, name="train/loss"):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row[name] for row in rows if name in row}


@pytest.mark.long
def test_a_run_goes_on_from_its_checkpoint_on_another_mesh_and_exports_what_one_device_does(
    folder, configs, tmp_path
):
    constant = OptimizerConfig(learning_rate=1e-2, schedule="constant", warmup_ratio=0.0)

    def run(name, mesh, steps, **settings):
        made = configs.sft(
            tmp_path / name,
            model=ModelSource(path=str(folder)),
            train=TrainConfig(batch_size=8, steps=steps),
            optimizer=constant,
            data=replace(configs.data, validation_fraction=0.0),
            mesh=mesh,
        )
        train_sft(replace(made, run=replace(made.run, sample_every=0, sample_rows=0, **settings)))
        return tmp_path / name

    one = run("one", MeshConfig(), 3)
    many = run("many", EXPERTS, 2)
    run("many", MeshConfig(fsdp=2, expert=2), 3, resume=True)
    assert (
        "fsdp=2, expert=2, context=1, tensor=1 where it was data=2, fsdp=1, expert=4"
        in (many / "run.log").read_text()
    )
    found, expected = rows_of(many), rows_of(one)
    assert found.keys() == expected.keys() == {1, 2, 3}
    np.testing.assert_allclose([*found.values()], [*expected.values()], rtol=1e-4)
    ours, theirs = (models.load_pretrained(run / "export").params for run in (many, one))
    # Adam magnifies rounding: parameters agree to a hundredth of a step.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), ours, theirs)


@pytest.mark.long
def test_sampler_and_trainer_of_a_mixture_agree(folder, configs, tmp_path):
    """PPO whose first update checks their log-probs of the same tokens."""
    made = configs.ppo(
        tmp_path / "run", model=ModelSource(path=str(folder)), critic=CriticConfig(shared_trunk=True)
    )
    train = replace(made.train, updates=1, prompts=16)
    train_ppo(replace(made, train=train, mesh=EXPERTS))
    (row,) = rows_of(tmp_path / "run", "rollout/logp_gap").values()
    assert 0 < row < 1e-5
