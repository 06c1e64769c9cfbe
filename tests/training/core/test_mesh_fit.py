"""What does not divide by the mesh, and devices that are not in it: errors and warnings that name sizes that fit."""

import re
from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxalign import models
from jaxalign.data import eval_batches
from jaxalign.errors import ConfigError
from jaxalign.mesh import MeshConfig, make_mesh
from jaxalign.models.config import Mixture
from jaxalign.models.sharding import on_mesh
from jaxalign.rollout.trajectory import Rows
from jaxalign.training.core import setup
from jaxalign.training.core.loop import TrainConfig
from jaxalign.training.core.mesh_fit import check_rows, misfits, tell_fit, tell_idle
from jaxalign.training.core.setup import ModelSource
from jaxalign.training.preference.dpo import train_dpo
from jaxalign.training.rl.on_policy import OnPolicyTrainer
from jaxalign.training.rl.on_policy_config import OnPolicyConfig, RolloutTrainConfig
from jaxalign.training.rl.online_dpo import OnlineDPOConfig
from jaxalign.training.sft import train_sft
from tests.training.cases import shape


class Said:
    """A run that keeps what it says."""

    def __init__(self):
        self.config, self.lines, self._said = SimpleNamespace(device="cpu"), [], set()

    def warn(self, message):
        self.lines.append(message)

    def warn_once(self, section, message):
        if message not in self._said:
            self._said.add(message)
            self.warn(f"{section}: {message}")


# --- devices ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("axes", "line"),
    [
        (
            {"data": 2},
            "6 of 8 devices are unused (cpu 2 to 7; the mesh has cpu 0, 1): set mesh.data=-1 to use all",
        ),
        ({"data": 3, "tensor": 2}, "(cpu 6, 7; the mesh has cpu 0 to 5): set mesh.data=-1 to use all"),
        ({"fsdp": 3}, "set mesh.data=-1 and mesh.fsdp=4 to use all"),
        ({"fsdp": 2, "tensor": 3}, "set mesh.data=-1 and mesh.tensor=4 to use all"),
        ({"expert": 3, "context": 2}, "set mesh.data=-1 and mesh.expert=1 to use all"),
        ({"fsdp": 8}, ""),
    ],
)
def test_devices_that_are_not_in_the_mesh_are_named_with_the_nearest_that_uses_all(axes, line, devices):
    run = Said()
    tell_idle(run, make_mesh(MeshConfig(**axes), devices))
    assert [line in said for said in run.lines] == [True] * bool(line)
    if line:  # what is named can be set, and uses all
        changed = {name: int(size) for name, size in re.findall(r"mesh\.(\w+)=(-?\d+)", run.lines[0])}
        assert make_mesh(MeshConfig(**(axes | changed)), devices).size == 8


def test_heads_that_devices_cannot_exchange_for_tokens_are_refused_with_the_most_that_fit(devices):
    config = models.ModelConfig(
        vocab_size=64, hidden_size=48, intermediate_size=96, num_layers=1, num_heads=6, num_kv_heads=2, head_dim=8,
        max_positions=64,
    )  # fmt: skip
    refused = r"mesh\.context=4: the 6 attention heads of model .* mesh\.tensor = 4; .* is mesh\.context=2"
    with pytest.raises(ConfigError, match=refused):
        tell_fit(None, "model", config, make_mesh(MeshConfig(context=4), devices))
    tell_fit(None, "model", config, make_mesh(MeshConfig(context=2), devices))


def test_widths_that_fsdp_and_context_do_not_divide_are_told_by_both(devices):
    config = models.ModelConfig(
        vocab_size=64, hidden_size=20, intermediate_size=64, num_layers=1, num_heads=4, num_kv_heads=4, head_dim=8,
        max_positions=64,
    )  # fmt: skip
    with pytest.raises(
        ConfigError, match=r"mesh\.fsdp x mesh\.context=8: none .* model \(embed = 20\).* mesh\.context=10"
    ):
        tell_fit(None, "model", config, make_mesh(MeshConfig(fsdp=2, context=4), devices))


