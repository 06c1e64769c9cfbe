"""Runs called from Python: rows, optimizer, loss, callbacks and trackers that no YAML file can hold."""

import functools
import inspect
import json
import re
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxalign
from jaxalign import losses
from jaxalign.cli.main import main
from jaxalign.config import save_yaml
from jaxalign.data import DataConfig
from jaxalign.errors import ConfigError
from jaxalign.export.checkpoint_export import export_checkpoint
from jaxalign.llmdoctor.tfpo import train_tfpo
from jaxalign.losses.preference import PREFERENCE_LOSSES, ScoredRows
from jaxalign.runs import Callback, EarlyStopping
from jaxalign.training.core.optimizer import OptimizerConfig, make_optimizer
from jaxalign.training.preference.dpo import DPOLossConfig, check_pair_loss, train_dpo
from jaxalign.training.preference.objectives import batch_statistics, row_terms
from jaxalign.training.reward_model.trainer import RewardLossConfig, train_reward
from jaxalign.training.rl.actor_critic import _optimizer
from jaxalign.training.rl.grpo import train_grpo
from jaxalign.training.rl.grpo_config import GRPOConfig, GRPOLossConfig, GRPOTrainConfig
from jaxalign.training.rl.grpo_step import check_policy_loss, policy_terms
from jaxalign.training.rl.online_dpo import OnlineDPOConfig, train_online_dpo
from jaxalign.training.rl.ppo import train_ppo
from jaxalign.training.sft import SFTLossConfig, train_sft


