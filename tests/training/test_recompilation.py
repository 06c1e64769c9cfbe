"""Rows of many lengths share few programs, and none is compiled twice."""

import json
import random
from dataclasses import replace

import jax
import pytest

from jaxalign.llmdoctor.tfpo import train_tfpo
from jaxalign.training.core import setup
from jaxalign.training.core.loop import Loop, TrainConfig
from jaxalign.training.preference.dpo import train_dpo
from jaxalign.training.reward_model.trainer import train_reward
from jaxalign.training.rl.grpo import GRPOConfig, train_grpo
from jaxalign.training.rl.grpo_config import GRPOTrainConfig
from jaxalign.training.rl.on_policy import OnPolicyTrainer
from jaxalign.training.rl.ppo import train_ppo
from jaxalign.training.rl.ppo_config import PPOTrainConfig
from jaxalign.training.sft import train_sft


@pytest.fixture(scope="session")
def long_and_short(tmp_path_factory):
    """60 comparisons of 8 to 60 tokens."""
    draw, path = random.Random(0), tmp_path_factory.mktemp("data") / "pairs.jsonl"
    rows = [
        {"prompt": "p" * draw.randint(4, 24), "chosen": "a" * draw.randint(3, 34), "rejected": "xyz"}
        for _ in range(60)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


class Programs:
    """For each call of a function: the shapes of its batch, and how many programs were compiled."""

    def __init__(self, compiled):
        self.calls, self.compiled = [], compiled

    def watched(self, function, batch_at):
        def call(*arguments):
            self.compiled.clear()
            result = jax.block_until_ready(function(*arguments))
            batch = arguments[batch_at]
            leaves = jax.tree_util.tree_flatten_with_path(batch)[0]
            shapes = tuple((jax.tree_util.keystr(path), x.shape) for path, x in leaves)
            self.calls.append(((batch_at, shapes), len(self.compiled)))
            return result

        return call

    def check(self, *, most):
        """What was seen before is not compiled again, and there are at most so many programs."""
        # Else the event has another name, and nothing is seen.
        assert self.calls[0][1]
        seen = set()
        for shapes, compiled in self.calls:
            assert not (compiled and shapes in seen), shapes
            seen.add(shapes)
        assert 1 < len(seen) <= most
        assert len(self.calls) > 2 * len(seen)


MODES = {"padded": {}, "tokens": {"batch_size": 1, "batch_tokens": 512}, "packed": {"packing": True}}
TRAINERS = {"sft": train_sft, "reward": train_reward, "dpo": train_dpo, "tfpo": train_tfpo}
RUNS = [
    pytest.param(name, mode, marks=[] if (name, mode) == ("sft", "tokens") else pytest.mark.slow)
    for name in TRAINERS
    for mode in MODES
]


@pytest.mark.parametrize(("name", "mode"), RUNS)
def test_no_step_after_the_first_of_its_shape_compiles_anything(
    name, mode, configs, long_and_short, tmp_path, monkeypatch, compiled
):
    programs, place, fit = Programs(compiled), setup.on_mesh, Loop.fit
    last = []

    def placed(*arguments, **options):
        last[:] = [place(*arguments, **options)]
        return last[0]

    def fitted(self, state):
        update = programs.watched(lambda _, state, batch: self_update(state, batch), 0)
        self_update = self.update
        self.update = lambda state, batch: update(last, state, batch)
        return fit(self, state)

    monkeypatch.setattr(setup, "on_mesh", placed)
    monkeypatch.setattr(Loop, "fit", fitted)
    config = getattr(configs, name)(
        tmp_path / "run",
        data=replace(configs.data, train=(long_and_short,), max_length=64, validation_fraction=0.0),
        train=TrainConfig(**{"batch_size": 6, "steps": 36} | MODES[mode]),
    )
    TRAINERS[name](replace(config, run=replace(config.run, save_every=0, sample_every=0)))
    programs.check(most=8)
    if mode == "tokens":
        # Every width is seen in the first steps, and nothing is compiled from then on.
        widths = {dict(shapes)["[0].tokens"][-1] for (_, shapes), _ in programs.calls}
        assert not sum(number for _, number in programs.calls[len(widths) :])


@pytest.mark.slow
@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("name", ["ppo", "grpo"])
def test_rollouts_of_chance_lengths_are_scored_and_learnt_from_by_few_programs(
    name, packing, configs, long_and_short, tmp_path, monkeypatch, compiled
):
    programs = Programs(compiled)
    score_rows, passes = OnPolicyTrainer.score_rows, OnPolicyTrainer.passes
    monkeypatch.setattr(
        OnPolicyTrainer,
        "score_rows",
        lambda self, rows, score: score_rows(self, rows, programs.watched(score, 0)),
    )
    monkeypatch.setattr(
        OnPolicyTrainer,
        "passes",
        lambda self, number, data, step, **more: passes(
            self, number, data, programs.watched(step, 2), **more
        ),
    )
    data = replace(configs.data, train=(long_and_short,), max_prompt_length=32, validation_fraction=0.0)
    sizes = {"updates": 12, "prompts": 4, "minibatches": 2, "score_batch_size": 4, "packing": packing}
    config = configs.ppo(tmp_path / "run", data=data, train=PPOTrainConfig(**sizes))
    if name == "grpo":
        names = ("run", "model", "data", "optimizer", "reward", "sampling")
        config = GRPOConfig(**{n: getattr(config, n) for n in names}, train=GRPOTrainConfig(**sizes))
    config = replace(config, run=replace(config.run, save_every=0))
    (train_ppo if name == "ppo" else train_grpo)(config)
    # Prompts of 16 or 32 columns; and of their tokens and the completions' six kinds of parts, some of them.
    programs.check(most=12)
