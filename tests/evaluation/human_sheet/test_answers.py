"""Answers are read in each layout of `generate`, and matched by prompt."""

import json
import re
from pathlib import Path

import pytest

from jaxalign.errors import ConfigError, DataError
from jaxalign.evaluation.human_sheet.answers import common_prompts, plain, read_all, read_model_answers, shown
from jaxalign.inference.questions import answer_rows, questions_of

REAL = Path(__file__).resolve().parents[4] / "shared/data/evaluation"
TURN = {"finish_reason": "stop", "logp": -1.0, "tokens": 2}
PLAIN = {"prompt": "Say hi.", "completion": " Hi.", **TURN}
ALPACA = {"instruction": "Add.", "input": "1 and 2", "output": "3", "generator": "mine"}
BENCH = {"question_id": 81, "model_id": "mine", "choices": [{"index": 0, "turns": ["a1", "a2"]}]}
QUESTION = {"question_id": 81, "category": "writing", "turns": ["One?", "Two?"]}


def lines(folder, *rows, name="rows.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def user(text):
    return (("user", text),)


def test_a_plain_row_has_a_prompt_and_a_completion(tmp_path):
    found = read_model_answers(lines(tmp_path, PLAIN, name="llama.v2.jsonl"))
    assert found.answers == {user("Say hi."): (("assistant", " Hi."),)}
    assert (found.model, found.doubled) == ("llama", ())


def test_an_alpaca_row_asks_what_a_plain_row_with_its_input_asks(tmp_path):
    alpaca = read_model_answers(lines(tmp_path, ALPACA))
    asked = PLAIN | {"prompt": [{"role": "user", "content": "Add.\n\n1 and 2\n"}]}
    assert list(alpaca.answers) == list(read_model_answers(lines(tmp_path, asked)).answers)
    assert (alpaca.model, list(alpaca.answers.values())) == ("mine", [(("assistant", "3"),)])


@pytest.mark.parametrize("layout", ["alpaca_eval", "mt_bench"])
def test_the_rows_that_generate_writes_are_read(layout, tmp_path):
    asked = QUESTION if layout == "mt_bench" else {"instruction": "One?", "dataset": "koala"}
    questions = lines(tmp_path, asked, name="questions.jsonl")
    (question,) = questions_of(questions)
    turns = [{"prompt": turn, "completion": f" to {turn} ", **TURN} for turn in question.turns]
    path = lines(tmp_path, *answer_rows(question, [turns], "mine"))
    found = read_model_answers(path, questions=questions if layout == "mt_bench" else "")
    expected = [("assistant", "to One?"), ("user", "Two?"), ("assistant", "to Two?")]
    assert found.answers == {user("One?"): tuple(expected[: 2 * len(turns) - 1])}
    assert found.model == "mine"


def test_further_answers_to_a_prompt_are_counted_and_the_first_counts(tmp_path):
    samples = [PLAIN | {"completion": text} for text in ("a", "b", "c")]
    found = read_model_answers(lines(tmp_path, samples[0], PLAIN | {"prompt": "x"}, *samples[1:]))
    assert found.answers[user("Say hi.")] == (("assistant", "a"),)
    assert found.doubled == (user("Say hi."),) * 2
    questions = lines(tmp_path, QUESTION, name="questions.jsonl")
    choices = [{"turns": [text, text]} for text in ("a", "b")]
    bench = read_model_answers(lines(tmp_path, BENCH | {"choices": choices}), questions=questions)
    assert bench.doubled == (user("One?"),)
    assert bench.answers[user("One?")][0] == ("assistant", "a")


def test_a_chat_is_not_the_prompt_of_its_last_turn(tmp_path):
    chat = [{"role": "system", "content": "Be terse."}, {"role": "user", "content": "Say hi."}]
    found = read_model_answers(lines(tmp_path, PLAIN, PLAIN | {"prompt": chat}))
    assert list(found.answers) == [user("Say hi."), (("system", "Be terse."), ("user", "Say hi."))]
    assert [plain(prompt) for prompt in found.answers] == ["Say hi.", chat]


def test_prompts_that_only_some_answer_are_missing_of_the_others(tmp_path):
    files = [
        lines(tmp_path, *({"prompt": p, "completion": "c"} for p in prompts), name=f"{name}.jsonl")
        for name, prompts in (("one", "abc"), ("two", "dcb"), ("three", "bca"))
    ]
    common, missing = common_prompts(read_all(files))
    assert common == [user("b"), user("c")]
    assert missing == {"one": (user("d"),), "two": (user("a"),), "three": (user("d"),)}
    other = lines(tmp_path, {"prompt": "z", "completion": "c"}, name="other.jsonl")
    apart = read_all([files[0], other])
    with pytest.raises(DataError, match=r"prompts that all files have, got none \(.*one\.jsonl has 3, "):
        common_prompts(apart)


def test_models_have_different_names(tmp_path):
    one, two = (lines(tmp_path, ALPACA, name=f"{name}.jsonl") for name in "ab")
    with pytest.raises(ConfigError, match=r"b\.jsonl and .*a\.jsonl are both of mine"):
        read_all([one, two])
    assert [x.model for x in read_all([one, two], names=["old", "new"])] == ["old", "new"]
    with pytest.raises(ConfigError, match="names: expected one for each of the 2 files, got 1"):
        read_all([one, two], names=["old"])


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            {"prompt": "x"},
            "expected prompt and completion, instruction and output, or question_id and choices",
        ),
        (PLAIN | {"prompt": "y", "completion": None}, "expected a text in 'completion', got None"),
        (PLAIN | {"prompt": []}, "expected a text or messages with role and content in 'prompt', got []"),
        (PLAIN | {"prompt": [{"role": "user"}]}, "expected a text or messages with role and content"),
        (PLAIN | {"prompt": ["x"]}, "expected a text or messages with role and content"),
        (ALPACA, "expected an answer of no named model, got one of mine"),
        (BENCH | {"question_id": 82}, "there is no question 82 in "),
        (BENCH | {"choices": []}, "expected a list of answers in 'choices', got []"),
        (BENCH | {"choices": [{"turns": ["a1"]}]}, "expected an answer to each of 2 turns, got 1"),
        (
            BENCH | {"choices": [{"turns": [1, 2]}]},
            "expected a list of texts in 'turns' of each of 'choices'",
        ),
    ],
)
def test_a_wrong_row_is_named(row, said, tmp_path):
    questions = lines(tmp_path, QUESTION, name="questions.jsonl")
    with pytest.raises(DataError, match=rf"rows\.jsonl:2: {re.escape(said)}"):
        read_model_answers(lines(tmp_path, PLAIN, row), questions=questions)