def records(folder, name="metrics.jsonl"):
    """The records of a run, without wall-clock numbers."""
    rows = [json.loads(line) for line in (folder / name).read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


def rows_of(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def no_file(config):
    return replace(config, data=replace(config.data, train=()))


class Watch(Callback):
    """Notes what it is told, and ends the run after a step."""

    def __init__(self, until=0):
        self.until, self.events, self.weights = until, [], []

    def on_step(self, event):
        self.events.append(("step", event.step))
        self.weights.append(float(jax.tree.leaves(event.state.params)[0].sum()))
        if event.step == self.until:
            event.stop("it is enough")

    def on_eval(self, event):
        self.events.append(("eval", event.step))

    def on_save(self, event):
        # It is whole by then.
        assert (event.folder / "checkpoints" / str(event.step) / "_CHECKPOINT_METADATA").is_file()
        self.events.append(("save", event.step))

    def on_end(self, event):
        self.events.append(("end", event.step, event.total, (event.folder / "export").is_dir()))


@pytest.mark.parametrize("call", [train_sft, train_dpo, train_grpo], ids=lambda call: call.__name__)
def test_an_unknown_argument_is_named_with_those_that_the_call_has(call):
    config = inspect.signature(call).parameters["config"].annotation()
    names = r".*tokenizer.*, train_dataset, eval_dataset, eval_reward, optimizer, callbacks, trackers"
    with pytest.raises(
        TypeError, match=rf"^{call.__name__}\(\) got an .* 'modle'; expected config, {names}$"
    ):
        call(config, modle=None)


@pytest.fixture(scope="module")
def plain(configs, tmp_path_factory):
    """A DPO run as the command line makes it: its configuration and its result."""
    config = configs.dpo(tmp_path_factory.mktemp("plain") / "run")
    return config, train_dpo(config)


@pytest.mark.long
def test_live_rows_optimizer_and_loss_equal_to_the_named_ones_give_the_same_run(plain, tmp_path, pairs_file):
    config, wanted = plain
    seen = SimpleNamespace(logged=[], closed=0)
    tracker = SimpleNamespace(
        log=lambda step, values: seen.logged.append(step), close=lambda: seen.__dict__.update(closed=1)
    )
    watch = Watch()
    found = train_dpo(
        no_file(replace(config, run=replace(config.run, output=str(tmp_path / "run")))),
        train_dataset=rows_of(pairs_file),
        optimizer=make_optimizer(config.optimizer, 4)[0],
        loss=functools.partial(losses.dpo_loss, beta=0.1),
        callbacks=[watch],
        trackers=[tracker],
    )
    rates = "train/learning_rate"
    assert [{k: v for k, v in row.items() if k != rates} for row in records(wanted.folder)] == records(
        found.folder
    )
    for a, b in zip(jax.tree.leaves(wanted.model.params), jax.tree.leaves(found.model.params), strict=True):
        np.testing.assert_array_equal(a, b)
    assert watch.events == [
        ("eval", 0), ("step", 1), ("step", 2), ("eval", 2), ("save", 2), ("step", 3), ("step", 4), ("eval", 4),
        ("save", 4), ("end", 4, 4, True),
    ]  # fmt: skip
    # Each step's own weights, not those of the step that the device is at meanwhile.
    assert len(set(watch.weights)) == 4
    assert seen.closed and set(seen.logged) == {0, 1, 2, 3, 4}
    given = json.loads((found.folder / "metadata.json").read_text())["given"]
    assert given == {
        "callbacks": "Watch", "loss": "partial", "optimizer": "GradientTransformationExtraArgs",
        "trackers": "SimpleNamespace", "train_dataset": "list",
    }  # fmt: skip


@pytest.mark.long
def test_a_run_goes_on_only_with_what_it_was_given(configs, tmp_path, pairs_file):
    config = no_file(configs.sft(tmp_path / "run"))
    config = replace(config, run=replace(config.run, log_every=10))
    rows, watch = rows_of(pairs_file), Watch(until=3)
    rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows]
    first = train_sft(config, train_dataset=rows, callbacks=[watch])
    meta = json.loads((first.folder / "metadata.json").read_text())
    assert meta["stopped"] == {"step": 3, "reason": "it is enough"} and meta["finished"]
    assert {row["step"] for row in records(first.folder) if "train/loss" in row} == {1, 3}
    # Ended by a callback it is evaluated, saved and exported as at its last step.
    assert (
        ("eval", 3) in watch.events
        and ("save", 3) in watch.events
        and watch.events[-1] == ("end", 3, 4, True)
    )
    again = replace(config, run=replace(config.run, resume=True))
    with pytest.raises(ConfigError, match=r"pass them again: callbacks \(Watch\), train_dataset \(list\)"):
        train_sft(again)
    with pytest.raises(ConfigError, match="the run started without optimizer; do not pass it"):
        train_sft(again, train_dataset=rows, callbacks=[watch], optimizer=optax.sgd(0.1))
    with pytest.raises(ConfigError, match="train_dataset or the tokenizer has changed since the run started"):
        train_sft(again, train_dataset=rows[:20], callbacks=[watch])
    # What a callback has ended stays ended, until the run is made longer.
    resumed = Watch(until=3)
    assert train_sft(again, train_dataset=rows, callbacks=[resumed]).metrics == first.metrics
    assert not [event for event in resumed.events if event[0] == "step"]
    longer = replace(again, train=replace(again.train, steps=5))
    train_sft(longer, train_dataset=rows, callbacks=[resumed])
    assert [event for event in resumed.events if event[0] == "step"] == [("step", 4), ("step", 5)]


@pytest.mark.long
def test_on_policy_runs_take_live_rows_optimizers_and_callbacks(configs, tmp_path):
    rows = [{"prompt": f"q{i} ", "answer": "a"} for i in range(12)]
    seen = []

    def reward(prompts, completions, answer, **columns):
        seen.extend(answer)
        return [float(a in c) for c, a in zip(completions, answer, strict=True)]

    base = no_file(configs.ppo(tmp_path / "ppo"))
    watch = Watch(until=2)
    result = train_ppo(
        replace(base, reward=type(base.reward)()),
        reward=reward,
        train_dataset=rows,
        eval_dataset=rows[:2],
        loss=lambda logps, old, advantages, mask: 0.0 * logps + 3.0,
        optimizer={"policy": optax.sgd(0.0), "critic": optax.sgd(0.1)},
        callbacks=[watch],
    )
    assert set(seen) == {"a"}
    assert [e for e in watch.events if e[0] != "eval"] == [
        ("step", 1), ("step", 2), ("save", 2), ("end", 2, 4, True)
    ]  # fmt: skip
    assert result.metrics["policy/loss"] == pytest.approx(3.0)
    # The policy's optimizer stands still.
    assert result.metrics["policy/approx_kl"] == pytest.approx(0.0, abs=1e-6)


def test_policy_and_critic_may_be_given_an_optimizer_each_or_one_for_both(configs, tmp_path):
    config = configs.ppo(tmp_path)
    shared = replace(config, critic=replace(config.critic, shared_trunk=True))
    params = {"policy": jnp.zeros(()), "critic": jnp.zeros(())}
    grads = jax.tree.map(jnp.ones_like, params)

    def steps(config, given):
        optimizer, rates = _optimizer(config, given)
        changes, _ = optimizer.update(grads, optimizer.init(params), params)
        return [float(changes[name]) for name in ("policy", "critic")], set(rates)

    each = {"policy": optax.sgd(0.5), "critic": optax.sgd(0.25)}
    assert steps(config, each) == ([-0.5, -0.25], set())
    assert steps(config, optax.sgd(0.5)) == ([-0.5, -0.5], set())
    assert steps(shared, optax.sgd(0.5)) == ([-0.5, -0.5], set())
    assert steps(config, optax.constant_schedule(0.5))[1] == {"policy", "critic"}
    with pytest.raises(ConfigError, match="expected the keys policy and critic, got policy"):
        steps(config, {"policy": optax.sgd(0.5)})
    with pytest.raises(ConfigError, match=r"with critic\.shared_trunk policy and critic share one optimizer"):
        steps(shared, each)


@pytest.mark.long
def test_early_stopping_ends_a_real_run_and_a_schedule_may_be_given(configs, tmp_path):
    config = configs.reward(tmp_path / "run", optimizer=OptimizerConfig(name="sgd"), normalize=False)
    config = replace(config, train=replace(config.train, steps=20))
    result = train_reward(config, optimizer=lambda step: 0.0 * step, callbacks=[EarlyStopping(patience=2)])
    assert records(result.folder)[-1]["step"] == 4
    rates = {row["train/learning_rate"] for row in records(result.folder) if "train/learning_rate" in row}
    assert rates == {0.0}


@pytest.mark.long
def test_schedule_free_runs_evaluate_and_export_the_average(configs, tmp_path):
    """Its average is the mean of the steps' own points, which lies behind the newest of them."""
    rule = OptimizerConfig(name="schedule_free_adamw", schedule="constant", learning_rate=1e-2)
    watch = Watch()
    result = train_sft(configs.sft(tmp_path / "run", optimizer=rule), callbacks=[watch])
    exported = float(jax.tree.leaves(result.model.params)[0].sum())
    assert exported != watch.weights[-1]
    model = jaxalign.models.load_pretrained(result.folder / "export")
    np.testing.assert_array_equal(jax.tree.leaves(model.params)[0], jax.tree.leaves(result.model.params)[0])
    # A checkpoint is exported as the run is.
    assert export_checkpoint(result.folder, "4", output=tmp_path / "again").new
    again = jaxalign.models.load_pretrained(tmp_path / "again")
    jax.tree.map(np.testing.assert_array_equal, again.params, model.params)
    with pytest.raises(
        ConfigError, match="cannot be combined with ppo, which must sample from the weights that it trains"
    ):
        train_ppo(configs.ppo(tmp_path / "ppo", optimizer=rule))


def one_of_each(configs, folder):
    """(trainer, configuration, a function that it takes as its loss)."""
    ppo = configs.ppo(folder / "run")
    on_policy = {name: getattr(ppo, name) for name in ("run", "model", "data", "reward", "sampling")}
    prompts = GRPOTrainConfig(updates=1, prompts=4)
    return {
        "sft": (train_sft, configs.sft(folder), lambda logps, mask: -logps),
        "reward": (train_reward, configs.reward(folder), lambda good, bad: bad - good),
        "dpo": (train_dpo, configs.dpo(folder), lambda a, b, c, d: b - a),
        "kto": (
            train_dpo,
            configs.dpo(folder, loss=DPOLossConfig(name="kto")),
            lambda policy, ref, desirable, kl: policy - ref - kl,
        ),
        "tfpo": (
            train_tfpo,
            configs.tfpo(folder),
            lambda logps, rewards, log_values, mask, terminated: logps.sum(1) + log_values.sum(1),
        ),
        "ppo": (train_ppo, ppo, lambda logps, old, advantages, mask: -logps * advantages),
        "grpo": (
            train_grpo,
            GRPOConfig(**on_policy, train=prompts),
            lambda logps, old, advantages, mask: -logps * advantages,
        ),
        "gspo": (
            train_grpo,
            GRPOConfig(**on_policy, train=prompts, loss=GRPOLossConfig(name="gspo")),
            lambda logps, old, advantages, mask: -logps.sum(1) * advantages,
        ),
        "online-dpo": (train_online_dpo, OnlineDPOConfig(**on_policy), lambda a, b, c, d: b - a),
    }


ALL = ("sft", "reward", "dpo", "kto", "tfpo", "ppo", "grpo", "gspo", "online-dpo")


@pytest.mark.parametrize("name", ALL)
def test_a_loss_that_cannot_be_called_is_refused_before_anything_is_read(configs, tmp_path, name):
    train, config, _ = one_of_each(configs, tmp_path)[name]
    with pytest.raises(
        ConfigError, match=r"loss: it is called as loss\(.*\[B.* and must return \[B"
    ) as error:
        train(config, loss=lambda x: x)
    assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match=r"must return floats \[B.*it returned tuple"):
        train(config, loss=lambda *arrays, **_: (arrays[0],))
    with pytest.raises(ConfigError, match="loss: expected a function, got 'dpo'"):
        train(config, loss="dpo")
    assert not list(tmp_path.iterdir())


