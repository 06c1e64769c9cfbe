"""Which prompts an evaluation completes."""

import json
from types import SimpleNamespace

import pytest

from jaxalign.data import DataConfig, load_dataset
from jaxalign.errors import ConfigError, DataError
from jaxalign.rollout import SamplingConfig
from jaxalign.training.core.eval_config import GenerateEvalConfig
from jaxalign.training.core.eval_prompts import eval_prompts, spread
from tests.data.conftest import byte_tokenizer

SHAPE = SimpleNamespace(max_positions=24)


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def run():
    kept, said = {}, []
    return SimpleNamespace(
        metadata=lambda: kept,
        add_metadata=lambda **values: kept.update(values),
        info=lambda line: None,
        warn=said.append,
        said=said,
    )


def chosen(run, section, *, held_out=(), **asked):
    config = GenerateEvalConfig(every=3, sampling=SamplingConfig(max_new_tokens=16), **asked)
    return eval_prompts(run, config, section, held_out, byte_tokenizer(), SHAPE, seed=0)


@pytest.fixture
def pairs(tmp_path):
    """Training rows under other names than usual, and as many completions of four prompts."""
    rows = [{"question": f"q{i % 4}", "good": "a" * (i + 1), "bad": "b"} for i in range(12)]
    path = written(tmp_path / "pairs.jsonl", rows)
    columns = {"prompt": "question", "chosen": "good", "rejected": "bad"}
    return DataConfig(
        train=(path,), columns=columns, template="plain", validation_fraction=0.5, limit=12, max_length=20
    )


def test_held_out_rows_give_each_prompt_once(run, pairs):
    data = load_dataset(pairs, "comparison", byte_tokenizer(), seed=0)
    there = {example.prompt_text for example in data.validation}
    assert 0 < len(there) < len(data.validation)
    found = chosen(run, pairs, held_out=data.validation)
    assert sorted(example.prompt_text for example in found) == sorted(there)
    assert not run.metadata()


def test_a_file_of_prompts_is_read_whole_and_by_its_own_columns(run, pairs, tmp_path):
    rows = [{"prompt": f"p{i}", "answer": i} for i in range(40)]
    path = written(tmp_path / "prompts.jsonl", rows)
    # Neither the training rows' names nor their limit is of this file.
    found = chosen(run, pairs, prompts=path, count=5)
    assert [example.prompt_text for example in found] == ["p0", "p8", "p16", "p24", "p32"]
    assert [example.columns["answer"] for example in found] == [0, 8, 16, 24, 32]
    assert byte_tokenizer().decode(found[1].prompt_tokens) == "p8"
    assert run.metadata()["eval_prompts"]["rows"] == 40


def test_a_file_of_prompts_that_changed_is_named_on_resume(run, pairs, tmp_path):
    path = written(tmp_path / "prompts.jsonl", [{"prompt": "p1"}, {"prompt": "p2"}])
    first = chosen(run, pairs, prompts=path)
    assert chosen(run, pairs, prompts=path) == first
    written(tmp_path / "prompts.jsonl", [{"prompt": "p1"}, {"prompt": "p3"}])
    with pytest.raises(
        ConfigError, match=r"--resume: .*prompts\.jsonl \(eval\.generate\.prompts\) .* has changed"
    ):
        chosen(run, pairs, prompts=path)


def test_prompts_that_leave_no_room_are_left_out_with_a_warning(run, pairs, tmp_path):
    rows = [{"prompt": "p" * n} for n in (3, 8, 9, 15)]
    path = written(tmp_path / "prompts.jsonl", rows)
    found = chosen(run, pairs, prompts=path)
    # 24 positions, 16 new tokens.
    assert [len(example.prompt_tokens) for example in found] == [3, 8]
    assert "2 of 4 prompts are left out" in run.said[0]
    path = written(tmp_path / "long.jsonl", rows[2:])
    with pytest.raises(ConfigError, match=r"max_new_tokens=16: no prompt leaves room .* context of 24"):
        chosen(run, pairs, prompts=path)


def test_without_prompts_the_keys_that_would_give_some_are_named(run, pairs, tmp_path):
    with pytest.raises(
        ConfigError, match=r"every=3: no held-out prompts; set eval\.generate\.prompts .*fraction"
    ):
        chosen(run, pairs)
    with pytest.raises(DataError, match=r"nowhere\.jsonl"):
        chosen(run, pairs, prompts=str(tmp_path / "nowhere.jsonl"))


def test_so_many_are_taken_evenly():
    assert spread(list(range(10)), 4) == [0, 2, 5, 7]
    assert spread([1, 2], 4) == [1, 2]
    assert spread([], 4) == []