def test_mt_bench_answers_need_their_questions(tmp_path):
    with pytest.raises(DataError, match=r"rows\.jsonl:1: an MT-bench answer has no question"):
        read_model_answers(lines(tmp_path, BENCH))
    with pytest.raises(DataError, match=r"q\.jsonl: expected MT-bench questions"):
        read_model_answers(lines(tmp_path, BENCH), questions=lines(tmp_path, ALPACA, name="q.jsonl"))


def test_space_around_an_answer_is_not_shown():
    assert shown((("assistant", " Hi.\n"), ("user", "Go\non"))) == (("assistant", "Hi."), ("user", "Go\non"))


@pytest.mark.skipif(not REAL.is_dir(), reason="needs the real files")
def test_published_mt_bench_answers_are_read():
    path, questions = (str(REAL / f"mt_bench_{name}.jsonl") for name in ("reference_gpt4", "question"))
    asked = {question.turns[0].strip() for question in questions_of(questions)}
    rows = [json.loads(line) for line in Path(path).read_text().splitlines()]
    found = read_model_answers(path, questions=questions)
    assert found.model == "gpt-4" and len(found.answers) == len(rows)
    assert {prompt[0][1].strip() for prompt in found.answers} <= asked
    assert {len(answer) for answer in found.answers.values()} == {3}