OWN = """
import jax.numpy as jnp

def dpo(chosen, rejected, ref_chosen, ref_rejected):
    return -jnp.log(1 / (1 + jnp.exp(-0.1 * (chosen - rejected - ref_chosen + ref_rejected))))

def one(x):
    return x

def nothing(rewards, group_size, mask):
    return 0.0 * rewards

def short(rewards, group_size, mask):
    return rewards.reshape(-1, group_size).mean(1)
"""


@pytest.fixture
def own_file(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    return tmp_path / "own.py"


@pytest.mark.parametrize("name", [name for name in ALL if name != "tfpo"])
def test_a_loss_of_a_file_is_checked_as_a_live_one_is(configs, tmp_path, own_file, name):
    train, config, own = one_of_each(configs, tmp_path / "runs")[name]

    def with_function(value):
        return replace(config, loss=replace(config.loss, function=value))

    nowhere = tmp_path / "nowhere.py"
    for value, message in {
        f"{nowhere}:one": f"loss.function '{nowhere}:one': no such file {nowhere}",
        f"{own_file}:none": f"loss.function '{own_file}:none': {own_file} has no function none",
        "own.py": "loss.function 'own.py': expected module:function or file.py:function",
    }.items():
        with pytest.raises(ConfigError, match=re.escape(message)):
            train(with_function(value))
    with pytest.raises(
        ConfigError, match=r"loss\.function: it is called as loss\(.*\[B.*; one raised"
    ) as error:
        train(with_function(f"{own_file}:one"))
    assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match=r"loss= and loss\.function=.*own\.py:one: choose one"):
        train(with_function(f"{own_file}:one"), loss=own)
    assert not (tmp_path / "runs").exists()


