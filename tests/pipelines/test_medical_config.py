"""The medical comparison: its settings are read, its files share no question, its gold reward is an F1 of words."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from jaxalign.config import parse
from jaxalign.data.readers import read_records
from jaxalign.pipelines.compare_checks import checked
from jaxalign.pipelines.compare_config import CompareConfig

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("medical_files", ROOT / "experiments" / "medical_files.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_gold_reward_is_the_f1_of_words_with_a_reference(script):
    said = ["The heart, the lung", "spleen", "anything"]
    # 2 of 4 words are in the reference (one `the`), 2 of its 3 are in the answer: 2 * 2 / (4 + 3).
    assert script.overlap(["q"] * 3, said, reference=["The heart beats", "kidney", None]) == [
        4 / 7,
        0.0,
        None,
    ]
    assert script.overlap(["q"], ["a"]) == [None]


@pytest.mark.skipif(not (SHARED / "data" / "sft" / "medquad.jsonl.gz").is_file(), reason="needs ../shared")
def test_no_held_out_question_is_trained_on_and_the_configuration_is_whole(script, tmp_path, monkeypatch):
    output = tmp_path / "runs" / "medical"
    monkeypatch.setattr(sys, "argv", ["medical_files.py", "--shared", str(SHARED), "--output", str(output)])
    script.main()
    found = {
        name: {json.loads(line)["prompt"] for line in (output / f"{name}.jsonl").read_text().splitlines()}
        for name in ("demonstrations", "pairs", "feedback", "held_out")
    }
    assert len(found["held_out"]) > 180
    assert not found["held_out"] & (found["demonstrations"] | found["pairs"] | found["feedback"])
    records, _ = read_records(str(output / "held_out.jsonl"), kind="prompt")
    assert all(record.columns["reference"] for record in records)
    (tmp_path / "work").mkdir()
    (tmp_path / "shared").symlink_to(SHARED)
    (tmp_path / "work" / "runs").symlink_to(tmp_path / "runs")
    (tmp_path / "work" / "experiments").symlink_to(ROOT / "experiments")
    monkeypatch.chdir(tmp_path / "work")
    config = parse(CompareConfig, ROOT / "experiments" / "configs" / "medical.yaml", ["--model=there"])
    assert checked(config).methods == config.methods
