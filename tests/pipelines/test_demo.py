"""The demo's plan, and the whole pipeline with a few steps a stage."""

import json

import pytest

from jaxalign.config import parse
from jaxalign.errors import UserError
from jaxalign.pipelines import demo, story_world
from jaxalign.pipelines.demo import DemoConfig, demo_pipeline, run_demo
from jaxalign.pipelines.pipeline import PipelineConfig, placed, run_pipeline


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    return story_world.write_world(folder, seed=0, stories=64, preferences=64, held_out=16)


def test_quick_has_the_same_stages_with_fewer_steps():
    for name in ("base", "sft", "reward", "ppo", "dpo"):
        assert 0 < getattr(demo.QUICK, name) < getattr(demo.FULL, name)


def test_every_stage_gets_its_own_folder_and_the_seed(files):
    plan = placed(demo_pipeline(DemoConfig(output="somewhere", seed=7), files))
    stages = {name: getattr(plan, name).run for name in ("sft", "reward", "ppo", "dpo")}
    assert {run.output for run in stages.values()} == {f"somewhere/{name}" for name in stages}
    assert {run.seed for run in stages.values()} == {7}
    # The live reward follows the truth too; the critic still starts from the reward model.
    assert (plan.ppo.critic.init, plan.ppo.critic.path) == ("path", "somewhere/reward")


def test_dpo_without_data_of_its_own_takes_the_reward_models():
    config = parse(PipelineConfig, "pipeline", ["--reward.data.train=[pairs.jsonl]"])
    assert placed(config).dpo.data.train == ("pairs.jsonl",)


def test_every_row_of_the_world_fits_the_model():
    import random

    tokenizer, rng = story_world.build_tokenizer(), random.Random(0)
    prompts = story_world.all_prompts(0)
    assert max(len(tokenizer(p)["input_ids"]) for p in prompts) + demo.MAX_NEW_TOKENS <= demo.MAX_POSITIONS
    stories = [f"{p} {story_world.write_completion(rng, p, rng.random())}" for p in prompts]
    assert max(len(tokenizer(s)["input_ids"]) for s in stories) < demo.MAX_LENGTH


def test_a_model_without_its_files_is_refused():
    with pytest.raises(ValueError, match="expected all three"):
        DemoConfig(model="somewhere")


def test_own_model_and_files_reach_every_stage():
    config = DemoConfig(model="m", demonstrations=("d.jsonl",), comparisons=("c.jsonl",), output="o", seed=3)
    plan = demo.own_pipeline(config)
    assert (plan.sft.model.path, plan.sft.data.train) == ("m", ("d.jsonl",))
    assert plan.reward.data.train == plan.dpo.data.train == plan.ppo.data.train == ("c.jsonl",)
    assert (plan.output, plan.seed) == ("o", 3)


def test_a_pipeline_without_a_folder_is_refused():
    with pytest.raises(UserError, match="output"):
        run_pipeline(PipelineConfig())


@pytest.mark.slow
def test_the_demo_runs_from_nothing_to_a_report(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "QUICK", demo.Steps(base=2, sft=2, reward=2, ppo=1, dpo=2))
    monkeypatch.setattr(demo, "WORLD", {"stories": 700, "preferences": 640, "held_out": 16})
    config = DemoConfig(output=str(tmp_path / "demo"), quick=True, device="cpu")
    result = run_demo(config)
    written = json.loads((tmp_path / "demo" / "comparison.json").read_text())
    assert [m["method"] for m in written["methods"]] == ["base", "SFT", "PPO", "DPO"]
    assert result.table in capsys.readouterr().out
    by_name = {r.name: r for r in result.results}
    assert by_name["SFT"].kl.mean == 0.0
    assert by_name["SFT"].wins is None
    assert all(r.true.mean <= story_world.BEST_REWARD for r in result.results)
    page = (tmp_path / "demo" / "report.html").read_text()
    assert "Over-optimisation" in page
    assert page.count("data:image/png") >= 6
    with pytest.raises(UserError, match="already holds a demo"):
        run_demo(config)