@pytest.mark.long
def test_the_command_line_trains_by_a_loss_of_a_file_and_goes_on_with_it(plain, tmp_path, own_file):
    config, wanted = plain
    save_yaml(config, tmp_path / "dpo.yaml")

    def dpo(*more):
        return main(["dpo", f"--config={tmp_path / 'dpo.yaml'}", f"--run.output={tmp_path / 'run'}", *more])

    assert dpo(f"--loss.function={own_file}:dpo") == 0
    ours, theirs = (
        [row["train/loss"] for row in records(folder) if "train/loss" in row]
        for folder in (tmp_path / "run", wanted.folder)
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    metadata = json.loads((tmp_path / "run" / "metadata.json").read_text())
    assert metadata["given"] == {"loss": "dpo"}
    assert metadata["config"]["loss"]["function"] == f"{own_file}:dpo"
    with pytest.raises(ConfigError, match=r"loss\.function"):
        train_dpo(replace(config, run=replace(config.run, output=str(tmp_path / "run"), resume=True)))
    assert dpo(f"--loss.function={own_file}:dpo", "--resume") == 0


@pytest.mark.long
def test_own_advantages_are_what_grpo_learns_from(configs, tmp_path, own_file):
    """Advantages of 0 leave nothing to learn."""
    train, config, _ = one_of_each(configs, tmp_path)["grpo"]
    loss = replace(config.loss, advantage_function=f"{own_file}:nothing")
    run = replace(config.run, output=str(tmp_path / "run"), eval_every=0)
    result = train(replace(config, run=run, loss=loss))
    assert result.metrics["grad_norm"] == 0.0
    assert json.loads((result.folder / "metadata.json").read_text())["given"] == {"advantages": "nothing"}


def test_own_advantages_that_cannot_be_called_are_refused(configs, tmp_path, own_file):
    train, config, _ = one_of_each(configs, tmp_path / "runs")["grpo"]

    def with_loss(**changes):
        return replace(config, loss=replace(config.loss, **changes))

    called = r"advantages\(rewards\[B\], group_size, mask\[B\]\)"
    with pytest.raises(ConfigError, match=rf"advantages: it is called as {called} and must return \[B\]"):
        train(config, advantages=lambda rewards: rewards)
    with pytest.raises(ConfigError, match=rf"loss.advantage_function: {called} must return floats \[B\]"):
        train(with_loss(advantage_function=f"{own_file}:short"))
    with pytest.raises(
        ConfigError, match=r"loss\.advantage_function 'nowhere\.py:f': no such file nowhere\.py"
    ):
        train(with_loss(advantage_function="nowhere.py:f"))
    with pytest.raises(
        ConfigError, match=r"loss\.advantages is an option of the advantages .* place advantages= takes"
    ):
        train(with_loss(advantages="batch"), advantages=losses.gpg_advantages)
    with pytest.raises(ConfigError, match=r"loss\.beta: with loss\.name=reinforce\+\+ the KL is part of"):
        train(with_loss(name="reinforce++", beta=0.1), advantages=losses.gpg_advantages)
    assert not (tmp_path / "runs").exists()


def test_an_option_that_an_own_loss_would_not_be_told_is_refused(configs, tmp_path):
    refused = {
        "sft": SFTLossConfig(label_smoothing=0.1),
        "reward": RewardLossConfig(use_margin=True),
        "dpo": DPOLossConfig(label_smoothing=0.1),
    }
    for name, section in refused.items():
        train, config, own = one_of_each(configs, tmp_path)[name]
        with pytest.raises(ConfigError, match="is an option of the loss that the configuration names"):
            train(replace(config, loss=section), loss=own)


@pytest.mark.long
def test_an_own_loss_of_completions_is_what_grpo_minimises(configs, tmp_path):
    """A loss without a gradient moves nothing."""
    train, config, _ = one_of_each(configs, tmp_path)["gspo"]
    config = replace(config, run=replace(config.run, output=str(tmp_path / "run"), eval_every=0))
    result = train(config, loss=lambda logps, old, advantages, mask: 0.0 * logps.sum(1) + 3.0)
    assert result.metrics["loss"] == pytest.approx(3.0)
    assert result.metrics["grad_norm"] == 0.0 and "policy/clip_fraction" not in result.metrics


@pytest.mark.parametrize("name", list(PREFERENCE_LOSSES))
def test_every_named_pair_loss_can_be_given_as_a_function(name):
    """With its options bound to it, it gives what its name does: own losses are called with the same arrays."""
    rng = np.random.default_rng(0)
    config = DPOLossConfig(name=name, label_smoothing=0.1 if name == "exo" else 0.0)
    logps = [jnp.asarray(rng.normal(size=(4, 2)) - 3, jnp.float32) for _ in range(3)]
    desirable = jnp.asarray(rng.random((4, 2)) < 0.5)
    rows = ScoredRows(logps[0], logps[1], desirable, jnp.ones(4, bool), logps[2])

    def own(*arrays, **named):
        assert named.keys() == statistics.keys()
        return config.spec.function(*arrays, **config.arguments, **named)

    statistics = batch_statistics(rows, config)
    if name != "exo":  # which cannot be named without an option
        check_pair_loss(own, config)
    np.testing.assert_array_equal(
        row_terms(rows, config, statistics, own), row_terms(rows, config, statistics)
    )


@pytest.mark.parametrize("name", ["grpo", "gspo", "gmpo", "rloo", "cispo", "reinforce"])
def test_every_named_policy_loss_is_called_as_an_own_one_is(name):
    rng = np.random.default_rng(0)
    config, mask = GRPOLossConfig(name=name), jnp.arange(5) < jnp.asarray([[5], [3]])
    logps, old, advantages = (
        jnp.where(mask, jnp.asarray(rng.normal(size=(2, 5)), jnp.float32), 0.0) for _ in range(3)
    )
    advantages = jnp.where(mask, advantages[:, :1], 0.0)
    low, high = config.recipe.clip
    clip = {"cispo": {"cap": high}, "reinforce": {}}.get(name, {"clip_low": low, "clip_high": high})
    own = functools.partial(getattr(losses, f"{name}_loss"), **clip)
    check_policy_loss(own, config)
    batch = SimpleNamespace(old_logps=old, advantages=advantages, mask=mask)
    np.testing.assert_allclose(
        policy_terms(config, logps, batch, own), policy_terms(config, logps, batch), rtol=1e-6
    )


def test_a_live_model_comes_with_its_tokenizer(configs, tmp_path, plain):
    _, result = plain
    with pytest.raises(ConfigError, match="model: passed without tokenizer; a live model needs both"):
        train_sft(configs.sft(tmp_path / "run"), model=result.model)
    with pytest.raises(ConfigError, match="tokenizer: passed without policy"):
        train_dpo(configs.dpo(tmp_path / "run"), tokenizer=result.tokenizer)
    with pytest.raises(
        ConfigError, match=r"policy: expected a live model, got 'folder'; set model\.path to load a folder"
    ):
        train_dpo(configs.dpo(tmp_path / "run"), policy="folder", tokenizer=result.tokenizer)


def test_everything_a_script_needs_is_named_by_the_package():
    assert jaxalign.train_dpo is train_dpo
    assert jaxalign.DataConfig is DataConfig
    assert {name for name in jaxalign.__all__ if getattr(jaxalign, name) is None} == set()
    with pytest.raises(AttributeError, match="no attribute 'train_dop'"):
        _ = jaxalign.train_dop
