"""`jaxalign generate --file` on question files of AlpacaEval and MT-bench: what is asked, and rows for their tools."""

import json
from dataclasses import replace

import pytest

from jaxalign.errors import ConfigError, DataError
from jaxalign.inference.generate import GenerateConfig, complete, generate
from jaxalign.inference.loading import load_speaker
from jaxalign.inference.questions import model_name, next_prompt, questions_of
from jaxalign.rollout import SamplingConfig

SHORT = SamplingConfig(max_new_tokens=5)
# As published: AlpacaEval's is one JSON list, MT-bench's has one object a line.
ALPACA = [
    {"instruction": "Who?", "output": "Me.", "generator": "text_davinci_003", "dataset": "helpful_base"},
    {"instruction": "Add", "input": "1 and 2", "output": "3", "generator": "g", "dataset": "koala"},
]
MT = [
    {"question_id": 81, "category": "writing", "turns": ["W", "V"]},
    {"question_id": 101, "category": "math", "turns": ["A", "B"], "reference": ["3", "4"]},
    {"question_id": 1, "category": "generic", "turns": ["O"]},
]


@pytest.fixture
def alpaca(tmp_path):
    (tmp_path / "alpaca_eval.json").write_text(json.dumps(ALPACA))
    return str(tmp_path / "alpaca_eval.json")


@pytest.fixture
def mt_bench(tmp_path):
    (tmp_path / "question.jsonl").write_text("".join(json.dumps(row) + "\n" for row in MT))
    return str(tmp_path / "question.jsonl")


@pytest.fixture
def config(tiny_model_folder):
    return GenerateConfig(model=str(tiny_model_folder), sampling=SHORT)


def test_alpaca_evals_rows_come_back_with_what_its_tools_read(alpaca, config, tmp_path):
    rows = generate(replace(config, file=alpaca, output=str(tmp_path / "out.json")))
    assert json.loads((tmp_path / "out.json").read_text()) == rows
    assert [row["prompt"] for row in rows] == ["Who?", "Add\n\n1 and 2"]
    assert [(row["instruction"], row["dataset"]) for row in rows] == [
        ("Who?", "helpful_base"),
        ("Add", "koala"),
    ]
    assert rows[1]["input"] == "1 and 2"
    assert all(row["output"] == row["completion"].strip() not in ("Me.", "3") for row in rows)
    assert {row["generator"] for row in rows} == {"model"}
    [named, _] = generate(replace(config, file=alpaca, name="mine"))
    assert named == rows[0] | {"generator": "mine"}


def test_rows_of_annotations_are_all_asked_also_those_that_ended_in_a_draw(tmp_path):
    row = {"instruction": "Who?", "dataset": "d", "output_1": "a", "output_2": "b", "preference": 1.5}
    (tmp_path / "annotations.json").write_text(json.dumps([row, row | {"preference": 1}]))
    found = questions_of(str(tmp_path / "annotations.json"))
    assert found is not None and [question.turns for question in found] == [("Who?",)] * 2


@pytest.mark.long
def test_mt_benchs_second_question_follows_the_first_answer(mt_bench, config, tmp_path, capsys):
    settings = replace(config, file=mt_bench, output=str(tmp_path / "out.jsonl"), template="markers")
    rows = generate(settings)
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()] == rows
    assert [(row["question_id"], row["category"]) for row in rows] == [
        (81, "writing"),
        (101, "math"),
        (1, "generic"),
    ]
    assert [len(row["choices"][0]["turns"]) for row in rows] == [2, 2, 1]
    assert {row["model_id"] for row in rows} == {"model"}
    assert "3 answers" in capsys.readouterr().out
    chat_model = load_speaker(config.model, template="markers")
    first = complete(chat_model, [MT[1]["turns"][0]], settings, row_ids=[1])[0]["completion"]
    said = [
        {"role": "user", "content": "A"},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "B"},
    ]
    second = complete(chat_model, [said], settings, row_ids=[len(MT) + 1])[0]
    assert rows[1]["choices"][0]["turns"] == [first.strip(), second["completion"].strip()]
    assert rows[1]["choices"][0]["logp"][1] == second["logp"]
    # Whatever the batches.
    for size in (1, 2):
        assert generate(replace(settings, batch_size=size, output="")) == rows


