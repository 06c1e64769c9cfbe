"""PPO: what the checklist of published details asks for."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxalign import models
from jaxalign.errors import ConfigError, UserError
from jaxalign.mesh import MeshConfig, make_mesh
from jaxalign.models.flops import Pass
from jaxalign.rollout import SamplingConfig
from jaxalign.runs import Run, records
from jaxalign.training.core import setup
from jaxalign.training.core.optimizer import OptimizerConfig
from jaxalign.training.core.reward_source import RewardSource
from jaxalign.training.core.setup import ModelSource
from jaxalign.training.reward_model.trainer import train_reward
from jaxalign.training.rl import actor_critic
from jaxalign.training.rl.actor_critic import build
from jaxalign.training.rl.gae_inputs import Outcome, RolloutScores, advantages_of
from jaxalign.training.rl.kl_controller import NEGATIVE_UPDATES, KLConfig, negative_streak, next_coefficient
from jaxalign.training.rl.ppo import Trainer, train_ppo
from jaxalign.training.rl.ppo_config import CriticConfig, PPOLossConfig, PPOTrainConfig
from tests.training import cases

# Half of all tokens end a completion.
STOPS_EARLY = SamplingConfig(max_new_tokens=6, num_samples=2, stop_tokens=tuple(range(128)))


def scored(mask, logps=0.0, ref=0.0, values=0.0):
    """(mask, scores of rows)."""
    mask = jnp.asarray(mask, bool)
    logps, ref, values = (jnp.where(mask, x, 0.0) for x in (logps, ref, values))
    return mask, RolloutScores(
        logps=logps,
        ref_logps=ref,
        values=values,
        entropy=jnp.zeros(mask.shape),
        next_values=jnp.full(len(mask), 9.0),
    )


def compute(rows, scores, *, coefficient=0.0, truncated=None, whiten_rewards=False, **loss):
    settings = PPOLossConfig(**({"whiten_advantages": False, "lam": 1.0} | loss))
    mask, known = rows
    outcome = Outcome(
        scores=jnp.asarray(scores, jnp.float32),
        token_rewards=jnp.zeros(mask.shape),
        truncated=jnp.zeros(len(mask), bool) if truncated is None else jnp.asarray(truncated),
    )
    options = {"kl": KLConfig(), "loss": settings, "whiten_rewards": whiten_rewards}
    advantages, returns, metrics = advantages_of(known, mask, outcome, jnp.float32(coefficient), **options)
    return {"advantages": advantages, "returns": returns}, metrics


def test_the_score_lands_on_the_last_token_and_kl_on_every_token():
    rows = scored([[0, 1, 1, 1, 0], [0, 0, 1, 0, 0]], logps=-1.0, ref=-1.5)
    data, metrics = compute(rows, [0.7, -1.9], coefficient=0.1)
    # Returns are sums of what follows: the score and -0.1 * 0.5 a token.
    np.testing.assert_allclose(data["returns"], [[0, 0.55, 0.6, 0.65, 0], [0, 0, -1.95, 0, 0]], atol=1e-6)
    np.testing.assert_allclose(metrics["objective/kl"], (1.5 + 0.5) / 2, rtol=1e-6)
    np.testing.assert_allclose(metrics["objective/rlhf_reward"], (-0.2 + 0.7 - 1.9) / 2, rtol=1e-5)


def test_what_follows_a_truncated_row_is_bootstrapped_only_on_request():
    rows = scored([[0, 1, 1], [0, 1, 1]])
    plain, _ = compute(rows, [1.0, 1.0], truncated=[True, False])
    np.testing.assert_allclose(plain["returns"][0], plain["returns"][1])
    carried, _ = compute(rows, [1.0, 1.0], truncated=[True, False], bootstrap_truncated=True)
    np.testing.assert_allclose(carried["returns"][:, 2], [10.0, 1.0])


def test_whitened_rewards_keep_their_mean():
    rows = scored(np.ones((8, 1)))
    scores = np.arange(8.0)
    data, _ = compute(rows, scores, whiten_rewards=True)
    returns = np.asarray(data["returns"])[:, 0]
    np.testing.assert_allclose(returns.mean(), scores.mean(), rtol=1e-5)
    np.testing.assert_allclose(returns.std(ddof=1), 1.0, rtol=1e-5)


def test_whitened_advantages_have_mean_zero_over_valid_tokens():
    mask = np.asarray([[0, 1, 1, 1], [0, 1, 0, 0]])
    data, _ = compute(scored(mask), [1.0, -3.0], whiten_advantages=True)
    valid = np.asarray(data["advantages"])[mask.astype(bool)]
    np.testing.assert_allclose([valid.mean(), valid.std(ddof=1)], [0, 1], atol=1e-5)


def test_rows_in_which_nothing_counts_change_nothing():
    dropped = scored([[1, 1, 1], [0, 0, 0]], logps=-1.0, ref=-2.0, values=0.3)
    alone, expected = compute(
        scored(np.ones((1, 3)), logps=-1.0, ref=-2.0, values=0.3), [1.0], coefficient=0.1
    )
    data, metrics = compute(dropped, [1.0, 0.0], coefficient=0.1)
    np.testing.assert_allclose(data["advantages"][0], alone["advantages"][0], rtol=1e-6)
    for name in expected:
        np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-6, err_msg=name)


def test_the_adaptive_controller_moves_by_a_fifth_of_the_batch_at_most():
    config = KLConfig(controller="adaptive", target=6.0, horizon=100)
    assert next_coefficient(config, 0.1, 60.0, 10) == pytest.approx(0.1 * 1.02)
    assert next_coefficient(config, 0.1, 0.0, 10) == pytest.approx(0.1 * 0.98)
    assert next_coefficient(config, 0.1, 6.6, 10) == pytest.approx(0.1 * 1.01)
    assert next_coefficient(KLConfig(), 0.1, 60.0, 10) == 0.1


def metrics_of(folder):
    return list(records.read(folder / "metrics.jsonl"))


@pytest.mark.long
def test_the_first_ratio_is_one_and_sampler_and_trainer_agree(configs, tmp_path):
    sampling = SamplingConfig(max_new_tokens=6, num_samples=2, temperature=0.7)
    train_ppo(configs.ppo(tmp_path / "run", sampling=sampling))
    for row in metrics_of(tmp_path / "run"):
        assert row["policy/first_ratio"] == pytest.approx(1.0, abs=1e-5)
        assert row["rollout/logp_gap"] < 1e-4
    assert row["policy/steps"] == 4
    # The reference is the policy as it started, at the same temperature: no KL before the first update, some after.
    kls = [row["objective/kl"] for row in metrics_of(tmp_path / "run")]
    assert kls[0] == pytest.approx(0.0, abs=1e-4)
    assert min(abs(kl) for kl in kls[1:]) > 1e-3


@pytest.mark.long
def test_a_reference_of_its_own_is_what_the_kl_is_measured_to(configs, tmp_path, byte_tokenizer):
    start = models.load_pretrained(configs.model.path)
    other = models.create(start.config, key=jax.random.key(9))
    models.save_pretrained(other, tmp_path / "reference", tokenizer=byte_tokenizer)
    config = configs.ppo(tmp_path / "run", reference=ModelSource(path=str(tmp_path / "reference")))
    train_ppo(replace(config, train=replace(config.train, updates=1)))
    assert abs(metrics_of(tmp_path / "run")[0]["objective/kl"]) > 1e-3


@pytest.mark.slow
def test_a_penalty_of_zero_that_is_not_monitored_needs_no_reference(configs, tmp_path, monkeypatch):
    train = PPOTrainConfig(updates=1, prompts=4, epochs=1, minibatches=1, score_batch_size=8)
    plain = configs.ppo(tmp_path / "plain", train=train, kl=KLConfig(coefficient=0.0))
    expected = train_ppo(plain)
    held, update = [], Trainer.update
    monkeypatch.setattr(
        Trainer, "update", lambda self, number: held.append(self.reference) or update(self, number)
    )
    # A folder that is not there is not missed.
    found = train_ppo(
        configs.ppo(
            tmp_path / "run",
            train=train,
            kl=KLConfig(coefficient=0.0, monitor=False),
            reference=ModelSource(path="nowhere"),
        )
    )
    assert held == [{}]
    assert "objective/kl" in expected.metrics and "objective/kl_per_token" in expected.metrics
    for name, value in expected.metrics.items():
        if name.startswith(("objective/kl", "eval/kl")) and name != "objective/kl_coefficient":
            assert name not in found.metrics
        elif not name.startswith("time/"):
            assert found.metrics[name] == pytest.approx(value, rel=1e-5, abs=1e-6), name


def test_a_penalty_is_measured_whether_it_is_monitored_or_not():
    assert KLConfig(coefficient=0.1, monitor=False).measured and KLConfig(coefficient=0.0).measured
    assert not KLConfig(coefficient=0.0, monitor=False).measured


@pytest.mark.long
def test_a_mean_ratio_over_the_limit_skips_the_step(configs, tmp_path):
    # A critic whose first values are not 0, so that advantages differ along a row.
    critic = CriticConfig(optimizer=configs.optimizer, head=models.HeadConfig())
    loss = PPOLossConfig(ratio_limit=1.0001)
    sharp = {"optimizer": OptimizerConfig(learning_rate=1.0), "loss": loss, "critic": critic}
    train_ppo(configs.ppo(tmp_path / "run", **sharp))
    # The first step of a rollout has ratio 1 and is taken; after it the policy is far away.
    assert 0 < metrics_of(tmp_path / "run")[0]["skipped"] < 1


def test_a_kl_that_stays_negative_is_warned_of_once():
    streak, warnings = 0, []
    for kl in [-1.0, 0.1, *[-1.0] * (NEGATIVE_UPDATES + 2)]:
        streak, warning = negative_streak(streak, kl)
        warnings.append(warning)
    assert [bool(w) for w in warnings] == [False] * (NEGATIVE_UPDATES + 1) + [True, False, False]
    assert "objective/kl was below" in warnings[NEGATIVE_UPDATES + 1]


def same_bits(ours, theirs) -> bool:
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


@pytest.mark.long
@pytest.mark.parametrize(
    "critic", [CriticConfig(), CriticConfig(shared_trunk=True)], ids=["separate", "shared_trunk"]
)
def test_only_the_critic_learns_in_its_warm_up(critic, configs, tmp_path, monkeypatch):
    states, plain = [], Trainer.update

    def update(self, number):
        states.append(jax.device_get(self.state))
        found = plain(self, number)
        states.append(jax.device_get(self.state))
        return found

    def of_policy(state):
        """Its parameters, and what the optimizer holds of it: moments, counts."""
        parts = jax.tree.leaves(state.opt_state, is_leaf=lambda x: isinstance(x, optax.PartitionState))
        return state.params["policy"], [p.inner_states["policy"] for p in parts if hasattr(p, "inner_states")]

    monkeypatch.setattr(Trainer, "update", update)
    optimizer = replace(configs.optimizer, weight_decay=0.5)
    critic = replace(critic, warmup_updates=2, optimizer=optimizer)
    loss = PPOLossConfig(entropy_weight=0.1)
    config = configs.ppo(tmp_path / "run", critic=critic, optimizer=optimizer, loss=loss)
    train_ppo(config, reward=lambda p, c, **_: [3.0] * len(p))
    first, after, last = states[0], states[3], states[-1]
    assert same_bits(of_policy(first), of_policy(after))
    assert len(of_policy(first)[1]) == 1
    assert not same_bits(first.params["critic"], after.params["critic"])
    losses = [row["value/loss"] for row in metrics_of(tmp_path / "run")]
    assert losses[1] < losses[0]
    # Then it learns, and its schedule begins: two updates of two minibatches, twice.
    assert not same_bits(after.params["policy"], last.params["policy"])
    counts = {int(x) for x in jax.tree.leaves(of_policy(last)[1]) if np.ndim(x) == 0}
    assert counts == {2 * 2 * 2}


def test_a_shared_trunk_with_a_warm_up_learns_after_it_as_one_without(configs):
    """The optimizer in two parts clips and moves as the one chain does, while none of them stands still."""
    sharp = replace(
        configs.optimizer, schedule="constant", warmup_ratio=0.0, max_grad_norm=0.5, weight_decay=0.1
    )
    critic = CriticConfig(shared_trunk=True, warmup_updates=1)
    whole, parts = (
        actor_critic._optimizer(configs.ppo("x", critic=c, optimizer=sharp))[0]
        for c in (replace(critic, warmup_updates=0), critic)
    )
    draw = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    params = {"policy": {"w": jnp.asarray(draw)}, "critic": {"score": jnp.asarray(draw[0])}}
    ours, theirs = (o.update(params, o.init(params), params)[0] for o in (parts, whole))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def some_rewards(prompts, completions, *, completion_ids, columns):
    """Every third completion has none."""
    del prompts, completions, columns
    return [None if i % 3 == 2 else float(len(ids) % 3) for i, ids in enumerate(completion_ids)]


ONE_STEP = {
    "train": PPOTrainConfig(
        updates=3, prompts=4, epochs=1, minibatches=1, score_batch_size=4, eval_prompts=0
    ),
    "loss": PPOLossConfig(bootstrap_truncated=True, entropy_weight=0.01),
    "kl": KLConfig(coefficient=0.1, controller="adaptive", target=0.5, horizon=50),
}


@pytest.mark.long
@pytest.mark.parametrize(
    "changes",
    [
        {},
        pytest.param({"critic": CriticConfig(shared_trunk=True)}, marks=pytest.mark.slow),
        pytest.param({"train": replace(ONE_STEP["train"], packing=True)}, marks=pytest.mark.slow),
        pytest.param({"kl": KLConfig(coefficient=0.0, monitor=False)}, marks=pytest.mark.slow),
    ],
    ids=["plain", "shared", "packed", "no_reference"],
)
def test_one_step_a_rollout_judges_it_itself_and_learns_the_same(changes, configs, tmp_path, monkeypatch):
    asked, plain = [], Trainer.score_rows

    def score_rows(self, rows, score):
        found = plain(self, rows, score)
        asked.append("all" if isinstance(found, RolloutScores) else "reference")
        return found

    monkeypatch.setattr(Trainer, "score_rows", score_rows)
    settings = ONE_STEP | changes
    reads = settings["kl"].measured
    source = RewardSource(functions=("x.py:f",), whiten=True)
    train_ppo(configs.ppo(tmp_path / "once", reward=source, **settings), reward=some_rewards)
    # Policy and critic only before the first update, to hold the sampler's log-probs against the policy's.
    assert asked == ["all", *(["reference"] * 2 if reads else [])]
    monkeypatch.setattr(Trainer, "one_step", False)
    train_ppo(configs.ppo(tmp_path / "twice", reward=source, **settings), reward=some_rewards)
    assert asked[-3:] == ["all"] * 3
    once, twice = (metrics_of(tmp_path / name) for name in ("once", "twice"))
    assert [row.keys() for row in once] == [row.keys() for row in twice]
    for ours, theirs in zip(once, twice, strict=True):
        for name in (n for n in ours if not n.startswith("time/")):
            assert ours[name] == pytest.approx(theirs[name], rel=2e-4, abs=2e-5), name
    assert 0 < once[-1]["rollout/logp_gap"] < 1e-4 and once[-1]["rollout/valid_rows"] < 1
    assert len({row.get("objective/kl_coefficient") for row in once}) == (3 if reads else 1)


@pytest.mark.long
def test_a_rollout_of_which_the_loss_reads_no_row_moves_nothing(configs, tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "passes", lambda *args, **options: {"policy/steps": 0.0})
    metrics = train_ppo(configs.ppo(tmp_path / "run", **ONE_STEP)).metrics
    assert metrics["policy/steps"] == 0 and "objective/kl" not in metrics
    assert metrics["objective/kl_coefficient"] == 0.1


def test_one_step_finds_a_sampler_that_disagrees_before_it_is_made(configs, tmp_path, monkeypatch):
    steps, plain = [], Trainer.passes
    monkeypatch.setattr(
        Trainer, "passes", lambda *args, **options: steps.append(1) or plain(*args, **options)
    )
    train = replace(ONE_STEP["train"], logp_tolerance=1e-12)
    with pytest.raises(UserError, match="the log-probs of sampler and trainer differ"):
        train_ppo(configs.ppo(tmp_path / "run", train=train))
    assert not steps


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"train": replace(ONE_STEP["train"], minibatches=2)}, False),
        ({"train": replace(ONE_STEP["train"], epochs=2)}, False),
        # Advantages are whitened over the rollout, which a micro-batch is not.
        ({"train": replace(ONE_STEP["train"], accumulation_steps=2)}, False),
        ({"loss": PPOLossConfig(importance_cap=2.0)}, False),
    ],
)
def test_a_rollout_is_judged_before_its_steps_where_they_are_several(changes, expected, configs, tmp_path):
    config = configs.ppo(tmp_path, **({"train": ONE_STEP["train"]} | changes))
    assert Trainer.one_step.fget(SimpleNamespace(config=config)) == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    "critic",
    [CriticConfig(shared_trunk=True), CriticConfig(init="reward")],
    ids=["shared", "reward"],
)
def test_a_reward_model_and_other_critics_work(critic, configs, tmp_path):
    reward = train_reward(configs.reward(tmp_path / "reward"))
    source = RewardSource(model=str(reward.folder))
    train = PPOTrainConfig(
        updates=1, prompts=4, epochs=1, minibatches=2, score_batch_size=8, accumulation_steps=2
    )
    train_ppo(configs.ppo(tmp_path / "run", reward=source, critic=critic, train=train))
    assert np.isfinite(metrics_of(tmp_path / "run")[0]["objective/score"])


def test_a_critic_that_was_a_reward_model_computes_as_the_policy_does(configs, tmp_path):
    config = configs.ppo(tmp_path / "run", critic=CriticConfig(init="reward"))
    config = replace(config, model=replace(config.model, compute_dtype="bfloat16"))
    mesh, key = make_mesh(MeshConfig()), jax.random.key(0)
    with Run.open(config.run, config, "ppo") as run:
        policy, tokenizer = setup.load_model(config.model, mesh, seed=0, run=run)
        reward = models.create_scalar_model(models.with_config(policy, compute_dtype="float32"), key=key)
        parts = build(config, policy, reward, mesh, key=key, tokenizer=tokenizer, run=run)
        forms = run.metadata()["implementations"]
    critic = parts.models.critic.definition.config
    assert (critic.compute_dtype, critic.products) == ("bfloat16", policy.config.products)
    assert critic.attention == "blockwise" and forms["critic"] == forms["model"]
    # What judges stays exact.
    assert reward.config.compute_dtype == "float32"

    # Another machine: a form that cannot run here is refused by the name of the setting that helps.
    forms["critic"]["attention"] = "cudnn"
    run.add_metadata(implementations=forms)
    with pytest.raises(ConfigError, match=r"^model\.attention \(for the critic\): .*cudnn.*began with it"):
        build(config, policy, reward, mesh, key=key, tokenizer=tokenizer, run=run)
    config = replace(config, model=replace(config.model, attention="plain"))
    parts = build(config, policy, reward, mesh, key=key, tokenizer=tokenizer, run=run)
    assert parts.models.critic.definition.config.attention == "plain"


@pytest.mark.long
def test_a_live_function_and_token_rewards_are_accepted(configs, tmp_path):
    def tokens(prompts, completions, *, completion_ids, columns):
        del prompts, completions, columns
        return np.asarray([[0.25 if i < len(ids) else np.nan for i in range(6)] for ids in completion_ids])

    # What lies beyond a completion must be finite: a NaN there is the user's mistake.
    with pytest.raises(UserError, match="not finite"):
        train_ppo(
            configs.ppo(
                tmp_path / "bad",
                sampling=SamplingConfig(max_new_tokens=6, num_samples=2, stop_tokens=tuple(range(200))),
            ),
            reward=tokens,
        )
    result = train_ppo(
        configs.ppo(tmp_path / "run"), reward=lambda p, c, *, completion_ids, columns: [0.5] * len(p)
    )
    assert result.metrics["objective/score"] == 0.5


def test_no_reward_and_wrong_rewards_are_named(configs, tmp_path):
    with pytest.raises(ConfigError, match=r"reward\.model, reward\.models or reward\.functions"):
        train_ppo(configs.ppo(tmp_path / "a", reward=RewardSource()))
    with pytest.raises(ConfigError, match=r"no such file nowhere\.py"):
        train_ppo(configs.ppo(tmp_path / "b", reward=RewardSource(functions=("nowhere.py:f",))))
    with pytest.raises(UserError, match="returned 1 rewards for 8 completions"):
        train_ppo(configs.ppo(tmp_path / "c"), reward=lambda p, c, **_: [1.0])
    with pytest.raises(ValueError, match="must be divisible"):
        configs.ppo(tmp_path, train=PPOTrainConfig(prompts=3, minibatches=4))


@pytest.mark.long
def test_the_logged_score_adds_up_token_rewards_of_the_completion_alone(configs, tmp_path):
    ones = lambda p, c, *, completion_ids, columns: np.ones((len(p), 6))  # noqa: E731
    row = train_ppo(configs.ppo(tmp_path / "run", sampling=STOPS_EARLY), reward=ones).metrics
    assert 1 < row["rollout/length"] < 6
    assert row["objective/score"] == pytest.approx(row["rollout/length"], rel=1e-6)


@pytest.mark.long
@pytest.mark.parametrize("epochs", [1, 2])
def test_a_minibatch_in_which_no_row_counts_is_no_step(epochs, configs, tmp_path):
    def first_alone(prompts, completions, *, completion_ids, columns):
        del completions, completion_ids, columns
        return [1.0, *[None] * (len(prompts) - 1)]

    train = PPOTrainConfig(
        updates=2, prompts=4, epochs=epochs, minibatches=4, score_batch_size=8, eval_prompts=0
    )
    train_ppo(configs.ppo(tmp_path / "run", train=train), reward=first_alone)
    for row in metrics_of(tmp_path / "run"):
        assert row["policy/steps"] == epochs
        # Means are those of the steps: minibatches without tokens would have lowered them to a quarter.
        assert row["policy/entropy"] == pytest.approx(row["objective/entropy"], rel=0.05)
        assert row["policy/first_ratio"] == pytest.approx(1.0, abs=1e-4)


def built(configs, tmp_path, critic):
    """(critic's head, the reward model's) of a run that has one."""
    config = configs.ppo(tmp_path / "run", critic=critic)
    mesh, key = make_mesh(MeshConfig()), jax.random.key(0)
    policy = models.load_pretrained(config.model.path)
    reward = models.create_scalar_model(policy, key=jax.random.key(7))
    parts = build(config, policy, reward, mesh, key=key)
    return parts.trained["critic"]["head"]["score"], reward.params["head"]["score"]


@pytest.mark.parametrize("shared", [False, True])
def test_a_fresh_critics_head_starts_at_zero(shared, configs, tmp_path):
    head, _ = built(configs, tmp_path, CriticConfig(shared_trunk=shared))
    np.testing.assert_array_equal(head, 0.0)
    drawn, _ = built(configs, tmp_path, CriticConfig(shared_trunk=shared, head=models.HeadConfig()))
    assert np.abs(drawn).max() > 0.01


def test_a_critic_that_was_a_reward_model_keeps_its_head(configs, tmp_path):
    head, reward = built(configs, tmp_path, CriticConfig(init="reward"))
    np.testing.assert_array_equal(head, reward)
    assert np.abs(head).max() > 0.01


@pytest.mark.long
def test_the_first_values_are_zero(configs, tmp_path):
    train = PPOTrainConfig(updates=1, prompts=4, epochs=1, minibatches=2, score_batch_size=8, eval_prompts=0)
    critic = CriticConfig(optimizer=configs.optimizer)
    row = train_ppo(configs.ppo(tmp_path / "run", train=train, critic=critic)).metrics
    assert row["value/mean"] == 0
    # Half the square of a return, which is a share of vowels here.
    assert row["value/loss"] < 0.1


def test_a_shared_trunk_and_a_critic_of_its_own_are_refused_together():
    with pytest.raises(ValueError, match=r"critic\.shared_trunk and critic\.init=reward: choose one"):
        CriticConfig(shared_trunk=True, init="reward")


def test_while_the_critic_learns_alone_the_policy_takes_a_forward_pass(configs, tmp_path):
    config = configs.ppo(tmp_path / "run")
    config = replace(config, critic=replace(config.critic, warmup_updates=2))
    policy, critic = (
        Pass(config=cases.shape(), learns="adapter", adapter=9),
        Pass(config=cases.shape(), head=False),
    )
    trainer = SimpleNamespace(config=config, models=SimpleNamespace(training_passes=[policy, critic]))
    assert Trainer.learning_passes(trainer, 3) == [policy, critic]
    assert Trainer.learning_passes(trainer, 2) == [replace(policy, learns="nothing", adapter=0), critic]
