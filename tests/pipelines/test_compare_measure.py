"""All methods are measured on prompts that are written in one way; a judge reads both answers."""

import json
from dataclasses import replace

import pytest

from jaxalign.evaluation.judging.config import JudgeConfig
from jaxalign.pipelines import compare_measure
from jaxalign.pipelines.compare_cell import Cell
from jaxalign.pipelines.compare_measure import ITEMS, start_template
from jaxalign.pipelines.compare_methods import trainer_config
from jaxalign.training.sft import train_sft
from tests.pipelines.compare_files import small


def test_a_folder_that_is_no_run_is_asked_as_the_methods_are_trained(tmp_path, tiny_model_folder):
    config = small(tmp_path, sft=str(tiny_model_folder))
    assert start_template(config) == "plain"
    # Training falls back on turn markers where the tokenizer has no chat template; asking alone would on plain text.
    assert start_template(replace(config, settings={})) == "markers"
    assert start_template(replace(config, settings={"all": {"data": {"template": "plain"}}})) == "plain"


@pytest.mark.long
def test_a_run_says_itself_how_prompts_are_written(tmp_path, tiny_model_folder):
    config = small(tmp_path, str(tiny_model_folder))
    cell = Cell(method="sft", beginning=True)
    run = cell.folder(config) / "run"
    made = trainer_config(config, "sft", seed=0, folder=run, start=config.model, beginning=True)
    train_sft(made)
    assert start_template(config) == "auto"


def test_a_judge_reads_each_answer_beside_the_supervised_models_of_the_same_seed(tmp_path, monkeypatch):
    config = small(tmp_path, sft="start", judge=JudgeConfig(model="judge"))
    folder = Cell(method="sft", seed=1).folder(config)
    (folder / ITEMS).parent.mkdir(parents=True)
    baseline = [{"answers": [f"base {i}"], "scores": {}} for i in range(6)]
    (folder / ITEMS).write_text("".join(json.dumps(item) + "\n" for item in baseline))
    seen = []

    class Judge:
        def __init__(self, settings, *, judged, cache, batch_size):
            assert (judged.path, cache.name) == ("start", "judge.jsonl")
            self.pairs = self
            self.asked = self.unread = 0

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def __call__(self, prompts, first, second, *, columns):
            seen.extend(zip(prompts, first, second, strict=True))
            return [1.0 if a.startswith("ours") else 0.0 for a in first]

    monkeypatch.setattr(compare_measure, "Judge", Judge)
    items = [{"answers": [f"ours {i}"], "scores": {}} for i in range(6)]
    wins, notes = compare_measure._judge(config, Cell(method="dpo", seed=1), items)
    assert wins == [1.0] * 6 and notes == []
    assert [prompt for prompt, _, _ in seen] == ["held 0", "held 1", "held 2", "held 3", "held 4", "Tell  3"]
    assert all({a, b} == {f"ours {i}", f"base {i}"} for i, (_, a, b) in enumerate(seen))
    assert {a.split()[0] for _, a, _ in seen} == {"ours", "base"}  # sides are random
