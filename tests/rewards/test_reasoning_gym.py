"""Tasks of reasoning-gym; its own package is called where it is installed, a stand-in where it is not."""

import json
import sys
from types import SimpleNamespace

import pytest

from jaxalign.errors import UserError
from jaxalign.rewards.reasoning_gym import task_score, write_tasks


def create_dataset(name, *, size, seed, largest=9):
    if name != "sums":
        raise ValueError(f"Dataset '{name}' not registered")
    return [
        {
            "question": f"{seed} + {n}?",
            "answer": str(seed + n),
            "metadata": {"source_dataset": name, "largest": largest},
        }
        for n in range(size)
    ]


def get_score_answer_fn(name):
    if name != "sums":
        raise ValueError(f"Dataset '{name}' not registered")
    return lambda answer, entry: 1.0 if answer == entry["answer"] else 0.01


@pytest.fixture
def package(monkeypatch):
    stand_in = SimpleNamespace(create_dataset=create_dataset, get_score_answer_fn=get_score_answer_fn)
    monkeypatch.setitem(sys.modules, "reasoning_gym", stand_in)


def score(completions, columns):
    return task_score(
        ["p"] * len(completions), completions, completion_ids=[[]] * len(completions), columns=columns
    )


def test_the_answer_is_in_the_last_tags_or_is_all(package):
    columns = {"answer": ["7"] * 4, "metadata": [{"source_dataset": "sums"}] * 4}
    texts = ["so <answer>3</answer> no: <answer> 7\n</answer>.", " 7 ", "it is 7", "<answer>7"]
    assert score(texts, columns) == [1.0, 1.0, 0.01, 0.01]


def test_tasks_are_written_as_rows_of_prompts(package, tmp_path):
    file = tmp_path / "sums.jsonl"
    write_tasks("sums", file, rows=2, seed=3, instruction="Only the number.", largest=4)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["prompt"] for row in rows] == ["3 + 0?\nOnly the number.", "3 + 1?\nOnly the number."]
    assert rows[1]["answer"] == "4" and rows[1]["metadata"] == {"source_dataset": "sums", "largest": 4}
    with pytest.raises(UserError, match="exists"):
        write_tasks("sums", file, rows=1, seed=0)
    assert len(file.read_text().splitlines()) == 2


def test_what_is_unknown_is_one_line_and_leaves_no_file(package, tmp_path):
    with pytest.raises(UserError, match="task products: Dataset 'products' not registered"):
        write_tasks("products", tmp_path / "a.jsonl", rows=1, seed=0)
    with pytest.raises(UserError, match=r"task sums: .*unexpected keyword argument 'smallest'"):
        write_tasks("sums", tmp_path / "a.jsonl", rows=1, seed=0, smallest=1)
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="'products' not registered"):
        score(["7"], {"answer": ["7"], "metadata": [{"source_dataset": "products"}]})
    with pytest.raises(UserError, match=r"no column 'metadata'; columns: \['answer'\]"):
        score(["7"], {"answer": ["7"]})
    with pytest.raises(UserError, match="expected 'source_dataset'"):
        score(["7"], {"answer": ["7"], "metadata": [{}]})


def test_without_the_package_its_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(UserError, match=r"pip install 'jaxalign\[reasoning-gym\]'"):
        score(["7"], {"answer": ["7"], "metadata": [{"source_dataset": "sums"}]})


def test_the_packages_own_tasks_are_scored_as_it_scores_them(tmp_path):
    pytest.importorskip("reasoning_gym")
    file = tmp_path / "sums.jsonl"
    write_tasks("chain_sum", file, rows=3, seed=0, min_terms=2, max_terms=2)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    columns = {name: [row[name] for row in rows] for name in ("answer", "metadata")}
    assert score([row["answer"] for row in rows], columns) == [1.0] * 3
    assert max(score(["none"] * 3, columns)) < 1.0
