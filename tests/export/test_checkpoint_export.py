"""Any checkpoint of any run becomes the folder that the run itself would have left."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxalign import llmdoctor, models
from jaxalign.checkpoints import CheckpointStore, best_step, saved_metrics, saved_steps
from jaxalign.errors import CheckpointError, ConfigError, ModelError
from jaxalign.export.checkpoint_export import export_checkpoint
from jaxalign.llmdoctor.tfpo import train_tfpo
from jaxalign.models.folders import model_folder
from jaxalign.models.lora import LoraConfig
from jaxalign.training.core.exports import RECORD_FILE
from jaxalign.training.preference.dpo import train_dpo
from jaxalign.training.reward_model.ensemble import EnsembleConfig
from jaxalign.training.reward_model.trainer import train_reward
from jaxalign.training.rl.grpo import train_grpo
from jaxalign.training.rl.grpo_config import GRPOConfig, GRPOTrainConfig
from jaxalign.training.rl.ppo import train_ppo
from jaxalign.training.sft import train_sft
from tests.training.conftest import Configs

LORA = LoraConfig(enabled=True, rank=2)


def grpo_config(configs, output):
    """GRPO with LoRA; policies are in checkpoints under a name, and not at the root as those of SFT."""
    ppo = configs.ppo(output)
    train = GRPOTrainConfig(updates=4, prompts=4, minibatches=2, score_batch_size=16)
    names = ("run", "model", "data", "reward", "sampling", "optimizer")
    return GRPOConfig(train=train, lora=LORA, **{name: getattr(ppo, name) for name in names})


def steady(configs):
    """An optimizer whose steps do not depend on how many there will be."""
    return replace(configs.optimizer, schedule="constant", warmup_ratio=0.0)


@pytest.fixture(scope="module")
def base16(tiny_model_folder, tmp_path_factory):
    """The tiny model in bfloat16, with fields of generation that are not ours."""
    folder = tmp_path_factory.mktemp("base") / "tiny16"
    tokenizer = models.load_tokenizer(tiny_model_folder)
    models.save_pretrained(
        models.load_pretrained(tiny_model_folder), folder, tokenizer=tokenizer, dtype="bfloat16"
    )
    generation = {"temperature": 0.2, "top_p": 0.9, "suppress_tokens": [3], "eos_token_id": [257, 5]}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


@pytest.fixture(scope="module")
def runs(tiny_model_folder, base16, pairs_file, steps_file, tmp_path_factory):
    """name -> a finished run of that kind, made when it is asked for first."""
    configs = Configs(tiny_model_folder, pairs_file, steps_file)
    half = replace(configs.model, path=str(base16))
    marked = replace(configs.data, template="markers", max_length=60)

    makers = {
        "sft": lambda o: train_sft(configs.sft(o, data=marked, optimizer=steady(configs))),
        "sft, lora": lambda o: train_sft(configs.sft(o, model=half, lora=LORA)),
        "dpo": lambda o: train_dpo(configs.dpo(o)),
        "reward": lambda o: train_reward(configs.reward(o)),
        "reward, lora": lambda o: train_reward(configs.reward(o, model=half, lora=LORA)),
        "steps": lambda o: train_reward(configs.steps(o)),
        "heads": lambda o: train_reward(configs.reward(o, ensemble=EnsembleConfig(size=2, members="heads"))),
        "models": lambda o: train_reward(configs.reward(o, ensemble=EnsembleConfig(size=2))),
        "tfpo": lambda o: train_tfpo(configs.tfpo(o)),
        "tfpo, lora": lambda o: train_tfpo(configs.tfpo(o, lora=LORA)),
        "ppo": lambda o: train_ppo(configs.ppo(o)),
        "grpo": lambda o: train_grpo(grpo_config(configs, o)),
    }
    made = {}

    def run(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp("runs") / name.replace(", ", "_")
            makers[name](made[name])
        return made[name]

    return run


def tensors_of(folder: Path) -> dict[str, np.ndarray]:
    """All tensors below a folder, by file and name."""
    files = sorted(folder.rglob("*.safetensors"))
    return {f"{f.relative_to(folder)}: {k}": v for f in files for k, v in load_file(f).items()}


def assert_same_export(ours: Path, theirs: Path) -> None:
    """The same files, but for the adapter and the beginning that a doctor's export holds within."""
    within = ("adapter/", "start/", RECORD_FILE, "doctor.json")
    names = {str(file.relative_to(theirs)) for file in theirs.rglob("*") if file.is_file()} - {*within}
    mine = {str(file.relative_to(ours)) for file in ours.rglob("*") if file.is_file()}
    assert {name for name in mine if not name.startswith(within)} == names - {"doctor.json"}
    for name in names:
        assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name