@pytest.mark.parametrize(
    ("experts", "axes", "message"),
    [
        (
            6,
            {"expert": 4},
            r"^mesh\.expert=4: the 6 experts of model must .*: mesh\.expert=3 or mesh\.expert=6$",
        ),
        (
            0,
            {"expert": 4},
            r"^mesh\.expert=4: model is no mixture .* mesh\.expert=1, or mesh\.fsdp=4 to shard",
        ),
        (0, {"fsdp": 2, "expert": 2}, r"^mesh\.expert=2: .* set mesh\.expert=1, or mesh\.fsdp=4 to shard"),
    ],
)
def test_experts_that_an_axis_does_not_divide_are_refused_with_what_fits(experts, axes, message, devices):
    config = replace(shape(), mixture=Mixture(experts=experts, per_token=1))
    with pytest.raises(ConfigError, match=message):
        tell_fit(None, "model", config, make_mesh(MeshConfig(**axes), devices))
    # A dense model beside a mixture has its rows and weights split over the axis.
    mesh = make_mesh(MeshConfig(expert=2), devices)
    tell_fit(None, "reward", shape(), mesh)
    tell_fit(None, "model", replace(config, mixture=Mixture(experts=6, per_token=1)), mesh)


def test_a_width_that_does_not_divide_is_told_once_of_dense_layers_and_experts(devices):
    config = replace(shape(), hidden_size=18, mixture=Mixture(experts=4, per_token=1))
    told = {}
    for axes in ({"fsdp": 4}, {"fsdp": 4, "expert": 2}):
        found, _ = misfits(config, make_mesh(MeshConfig(**axes), devices))
        told[len(axes)] = {(m.name, m.axes) for m in found}
    assert told == {1: {("embed", ("fsdp",))}, 2: {("embed", ("fsdp", "expert")), ("embed", ("fsdp",))}}


# --- rows -------------------------------------------------------------------------------------


def offline(**train):
    return SimpleNamespace(train=TrainConfig(**train))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (offline(batch_size=12), r"^train\.batch_size=12: the 12 rows of an optimizer step .* = 8 .* 8 or 16, or"),
        (offline(batch_size=4), r"^train\.batch_size=4: .*set train\.batch_size to 8, or train\.packing=true"),
        (offline(batch_size=8, accumulation_steps=2), r"the 4 rows of a micro-batch .*batch_size to 16, or"),
        (
            OnPolicyConfig(train=RolloutTrainConfig(prompts=6, minibatches=2)),
            r"^train\.prompts=6: the 3 rows of a micro-batch .* set train\.prompts to 16, or",
        ),
        (
            OnlineDPOConfig(train=RolloutTrainConfig(prompts=4)),
            r"^train\.prompts=4: the 4 rows of an optimizer step .*set train\.prompts to 8, or",
        ),
    ],
)  # fmt: skip
def test_rows_that_each_device_would_compute_are_refused_with_sizes_that_fit(config, message, devices):
    mesh = make_mesh(MeshConfig(data=4, fsdp=2), devices)
    with pytest.raises(ConfigError, match=message):
        check_rows(config, mesh)
    # Not on one device, nor over a tensor axis, nor packed.
    check_rows(config, make_mesh(MeshConfig(tensor=8), devices))
    check_rows(replace_train(config, packing=True), mesh)


def replace_train(config, **changes):
    return SimpleNamespace(train=replace(config.train, **changes))


@pytest.mark.parametrize(
    "config",
    [
        offline(batch_size=16, accumulation_steps=2),
        offline(batch_tokens=100),
        OnPolicyConfig(train=RolloutTrainConfig(prompts=8)),
        # Eight completions of two prompts.
        OnPolicyConfig(
            train=RolloutTrainConfig(prompts=2),
            sampling=replace(OnPolicyConfig().sampling, num_samples=4),
        ),
    ],
)
def test_rows_that_fit_are_accepted(config, devices):
    check_rows(config, make_mesh(MeshConfig(data=4, fsdp=2), devices))


