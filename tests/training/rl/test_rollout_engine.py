"""Training on a server's rollouts: as on our own, with the policy's weights, or a word about it."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxalign import models
from jaxalign.errors import ConfigError, UserError
from jaxalign.mesh import MeshConfig
from jaxalign.models.lora import LoraConfig
from jaxalign.rollout import Completions, EngineConfig, Sampler, SamplingConfig, join_rows
from jaxalign.rollout.server import row_seeds
from jaxalign.runs import records
from jaxalign.training.core.optimizer import OptimizerConfig
from jaxalign.training.core.setup import policy_of
from jaxalign.training.rl.grpo import train_grpo
from jaxalign.training.rl.grpo_config import GRPOConfig, GRPOLossConfig, GRPOTrainConfig
from jaxalign.training.rl.on_policy_config import RolloutConfig
from jaxalign.training.rl.online_dpo import OnlineDPOConfig, train_online_dpo
from jaxalign.training.rl.ppo import train_ppo
from jaxalign.training.rl.ppo_config import PPOLossConfig
from jaxalign.training.rl.rollout_engine import importance, logp_gaps, make_generator
from tests.rollout.stub_server import StubServer


def metrics_of(folder):
    return list(records.read(folder / "metrics.jsonl"))


@pytest.fixture
def stub(tiny_model_folder):
    with StubServer(tiny_model_folder) as server:
        yield server


@pytest.fixture
def grpo(configs):
    def make(output, stub=None, *, engine=None, **changes):
        ppo = configs.ppo(output)
        engine = {"kind": "vllm", "url": stub.url, "retries": 0} | (engine or {}) if stub else {}
        parts = {
            "model": ppo.model,
            "data": ppo.data,
            "reward": replace(ppo.reward, missing_stop_penalty=0.0),
            "sampling": SamplingConfig(max_new_tokens=6, num_samples=4, temperature=0.9),
            "rollout": RolloutConfig(engine=EngineConfig(**engine)),
            "train": GRPOTrainConfig(
                updates=3, prompts=4, minibatches=2, eval_prompts=0, score_batch_size=16
            ),
            "optimizer": OptimizerConfig(learning_rate=1e-2, schedule="constant"),
        }
        return GRPOConfig(run=ppo.run, **(parts | changes))

    return make


class SeededSampler:
    """An engine in this process that draws what a server with the same weights draws."""

    def __init__(self, folder):
        self.sampler = Sampler(models.load_pretrained(folder))

    def update(self, params, *, adapter=None):
        assert adapter is None
        self.sampler.update(params)

    def generate(self, prompts, *, key, num_samples, **arguments):
        seeds = row_seeds(key, np.arange(len(prompts) * num_samples))[::num_samples]
        parts = [
            self.sampler.generate([prompt], key=jax.random.key(seed), num_samples=num_samples, **arguments)
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        names = ("tokens", "mask", "lengths", "logps", "sampling_logps")
        arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
        return Completions(**arrays, finish_reason=[r for part in parts for r in part.finish_reason])


def assert_same_model(ours, theirs):
    ours, theirs = (load_file(folder / "export" / "model.safetensors") for folder in (ours, theirs))
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


@pytest.mark.long
def test_a_servers_rollouts_train_the_same_model_bit_for_bit(grpo, stub, tiny_model_folder, tmp_path):
    # A server's samples are weighed by default.
    loss = GRPOLossConfig(importance_cap=2.0)
    ours = train_grpo(grpo(tmp_path / "ours", loss=loss), engine=SeededSampler(tiny_model_folder))
    theirs = train_grpo(grpo(tmp_path / "theirs", stub))
    assert_same_model(theirs.folder, ours.folder)
    assert [row["objective/score"] for row in metrics_of(ours.folder)] == [
        row["objective/score"] for row in metrics_of(theirs.folder)
    ]
    # The policy moved, and the server moved with it: its log-probs are the policy's at each update.
    assert len(stub.bodies("/collective_rpc")) == 3
    assert all(row["rollout/logp_gap"] < 1e-4 for row in metrics_of(theirs.folder))
    assert not (theirs.folder / "engine").exists()


@pytest.mark.slow
def test_rounds_of_one_rollout_are_drawn_by_one_set_of_weights(grpo, stub, tmp_path):
    train = GRPOTrainConfig(updates=1, prompts=4, sampling_rounds=3, eval_prompts=0, score_batch_size=16)
    train_grpo(grpo(tmp_path / "run", stub, train=train), reward=lambda p, c, **_: [1] * len(p))
    assert len(stub.bodies("/v1/completions")) == 3 * 4
    assert len(stub.bodies("/collective_rpc")) == 1


@pytest.mark.long
def test_a_server_that_keeps_its_weights_is_noticed(grpo, stub, tmp_path, capfd):
    stub.reloads = False
    train_grpo(grpo(tmp_path / "run", stub))
    rows = metrics_of(tmp_path / "run")
    assert rows[0]["rollout/logp_gap_mean"] < 1e-4
    assert (
        rows[0]["rollout/logp_gap_mean"] < rows[1]["rollout/logp_gap_mean"] < rows[2]["rollout/logp_gap_mean"]
    )
    assert rows[2]["rollout/logp_gap_mean"] > 0.05
    log = (tmp_path / "run" / "run.log").read_text()
    assert log.count("log-probs of the server and of the policy differ by") == 1


def test_a_server_with_other_weights_is_refused_before_the_first_update(grpo, stub, tmp_path):
    stub.reloads = False
    stub.sampler.update(jax.tree.map(lambda x: 3 * x, stub.model.params))
    with pytest.raises(
        UserError, match=r"more than rollout.engine.logp_tolerance = 0.05; the server has another model"
    ):
        train_grpo(grpo(tmp_path / "run", stub))
    assert not (tmp_path / "run").exists()


def test_log_probs_before_temperature_are_refused(grpo, stub, tmp_path):
    sampling = SamplingConfig(max_new_tokens=6, num_samples=4, temperature=0.3)

    def untempered(path, answer):
        for choice in answer[1]["choices"] if path == "/v1/completions" else []:
            logps = choice["logprobs"]["token_logprobs"]
            choice["logprobs"]["token_logprobs"] = [0.3 * x for x in logps]
        return answer

    stub.alter = untempered
    with pytest.raises(UserError, match="--logprobs-mode processed_logprobs"):
        train_grpo(grpo(tmp_path / "run", stub, sampling=sampling))


@pytest.mark.long
def test_a_run_that_fails_later_leaves_no_weights_behind(grpo, stub, tmp_path):
    def gone(path, answer):
        return (500, {"message": "out of memory"}) if len(stub.bodies("/collective_rpc")) == 2 else answer

    stub.alter = gone
    with pytest.raises(UserError, match="/collective_rpc: HTTP 500: out of memory"):
        train_grpo(grpo(tmp_path / "run", stub))
    assert not (tmp_path / "run" / "engine").exists()
    assert len(metrics_of(tmp_path / "run")) == 1


def test_weights_are_written_where_the_server_can_read_them(grpo, stub, tmp_path):
    config = grpo(tmp_path / "run", stub, engine={"folder": str(tmp_path / "shared")})
    (tmp_path / "shared" / "run").mkdir(parents=True)  # another's
    scorer, trained, frozen = policy_of(stub.model, config.lora, None, key=jax.random.key(0))
    run = SimpleNamespace(folder=tmp_path / "run")
    generator = make_generator(config, scorer, frozen, None, jax.random.key(0), run)
    generator.refresh(trained)
    (body,) = stub.bodies("/collective_rpc")
    written = tmp_path / "shared" / "jaxalign-run" / "weights-1"
    assert body["kwargs"]["weights_path"] == str(written)
    assert (written / "model.safetensors").is_file()
    generator.close()
    assert [path.name for path in (tmp_path / "shared").iterdir()] == ["run"]


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["merged", "adapter"])
def test_lora_reaches_the_server(weights, grpo, stub, tmp_path):
    lora = LoraConfig(enabled=True, rank=4)
    train_grpo(grpo(tmp_path / "run", stub, engine={"weights": weights}, lora=lora))
    rows = metrics_of(tmp_path / "run")
    assert all(row["rollout/logp_gap"] < 1e-4 for row in rows)
    assert rows[-1]["policy/approx_kl"] > 0
    assert len(stub.bodies("/v1/load_lora_adapter" if weights == "adapter" else "/collective_rpc")) == 3
    assert not stub.adapters


@pytest.mark.slow
def test_an_interrupted_and_resumed_run_gives_the_same_bits(
    grpo, stub, tiny_model_folder, tmp_path, monkeypatch
):
    from jaxalign.training.core.loop import Interrupted
    from jaxalign.training.rl.grpo import Trainer
    from tests.training.test_resume import terminate

    whole = train_grpo(grpo(tmp_path / "whole", stub))
    plain = Trainer.update

    def update(self, number):
        if number == 2:
            terminate()
        return plain(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", update)
        with pytest.raises(Interrupted):
            train_grpo(grpo(tmp_path / "parts", stub))
    # Resumed with a server that was started anew, elsewhere.
    with StubServer(tiny_model_folder) as other:
        config = grpo(tmp_path / "parts", other)
        train_grpo(replace(config, run=replace(config.run, resume=True)))
        assert len(other.bodies("/collective_rpc")) == 1
    assert_same_model(tmp_path / "parts", whole.folder)


@pytest.mark.slow
def test_stale_samples_train_where_they_are_allowed_and_are_weighed(grpo, stub, tmp_path):
    engine = {"kind": "openai", "allow_stale": True, "logp_tolerance": 0.01}
    loss = GRPOLossConfig(importance_cap=2.0)
    train_grpo(grpo(tmp_path / "run", stub, engine=engine, loss=loss))
    rows = metrics_of(tmp_path / "run")
    assert rows[-1]["rollout/logp_gap_mean"] > 0.01 > rows[0]["rollout/logp_gap_mean"]
    assert {path for path, _ in stub.requests} == {"/v1/models", "/v1/completions"}
    assert "the update is off-policy" in (tmp_path / "run" / "run.log").read_text()


def test_importance_weights_are_of_the_policy_over_the_server(tmp_path):
    done = Completions(
        tokens=np.asarray([[7, 8, 0]]),
        mask=np.asarray([[True, True, False]]),
        lengths=np.asarray([2]),
        logps=np.zeros((1, 3)),
        sampling_logps=np.log(np.asarray([[0.5, 0.1, 1.0]], np.float32)),
        finish_reason=["stop"],
    )
    rows = join_rows([[5, 6]], done, multiple=1)
    logps = np.log(np.asarray([[1.0, 1.0, 0.25, 0.4, 1.0]], np.float32))
    # 0.25 / 0.5, and 0.4 / 0.1 held at 2.
    np.testing.assert_allclose(importance(2.0, rows, logps, rows.mask, done), [[0, 0, 0.5, 2, 0]], rtol=1e-5)
    assert logp_gaps(rows, logps, done) == pytest.approx(
        {"rollout/logp_gap": np.log(4), "rollout/logp_gap_mean": (np.log(4) + np.log(2.5)) / 2}, rel=1e-5
    )


def test_weights_are_of_tokens_or_completions_and_cut_or_dropped_above_the_cap():
    done = Completions(
        tokens=np.asarray([[7, 8]]),
        mask=np.ones((1, 2), bool),
        lengths=np.asarray([2]),
        logps=np.zeros((1, 2)),
        sampling_logps=np.log(np.asarray([[0.5, 0.1]], np.float32)),
        finish_reason=["stop"],
    )
    rows = join_rows([[5]], done, multiple=1)
    logps = np.log(np.asarray([[1.0, 0.25, 0.4]], np.float32))

    def of(cap, **options):
        return importance(cap, rows, logps, rows.mask, done, **options)[0]

    np.testing.assert_allclose(of(3.0, mode="mask"), [0, 0.5, 0], rtol=1e-5)
    # (0.25 / 0.5) * (0.4 / 0.1), for both tokens.
    np.testing.assert_allclose(of(3.0, level="sequence"), [0, 2, 2], rtol=1e-5)
    np.testing.assert_allclose(of(1.5, level="sequence"), [0, 1.5, 1.5], rtol=1e-5)
    np.testing.assert_allclose(of(1.5, level="sequence", mode="mask"), [0, 0, 0], rtol=1e-5)


@pytest.mark.slow
def test_samples_of_a_server_are_weighed_unless_that_is_turned_off(grpo, configs, stub, tmp_path):
    one = GRPOTrainConfig(updates=1, prompts=4, score_batch_size=16)
    for name, loss, expected in (
        ("on", GRPOLossConfig(), 2.0),
        ("off", GRPOLossConfig(importance_cap=0.0), 0.0),
    ):
        config = grpo(tmp_path / name, stub, loss=loss, train=one)
        assert config.importance_cap == expected
        row = train_grpo(config).metrics
        assert ("rollout/importance_mean" in row) == bool(expected)
    assert grpo(tmp_path).importance_cap == configs.ppo(tmp_path).importance_cap == 0
    assert configs.ppo(tmp_path, rollout=config.rollout).importance_cap == 2.0


@pytest.mark.long
@pytest.mark.parametrize(("name", "level"), [("grpo", "token"), ("gspo", "sequence"), ("rloo", "sequence")])
def test_weights_of_0_leave_nothing_to_learn(name, level, grpo, stub, tmp_path, monkeypatch):
    asked = []

    def nothing(cap, rows, logps, mask, completions, **options):
        asked.append((cap, options))
        return np.zeros(mask.shape, np.float32)

    monkeypatch.setattr("jaxalign.training.rl.on_policy.importance", nothing)
    train = GRPOTrainConfig(updates=1, prompts=4, score_batch_size=16)
    loss = GRPOLossConfig(name=name, importance_mode="mask")
    row = train_grpo(grpo(tmp_path / "run", stub, loss=loss, train=train)).metrics
    assert asked == [(2.0, {"level": level, "mode": "mask"})]
    assert row["loss"] == 0 and row["grad_norm"] == 0 and row["rollout/importance_mean"] == 0


def test_a_cap_below_1_is_refused():
    for config in (GRPOLossConfig, PPOLossConfig):
        with pytest.raises(ValueError, match=r"loss.importance_cap must be 1 or more, 0 for none, or -1"):
            config(importance_cap=0.5)


@pytest.mark.slow
@pytest.mark.parametrize("cap", [0.0, 2.0])
def test_ppo_learns_from_a_server(cap, configs, stub, tmp_path):
    engine = RolloutConfig(engine=EngineConfig(kind="sglang", url=stub.url, retries=0))
    config = configs.ppo(tmp_path / "run", rollout=engine, loss=PPOLossConfig(importance_cap=cap))
    train_ppo(replace(config, train=replace(config.train, updates=2)))
    rows = metrics_of(tmp_path / "run")
    assert all(row["rollout/logp_gap"] < 1e-4 for row in rows)
    assert len(stub.bodies("/update_weights_from_disk")) == 2


@pytest.mark.slow
def test_a_server_that_keeps_its_weights_is_noticed_by_single_steps_of_ppo(configs, stub, tmp_path, capfd):
    stub.reloads = False
    engine = RolloutConfig(engine=EngineConfig(kind="vllm", url=stub.url, retries=0))
    config = configs.ppo(
        tmp_path / "run",
        rollout=engine,
        optimizer=OptimizerConfig(learning_rate=1e-2, schedule="constant"),
    )
    train_ppo(replace(config, train=replace(config.train, updates=4, epochs=1, minibatches=1)))
    gaps = [row["rollout/logp_gap_mean"] for row in metrics_of(tmp_path / "run")]
    assert gaps[0] < 1e-4 < 0.05 < gaps[-1]
    log = (tmp_path / "run" / "run.log").read_text()
    assert log.count("log-probs of the server and of the policy differ by") == 1


@pytest.mark.slow
def test_online_dpo_learns_from_a_server(configs, stub, tmp_path):
    ppo = configs.ppo(tmp_path / "run")
    config = OnlineDPOConfig(
        run=ppo.run,
        model=ppo.model,
        data=ppo.data,
        reward=ppo.reward,
        sampling=ppo.sampling,
        rollout=RolloutConfig(engine=EngineConfig(kind="vllm", url=stub.url, retries=0)),
        train=replace(GRPOTrainConfig(), updates=2, prompts=4, eval_prompts=0, score_batch_size=8),
        optimizer=ppo.optimizer,
    )
    train_online_dpo(config)
    assert all(row["rollout/logp_gap"] < 1e-4 for row in metrics_of(tmp_path / "run"))


@pytest.mark.slow
def test_rewards_rise_on_a_servers_samples(grpo, stub, tmp_path):
    train = GRPOTrainConfig(updates=12, prompts=8, minibatches=2, eval_prompts=0, score_batch_size=32)
    train_grpo(grpo(tmp_path / "run", stub, train=train))
    rows = metrics_of(tmp_path / "run")
    assert rows[-1]["objective/score"] > rows[0]["objective/score"] + 0.04


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"sampling": SamplingConfig(num_samples=4, top_p=0.9)},
            "must be off with rollout.engine.kind=vllm: the server's log-probs of a truncated distribution",
        ),
        ({"engine": {"weights": "adapter"}}, "rollout.engine.weights=adapter needs lora.enabled"),
    ],
)
def test_settings_that_cannot_work_with_a_server_are_named(changes, message, grpo, stub, tmp_path):
    with pytest.raises(ValueError, match=message):
        grpo(tmp_path / "run", stub, **changes)


INT8 = {"weights": "int8", "cache": "int8"}


@pytest.mark.parametrize("part", ["weights", "cache"])
def test_8_bit_rollouts_without_a_correction_are_refused(part, grpo, configs, tmp_path):
    rollout = RolloutConfig(**{part: "int8"})
    for make in (grpo, configs.ppo):
        with pytest.raises(ValueError, match=r"correct for it with loss.importance_cap=2"):
            make(tmp_path, rollout=rollout)
    with pytest.raises(ValueError, match=r"loss.name=rloo has one loss per completion"):
        grpo(
            tmp_path,
            rollout=rollout,
            loss=GRPOLossConfig(name="rloo", importance_cap=2.0, importance_level="token"),
        )
    with pytest.raises(ValueError, match=r"must be same with rollout.engine.kind=vllm"):
        RolloutConfig(**{part: "int8"}, engine=EngineConfig(kind="vllm", url="http://127.0.0.1:1"))


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"cache": "int8"}, "exact needs rollout.weights and rollout.cache to be same"),
        (
            {"engine": EngineConfig(kind="vllm", url="http://127.0.0.1:1")},
            "exact needs rollout.engine.kind=local",
        ),
    ],
)
def test_exact_rollouts_that_cannot_be_exact_are_refused(others, message):
    with pytest.raises(ValueError, match=message):
        RolloutConfig(exact=True, **others)


def test_exact_rollouts_of_an_engine_that_is_given_or_on_a_mesh_are_refused(
    grpo, tiny_model_folder, tmp_path
):
    config = grpo(tmp_path / "run", rollout=RolloutConfig(exact=True))
    with pytest.raises(ConfigError, match=r"rollout.exact: an engine of your own"):
        train_grpo(config, engine=SeededSampler(tiny_model_folder))
    with pytest.raises(ConfigError, match=r"rollout.exact: it computes on one device, and the mesh has 2"):
        train_grpo(
            replace(config, mesh=MeshConfig(data=2), run=replace(config.run, output=str(tmp_path / "other")))
        )


def test_8_bit_rollouts_of_an_engine_that_is_given_are_refused(grpo, tiny_model_folder, tmp_path):
    config = grpo(tmp_path / "run", rollout=RolloutConfig(**INT8), loss=GRPOLossConfig(importance_cap=2.0))
    with pytest.raises(ConfigError, match=r"rollout.weights and rollout.cache must be same .* \(engine=\)"):
        train_grpo(config, engine=SeededSampler(tiny_model_folder))


@pytest.mark.slow
def test_rewards_rise_with_8_bit_rollouts_that_are_corrected(grpo, tmp_path):
    train = GRPOTrainConfig(updates=12, prompts=8, minibatches=2, eval_prompts=0, score_batch_size=32)
    sampling = SamplingConfig(max_new_tokens=6, num_samples=4)
    config = grpo(
        tmp_path / "run",
        rollout=RolloutConfig(**INT8),
        loss=GRPOLossConfig(importance_cap=2.0),
        train=train,
        sampling=sampling,
    )
    train_grpo(config)
    rows = metrics_of(tmp_path / "run")
    assert rows[-1]["objective/score"] > rows[0]["objective/score"] + 0.04
    assert all(1e-5 < row["rollout/logp_gap_mean"] < 0.05 for row in rows)


@pytest.mark.long
def test_8_bit_rollouts_that_are_too_far_from_the_policy_stop_the_run(grpo, tmp_path):
    train = GRPOTrainConfig(updates=1, prompts=4, eval_prompts=0, score_batch_size=16, logp_tolerance=1e-6)
    loss = GRPOLossConfig(importance_cap=2.0)
    with pytest.raises(UserError, match=r"nats in the mean, more than train.logp_tolerance = 1e-06"):
        train_grpo(grpo(tmp_path / "run", rollout=RolloutConfig(**INT8), loss=loss, train=train))