def test_a_sample_is_a_choice_and_goes_on_from_its_own_answer(mt_bench, config):
    config = replace(
        config, file=mt_bench, limit=1, sampling=replace(SHORT, num_samples=2), template="markers"
    )
    [row] = generate(config)
    assert [choice["index"] for choice in row["choices"]] == [0, 1]
    first, second = (choice["turns"] for choice in row["choices"])
    assert first[0] != second[0] and first[1] != second[1]


def test_without_a_chat_template_the_next_question_is_a_paragraph_of_its_own():
    said = ["Q1", " A1", "Q2", " A2"]
    assert next_prompt([], "Q", plain=True) == next_prompt([], "Q", plain=False) == "Q"
    assert next_prompt(said, "Q3", plain=True) == "Q1 A1\n\nQ2 A2\n\nQ3"
    assert [turn["role"] for turn in next_prompt(said, "Q3", plain=False)] == ["user", "assistant"] * 2 + [
        "user"
    ]


def test_a_plain_model_answers_both_turns_on_the_terminal(mt_bench, config, capsys):
    chat_model = load_speaker(config.model)
    first = complete(chat_model, ["W"], config)[0]
    second = complete(chat_model, [f"W{first['completion']}\n\nV"], config, row_ids=[1])[0]
    generate(replace(config, file=mt_bench, limit=1))
    texts = [f"> {row['prompt']}\n{row['completion']}\n[{row['finish_reason']}" for row in (first, second)]
    shown = capsys.readouterr().out
    assert shown.startswith(texts[0]) and texts[1] in shown


def test_turns_that_the_context_has_no_room_for_are_left_out_and_said(tmp_path, config, capsys):
    (tmp_path / "q.jsonl").write_text(
        json.dumps({"question_id": 1, "turns": ["x" * 40, "y" * 20]})
        + "\n"
        + json.dumps({"question_id": 2, "turns": ["x", "y"]})
    )
    rows = generate(replace(config, file=str(tmp_path / "q.jsonl")))
    assert rows[0]["choices"][0]["left_out"] == [0, 2]
    assert "left_out" not in rows[1]["choices"][0]
    assert "\nwarning: 1 questions were asked without their earlier turns" in capsys.readouterr().err


def test_a_row_of_another_layout_and_a_prompt_beside_are_refused(tmp_path, mt_bench, config):
    (tmp_path / "mixed.jsonl").write_text("\n".join(json.dumps(row) for row in (MT[0], ALPACA[0])))
    with pytest.raises(DataError, match=r"mixed.jsonl:2: expected a question of mt_bench"):
        generate(replace(config, file=str(tmp_path / "mixed.jsonl")))
    with pytest.raises(ConfigError, match=r"--prompt: cannot be combined with MT-bench"):
        generate(replace(config, file=mt_bench, prompt=("hi",)))


def test_other_files_of_instructions_are_no_benchmark(tmp_path):
    for row in ({"instruction": "a", "input": "", "output": "b"}, {"prompt": "a"}, {"turns": ["a"]}):
        (tmp_path / "rows.jsonl").write_text(json.dumps(row))
        assert questions_of(str(tmp_path / "rows.jsonl")) is None


def test_a_model_is_called_by_the_names_of_its_folders():
    assert model_name("Qwen/Qwen2.5-0.5B", "", ()) == "Qwen2.5-0.5B"
    assert model_name("runs/dpo/export", "", ()) == "dpo"
    assert model_name("", "runs/sft", ("runs/helpful", "runs/safe/export")) == "sft+helpful+safe"