def test_rows_are_split_over_the_devices_of_experts_too(devices):
    mesh = make_mesh(MeshConfig(data=2, expert=4), devices)
    with pytest.raises(ConfigError, match=r"split evenly over mesh\.data x mesh\.expert = 8 devices"):
        check_rows(offline(batch_size=4), mesh)


def test_a_run_whose_rows_do_not_fit_leaves_nothing(configs, tmp_path):
    config = replace(configs.sft(tmp_path / "run"), mesh=MeshConfig(data=8))
    with pytest.raises(ConfigError, match=r"train\.batch_size=4"):
        train_sft(config)
    assert not (tmp_path / "run").exists()


def test_batches_that_are_only_scored_are_filled_up():
    seen = []
    batches = eval_batches(
        range(11), 6, lambda rows, numbers: seen.append(list(rows)) or {"rows": np.asarray(rows)}, multiple=4
    )
    valid = [batch["valid"].tolist() for batch in batches]
    assert seen == [[0, 1, 2, 3, 4, 5, 0, 0], [6, 7, 8, 9, 10, 6, 6, 6]]
    assert valid == [[True] * 6 + [False] * 2, [True] * 5 + [False] * 3]


@pytest.mark.long
def test_an_evaluation_of_rows_that_do_not_divide_is_split_and_that_of_one_device(
    configs, tmp_path, monkeypatch
):
    """Three rows at once, the last batch shorter."""
    found, place, rows = [], setup.shard_batch, []

    def noted(batch, mesh):
        rows.append(place(batch, mesh))
        return rows[-1]

    monkeypatch.setattr(setup, "shard_batch", noted)
    for axes in (MeshConfig(), MeshConfig(data=4)):
        train = TrainConfig(batch_size=4, steps=1, eval_batch_size=3)
        run = configs.run(tmp_path / str(axes.data), eval_every=1, sample_every=0, sample_rows=0)
        config = replace(configs.dpo("", train=train), mesh=axes, run=run)
        found.append(train_dpo(config).metrics)
    one, four = found
    assert {
        x.sharding.spec[0] for batch in rows for x in jax.tree.leaves(batch) if x.sharding.mesh.size == 4
    } == {"data"}
    names = [name for name in one if name.startswith("eval/")]
    assert names
    for name in names:
        np.testing.assert_allclose(four[name], one[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_rollouts_are_scored_in_batches_that_the_devices_share_evenly(devices):
    """Ten rows in batches of six of them, on four devices."""
    mesh, seen = make_mesh(MeshConfig(data=4), devices), []
    trainer = SimpleNamespace(
        mesh=mesh,
        config=SimpleNamespace(train=RolloutTrainConfig(score_batch_size=6)),
        _on_mesh=lambda batches, kind: (setup.on_mesh(batch, kind, mesh, head=False) for batch in batches),
    )
    lengths = np.arange(1, 11, dtype=np.int32)
    rows = Rows(np.tile(lengths, (10, 1)), lengths, np.ones((10, 10), bool), lengths)

    def score(batch):
        seen.append(batch.tokens)
        return 2 * batch.lengths

    np.testing.assert_array_equal(OnPolicyTrainer.score_rows(trainer, rows, score), 2 * lengths)
    assert [x.addressable_shards[0].data.shape for x in seen] == [(2, 10), (2, 10)]


# --- weights ----------------------------------------------------------------------------------


def test_weights_that_do_not_divide_are_told_with_what_they_cost(devices):
    """What it costs is what a device holds more than if all were divided."""
    config = replace(shape(), vocab_size=63, intermediate_size=30, tied_head=False)
    mesh, run = make_mesh(MeshConfig(fsdp=2, tensor=4), devices), Said()
    tell_fit(run, "model", config, mesh)
    # In float32; a device holds half of them instead of an eighth.
    heads, mlps = ((1 / 2 - 1 / 8) * 4 * count / 1024 for count in (2 * 63 * 16, 2 * 3 * 16 * 30))
    replicated = "is not divisible by mesh.tensor=4: those weights are replicated over it, which costs"
    assert run.lines == [
        f"model: vocab = 63 {replicated} {heads:.1f} KiB a device; nearest that fits: mesh.tensor=3 or mesh.tensor=7",
        f"model: mlp = 30 {replicated} {mlps:.1f} KiB a device; nearest that fits: mesh.tensor=3 or mesh.tensor=5",
        "model: 2 KV heads cannot be split over mesh.tensor=4: keys, values and attention are replicated over it; "
        "nearest that fits: mesh.tensor=2",
    ]
    # The same model in another place is not told again.
    tell_fit(run, "reference", config, mesh)
    assert len(run.lines) == 3
    params = on_mesh(models.create(config, key=jax.random.key(0)).params, mesh)
    held = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(params))
    fitting = replace(config, vocab_size=64, intermediate_size=32)
    params = on_mesh(models.create(fitting, key=jax.random.key(0)).params, mesh)
    ideal = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(params))
    cost = sum(misfit.cost for misfit in misfits(config, mesh)[0])
    # But for the numbers that are not there, 2 x 16 of the vocabulary and 6 x 2 x 16 of the MLPs.
    assert held - cost == pytest.approx(ideal - 4 * (2 * 16 + 12 * 16) / 8)
    assert not misfits(fitting, mesh)[0]


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        (
            {"fsdp": 7},
            r"^mesh\.fsdp=7: none of the matrices of model \(embed = 16\) .*: mesh\.fsdp=4 or mesh\.fsdp=8, or use "
            r"mesh\.data=7",
        ),
        (
            {"tensor": 7},
            r"^mesh\.tensor=7: none .*\(.*vocab = 64.*\) .*nearest that fits: mesh\.tensor=4 or mesh\.tensor=8$",
        ),
    ],
)
def test_an_axis_over_which_nothing_is_sharded_is_refused(axes, message, devices):
    with pytest.raises(ConfigError, match=message):
        tell_fit(None, "model", shape(), make_mesh(MeshConfig(**axes), devices))