SLOW = pytest.mark.slow
KINDS = [
    "sft",
    "sft, lora",
    "reward",
    "heads",
    "tfpo, lora",
    "grpo",
    *(pytest.param(name, marks=SLOW) for name in ("ppo", "dpo", "reward, lora", "steps", "models", "tfpo")),
]


@pytest.mark.long
@pytest.mark.parametrize("name", KINDS)
def test_the_last_checkpoint_becomes_what_the_run_exported(name, runs, tmp_path):
    run = runs(name)
    done = export_checkpoint(run, "latest", output=tmp_path / "made")
    assert done.step == 4 and done.new
    assert_same_export(tmp_path / "made", run / "export")
    earlier = export_checkpoint(run, "2", output=tmp_path / "half")
    assert earlier.step == 2
    before, after = tensors_of(tmp_path / "half"), tensors_of(tmp_path / "made")
    assert before.keys() == after.keys()
    assert any(not np.array_equal(before[key], after[key]) for key in before)
    assert "at step 2" in (tmp_path / "half" / "README.md").read_text()


@pytest.mark.long
def test_a_checkpoint_half_way_is_that_of_a_run_which_ends_there(runs, configs, tmp_path):
    data = replace(configs.data, template="markers", max_length=60)
    train = replace(configs.train, steps=2)
    train_sft(configs.sft(tmp_path / "short", data=data, optimizer=steady(configs), train=train))
    export_checkpoint(runs("sft"), "2", output=tmp_path / "half")
    ours, theirs = tensors_of(tmp_path / "half"), tensors_of(tmp_path / "short" / "export")
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.long
def test_a_name_is_exported_once_and_again_where_the_checkpoint_is_another(runs, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(runs("sft"), run)
    folder = Path(model_folder(f"{run}@2"))
    assert folder == run / "exports" / "step-2" and not list((run / "exports").glob(".*"))
    first = (folder / "config.json").stat().st_mtime_ns
    assert model_folder(f"{run}@2") == str(folder)
    assert (folder / "config.json").stat().st_mtime_ns == first
    # Saved anew, the checkpoint has another time of its own.
    record = run / "checkpoints" / "2" / "_CHECKPOINT_METADATA"
    body = json.loads(record.read_text())
    record.write_text(json.dumps(body | {"commit_timestamp_nsecs": body["commit_timestamp_nsecs"] + 1}))
    model_folder(f"{run}@2")
    assert (folder / "config.json").stat().st_mtime_ns > first


@pytest.mark.long
def test_the_step_that_a_run_exported_is_not_exported_twice(runs):
    run = runs("heads")
    assert model_folder(f"{run}@latest") == str(run / "export")
    assert not (run / "exports").exists()


@pytest.mark.long
def test_files_say_what_the_weights_are(runs, base16):
    run = runs("sft, lora")
    for folder in (run / "export", export_checkpoint(run, "2").folder):
        config = json.loads((folder / "config.json").read_text())
        assert config["dtype"] == config["torch_dtype"] == "bfloat16"
        assert {str(x.dtype) for x in tensors_of(folder).values()} == {"bfloat16"}
        generation = json.loads((folder / "generation_config.json").read_text())
        assert generation["eos_token_id"] == [257, 5] and generation["suppress_tokens"] == [3]
        assert generation["temperature"] == 0.2 and generation["top_p"] == 0.9
    wide = export_checkpoint(run, "2", dtype="float32").folder
    assert wide.name == "step-2-float32"
    assert {str(x.dtype) for x in tensors_of(wide).values()} == {"float32"}
    assert {str(x.dtype) for x in tensors_of(runs("sft") / "export").values()} == {"float32"}


def test_an_adapter_names_its_base_and_has_the_tokenizer(runs, base16):
    run = runs("sft, lora")
    alone = export_checkpoint(run, "latest", merge=False).folder
    assert_same_export(alone, run / "adapter")
    settings = json.loads((alone / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(base16) and settings["revision"] is None
    assert models.load_tokenizer(alone).get_vocab() == models.load_tokenizer(base16).get_vocab()
    with pytest.raises(ConfigError, match=r"--merge=false: .*it trained no adapter"):
        export_checkpoint(runs("sft"), merge=False)


@pytest.mark.long
def test_a_doctor_half_way_guides_its_patient(runs, tmp_path):
    run = runs("tfpo, lora")
    export_checkpoint(run, "2", output=tmp_path / "doctor")
    ours, theirs = (llmdoctor.load_doctor_card(folder) for folder in (tmp_path / "doctor", run))
    assert replace(ours, adapter="", tokenizer="") == replace(theirs, adapter="", tokenizer="")
    guided, _ = llmdoctor.load_guided(llmdoctor.GuideConfig(doctor=(str(tmp_path / "doctor"),)))
    whole, _ = llmdoctor.load_guided(llmdoctor.GuideConfig(doctor=(f"{run}@2",)))
    tokens = jnp.arange(6)[None]
    np.testing.assert_array_equal(guided(tokens), whole(tokens))
    last, _ = llmdoctor.load_guided(llmdoctor.GuideConfig(doctor=(str(run),)))
    assert np.abs(np.asarray(guided(tokens) - last(tokens))).max() > 0
    head = llmdoctor.load_value_head(tmp_path / "doctor")
    assert float(head["horizon"]) == float(llmdoctor.load_value_head(run)["horizon"])


# --- scores of rewards ----------------------------------------------------------------------------


def head_file(folder: Path) -> dict:
    return json.loads((folder / "jaxalign_head.json").read_text())


@pytest.mark.long
def test_scores_half_way_are_normalised_by_their_own_evaluation(runs, tmp_path):
    run = runs("reward")
    seen = saved_metrics(run / "checkpoints", 2)
    export_checkpoint(run, "2", output=tmp_path / "half")
    found = head_file(tmp_path / "half")
    assert found["gain"] == pytest.approx(1 / seen["eval/score_std"])
    assert found["bias"] == pytest.approx(-seen["eval/score_mean"] / seen["eval/score_std"])
    # At the end the run measures the same rows: its own way to gain and bias gives what the evaluation says.
    last, final = saved_metrics(run / "checkpoints", 4), head_file(run / "export")
    assert final["gain"] == pytest.approx(1 / last["eval/score_std"], rel=1e-4)
    assert final["bias"] == pytest.approx(-last["eval/score_mean"] / last["eval/score_std"], rel=1e-3)


@pytest.mark.long
def test_scores_of_a_checkpoint_that_was_not_evaluated_are_raw_and_it_says_so(runs, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(runs("heads"), run)
    said = []
    export_checkpoint(run, "2", output=tmp_path / "known", say=said.append)
    assert not said and head_file(tmp_path / "known" / "member-1")["gain"] != 1
    shutil.rmtree(run / "checkpoints" / "2" / "metrics")
    export_checkpoint(run, "2", output=tmp_path / "raw", say=said.append)
    assert len(said) == 1 and "Step 2 was not evaluated" in said[0]
    for member in ("member-0", "member-1"):
        assert (
            head_file(tmp_path / "raw" / member)["gain"],
            head_file(tmp_path / "raw" / member)["bias"],
        ) == (1, 0)
    assert "gain is 1 and bias 0" in (tmp_path / "raw" / "README.md").read_text()


# --- the best -------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("name", ["sft", "grpo"])
def test_the_best_checkpoint_is_exported_where_a_metric_is_named(name, configs, tmp_path, capfd):
    # The learning rate falls to 0, so that step 2 of 4 has the largest; an evaluation's loss falls.
    best = {"best_metric": "eval/loss" if name == "sft" else "policy/learning_rate", "best_mode": "max"}
    config = configs.sft(tmp_path / "run") if name == "sft" else grpo_config(configs, tmp_path / "run")
    config = replace(config, run=replace(config.run, keep_last=1, progress=True, **best))
    result = {"sft": train_sft, "grpo": train_grpo}[name](config)
    run = tmp_path / "run"
    assert saved_steps(run / "checkpoints") == [2, 4]
    assert json.loads((run / "metadata.json").read_text())["exported_step"] == 2
    line = f"export: step 2 of 4, the best by {best['best_metric']}"
    assert line in (run / "run.log").read_text() and line in capfd.readouterr().err
    assert model_folder(f"{run}@best") == str(run / "export")
    export_checkpoint(run, "2", output=tmp_path / "two")
    assert_same_export(tmp_path / "two", run / "export")
    export_checkpoint(run, "4", output=tmp_path / "four")
    assert any(
        not np.array_equal(x, tensors_of(run / "export")[k]) for k, x in tensors_of(tmp_path / "four").items()
    )
    exported = models.load_pretrained(run / "export")
    jax.tree.map(np.testing.assert_array_equal, result.model.params, exported.params)


def test_in_place_of_a_damaged_best_or_latest_the_next_is_exported_and_both_are_named(runs, tmp_path):
    run = shutil.copytree(runs("sft"), tmp_path / "run")
    path = run / "metadata.json"
    body = json.loads(path.read_text())
    body["config"]["run"] |= {"best_metric": "eval/loss", "best_mode": "min"}
    path.write_text(json.dumps(body))
    best = best_step(run / "checkpoints", "eval/loss", "min")
    assert best == 4  # the latest as well
    (run / "checkpoints" / "4" / "arrays" / "manifest.ocdbt").write_bytes(b"")
    for name in ("best", "latest"):
        said = []
        exported = export_checkpoint(run, name, output=tmp_path / name, say=said.append)
        assert exported.step == 2
        assert len(said) == 1 and "checkpoints/4: the checkpoint is damaged (arrays/manifest" in said[0]
        assert "taking that of step 2" in said[0]
    with pytest.raises(CheckpointError, match=r"4: the checkpoint is damaged .arrays/manifest"):
        export_checkpoint(run, "4", output=tmp_path / "four")
    (run / "checkpoints" / "2" / "arrays" / "_METADATA").unlink()
    with pytest.raises(CheckpointError, match=r"4: the checkpoint is damaged.*2: the checkpoint is damaged"):
        export_checkpoint(run, "best", output=tmp_path / "none")
    assert not (tmp_path / "none").exists() and saved_steps(run / "checkpoints") == [2, 4]


@pytest.mark.long
def test_a_run_whose_best_checkpoint_was_damaged_exports_the_best_of_the_others(
    configs, tmp_path, monkeypatch
):
    config = configs.sft(tmp_path / "run")
    often = {"save_every": 1, "eval_every": 1, "best_metric": "eval/loss", "best_mode": "max"}
    config = replace(config, run=replace(config.run, **often))
    folder, plain = tmp_path / "run" / "checkpoints", CheckpointStore.wait

    def damaged(self):
        plain(self)
        if (folder / "4").is_dir():
            best = best_step(folder, "eval/loss", "max")
            (folder / str(best) / "arrays" / "manifest.ocdbt").write_bytes(b"")

    monkeypatch.setattr(CheckpointStore, "wait", damaged)
    train_sft(config)
    best = best_step(folder, "eval/loss", "max")
    second = best_step(folder, "eval/loss", "max", without=[best])
    assert best != 4 and second != best
    log = (tmp_path / "run" / "run.log").read_text()
    assert (
        f"{best}: the checkpoint is damaged (arrays/manifest.ocdbt" in log and "exporting the best of" in log
    )
    assert f"export: step {second} of 4" in log
    assert json.loads((tmp_path / "run" / "metadata.json").read_text())["exported_step"] == second


@pytest.mark.long
def test_a_checkpoint_has_no_metrics_of_other_weights(configs, tmp_path):
    config = configs.sft(tmp_path / "run")
    train_sft(replace(config, run=replace(config.run, save_every=3, eval_every=2, best_metric="eval/loss")))
    assert saved_steps(tmp_path / "run" / "checkpoints") == [3, 4]
    assert saved_metrics(tmp_path / "run" / "checkpoints", 3) == {}
    assert "eval/loss" in saved_metrics(tmp_path / "run" / "checkpoints", 4)


def test_a_metric_that_no_checkpoint_has_is_said_and_the_last_is_exported(configs, tmp_path):
    config = configs.sft(tmp_path / "run")
    train_sft(replace(config, run=replace(config.run, best_metric="eval/los")))
    log = (tmp_path / "run" / "run.log").read_text()
    assert (
        "run.best_metric=eval/los: no checkpoint was evaluated by it (metrics: eval/entropy, eval/loss" in log
    )
    assert json.loads((tmp_path / "run" / "metadata.json").read_text())["exported_step"] == 4
    with pytest.raises(CheckpointError, match="no checkpoint was evaluated by eval/los; name a step: 2, 4"):
        export_checkpoint(tmp_path / "run", "best")


# --- what is refused ------------------------------------------------------------------------------


def test_what_is_not_there_is_one_line(runs, tmp_path):
    run = runs("sft")
    with pytest.raises(CheckpointError, match=r"no checkpoint at step 3; saved steps: 2, 4"):
        export_checkpoint(run, "3")
    with pytest.raises(ConfigError, match=r"run\.best_metric was not set, .*; name a step: 2, 4"):
        export_checkpoint(run, "best")
    with pytest.raises(ConfigError, match=r"--checkpoint=newest: expected a step, best or latest"):
        export_checkpoint(run, "newest")
    with pytest.raises(ConfigError, match=r"expected a run folder, but it has no metadata.json"):
        export_checkpoint(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(ModelError, match=r"has no config\.json; nothing was replaced"):
        export_checkpoint(run, output=tmp_path / "full")


@pytest.mark.long
def test_a_run_of_a_live_model_asks_for_its_base(configs, tiny_model_folder, tmp_path):
    live, tokenizer = models.load_pretrained(tiny_model_folder), models.load_tokenizer(tiny_model_folder)
    config = configs.sft(tmp_path / "run", model=replace(configs.model, path=""), lora=LORA)
    train_sft(config, model=live, tokenizer=tokenizer)
    with pytest.raises(
        ConfigError, match=r"the initial model was passed live .*--checkpoint=4 --base=FOLDER"
    ):
        export_checkpoint(tmp_path / "run")
    export_checkpoint(tmp_path / "run", base=str(tiny_model_folder), output=tmp_path / "made")
    jax.tree.map(
        np.testing.assert_array_equal, tensors_of(tmp_path / "made"), tensors_of(tmp_path / "run" / "export")
    )
    wide = replace(models.load_config(tiny_model_folder), hidden_size=32)
    models.save_pretrained(models.create(wide, key=jax.random.key(0)), tmp_path / "wide", tokenizer=tokenizer)
    with pytest.raises(
        ModelError, match=r"k_proj/a of the checkpoint has shape \[2, 16, 2\].*wide.* \[2, 32, 2\]"
    ):
        export_checkpoint(tmp_path / "run", base=str(tmp_path / "wide"), output=tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_run_whose_model_has_moved_says_which_and_takes_another(runs, tiny_model_folder, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(runs("sft"), run)
    noted = json.loads((run / "metadata.json").read_text())
    assert noted["models"]["model"]["path"] == str(tiny_model_folder)
    noted["models"]["model"]["path"] = "/not/here"
    (run / "metadata.json").write_text(json.dumps(noted))
    with pytest.raises(ModelError, match=r"was not found; name it with --base \(/not/here: no such folder"):
        export_checkpoint(run, "2")
    assert export_checkpoint(run, "2", base=str(tiny_model_folder)).step == 2


@pytest.mark.long
def test_an_adapter_that_peft_cannot_hold_leaves_the_merged_export_and_says_so(
    tiny_model_folder, pairs_file, steps_file, byte_tokenizer, tmp_path
):
    folder = tmp_path / "gpt2"
    byte_tokenizer.save_pretrained(folder)
    sizes = {"vocab_size": 259, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64}
    special = {"bos_token_id": 256, "eos_token_id": 257}
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"} | sizes | special))
    configs = Configs(tiny_model_folder, pairs_file, steps_file)
    source = replace(configs.model, path=str(folder), random_init=True)
    run = tmp_path / "run"
    lora = replace(LORA, dora=True, targets=("q_proj", "v_proj"))
    train_sft(configs.sft(run, model=source, lora=lora, train=replace(configs.train, steps=1)))
    assert (run / "export" / "model.safetensors").is_file() and not (run / "adapter").exists()
    assert "no adapter/ exported: gpt2 fuses " in (run / "run.log").read_text()
    with pytest.raises(ModelError, match="gpt2 fuses"):
        export_checkpoint(run, "1", merge=False)