@pytest.mark.long
@pytest.mark.parametrize("live", [False, True])
def test_a_run_tells_how_its_models_fit_before_it_trains(live, configs, tmp_path, capsys):
    """The vocabulary of 259 does not divide, and its reference is of the same shape."""
    train = TrainConfig(batch_size=4, steps=1)
    run = configs.run(tmp_path / "run", sample_every=0, sample_rows=0, progress=True)
    config = replace(
        configs.dpo("", train=train),
        mesh=MeshConfig(tensor=2),
        run=run,
        data=replace(configs.data, validation_fraction=0.0),
        reference=ModelSource(path=configs.model.path),
    )
    given = {}
    if live:
        given = {
            "policy": models.load_pretrained(configs.model.path),
            "tokenizer": models.load_tokenizer(configs.model.path),
        }
    train_dpo(config, **given)
    said = capsys.readouterr().err
    assert said.count("vocab = 259 is not divisible by mesh.tensor=2: those weights are replicated") == 1
    assert said.count("1 KV head cannot be split over mesh.tensor=2") == 1
    assert said.index("vocab = 259") < said.index("compiling the training step")
    assert said.count("6 of 8 devices are unused") == 1


def test_a_run_over_which_nothing_is_sharded_leaves_nothing(configs, tmp_path):
    config = replace(
        configs.sft(tmp_path / "run", train=TrainConfig(batch_size=7, steps=1)), mesh=MeshConfig(fsdp=7)
    )
    with pytest.raises(ConfigError, match=r"^mesh\.fsdp=7: none of the matrices of model \(embed = 16\)"):
        train_sft(config)
    assert not (tmp_path / "run").exists()
