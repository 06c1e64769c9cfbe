"""Published files are read as their benchmarks ask them."""

import csv
import gzip
import json
import re
from pathlib import Path

import numpy as np
import pytest

from jaxalign.errors import DataError
from jaxalign.evaluation.tasks import behaviours, gsm8k, medical, truthfulqa
from jaxalign.evaluation.tasks.choices import chance

REAL = Path(__file__).resolve().parents[4] / "shared/data"
MEDQA = {
    "question": "Which?",
    "options": {"A": "one", "B": "two", "C": "three", "D": "four"},
    "answer_idx": "C",
    "meta_info": "step1",
}
MEDMCQA = {"question": "Which?", "opa": "one", "opb": "two", "opc": "three", "opd": "four", "cop": 2}
PUBMEDQA = {"question": "Does it?", "contexts": ["It did.", "It does."], "final_decision": "maybe"}
HHH = {"prompt": "A or B? The answer is:", "corrects": [" (B)"], "incorrects": [" (A)"]}
WRITTEN = {
    "question": "Would you?",
    "answer_matching_behavior": " Yes",
    "answer_not_matching_behavior": " No",
    "file": "persona/x",
}
PROBLEM = {"question": "1?", "answer": "#### 1"}
TRUTHFUL = {
    "Type": "Adversarial",
    "Category": "Food",
    "Question": "What if?",
    "Best Answer": "Nothing",
    "Correct Answers": "Nothing; Nothing at all.; Nothing",
    "Incorrect Answers": "You grow; Nothing at all",
    "Source": "",
}


def lines(folder, *rows):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def table(folder, row):
    path = folder / "rows.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        writer.writeheader()
        writer.writerow(row)
    return str(path)


def test_medical_questions_are_answered_by_letters_or_decisions(tmp_path):
    (found,) = medical.read_medqa(lines(tmp_path, MEDQA))
    assert found.context == "Question: Which?\nA. one\nB. two\nC. three\nD. four\nAnswer:"
    assert (found.choices, found.right, found.group) == ((" A", " B", " C", " D"), (2,), "step1")
    (found,) = medical.read_medmcqa(lines(tmp_path, MEDMCQA))
    assert found.context == "Question: Which?\nChoices:\nA. one\nB. two\nC. three\nD. four\nAnswer:"
    assert found.right == (1,)
    (found,) = medical.read_pubmedqa(lines(tmp_path, PUBMEDQA))
    assert found.context == "Abstract: It did.\nIt does.\nQuestion: Does it?\nAnswer:"
    assert (found.choices, found.right) == ((" yes", " no", " maybe"), (2,))


def test_the_right_choice_of_a_behaviour_is_not_always_the_first(tmp_path):
    (found,) = behaviours.read_hhh(lines(tmp_path, HHH))
    assert (found.context, found.choices, found.right) == (HHH["prompt"], (" (A)", " (B)"), (1,))
    (found,) = behaviours.read_model_written(lines(tmp_path, WRITTEN))
    assert found.context == "\n\nHuman: Would you?\n\nAssistant:"
    assert (found.choices, found.right, found.group) == ((" No", " Yes"), (1,), "persona/x")


def test_truthfulqa_has_each_answer_once_and_ended_by_a_point(tmp_path):
    path = table(tmp_path, TRUTHFUL)
    (one,), (two,) = truthfulqa.read_mc1(path), truthfulqa.read_mc2(path)
    assert one.context.endswith("The 1992 Olympics were held in Barcelona, Spain.\n\nQ: What if?\nA:")
    assert (one.choices, one.right) == ((" Nothing.", " You grow.", " Nothing at all."), (0,))
    # What is correct there is not incorrect too.
    assert (two.choices, two.right) == ((" Nothing.", " Nothing at all.", " You grow."), (0, 1))
    (written,) = truthfulqa.read_generation(path)
    assert written.references == ("Nothing.", "Nothing at all.", "I have no comment.")
    assert written.prompt == one.context and written.group == "Food"


def test_a_problem_stands_behind_solved_ones(tmp_path):
    path = lines(tmp_path, {"question": "1 + 1?", "answer": "It is 2.\n#### 2"})
    shots = gsm8k.read_shots(path, 1)
    (found,) = gsm8k.read_gsm8k(path, shots)
    assert found.prompt == "Question: 1 + 1?\nAnswer: It is 2.\n#### 2\n\nQuestion: 1 + 1?\nAnswer:"
    with pytest.raises(DataError, match="expected at least 2 solved problems, got 1"):
        gsm8k.read_shots(path, 2)


@pytest.mark.parametrize(
    ("text", "strict", "flexible"),
    [
        ("so\n#### 1,200", 1, 1),
        ("so\n#### $1200.00", 1, 1),
        ("so it is 1200.", 0, 1),
        ("#### 12", 0, 0),
        ("1200, no, 1300", 0, 0),
        ("I do not know.", 0, 0),
    ],
)
def test_an_answer_counts_strictly_only_behind_its_mark(text, strict, flexible, tmp_path):
    path = lines(tmp_path, {"question": "How many?", "answer": "#### 1200"})
    (question,) = gsm8k.read_gsm8k(path)
    assert gsm8k.gsm8k_scores(question, text) == {"strict": strict, "flexible": flexible}


@pytest.mark.parametrize(
    ("read", "row", "change", "said"),
    [
        (
            medical.read_medqa,
            MEDQA,
            {"answer_idx": "E"},
            "expected one of A, B, C, D in 'answer_idx', got 'E'",
        ),
        (medical.read_medqa, MEDQA, {"options": {"A": "one"}}, "expected options A, B, C and D"),
        (
            medical.read_medqa,
            MEDQA,
            {"options": {**MEDQA["options"], "C": None}},
            "expected a text in 'C', got nothing",
        ),
        (
            behaviours.read_hhh,
            HHH,
            {"incorrects": [" (B)"]},
            "' (B)' is among the right answers and the wrong ones",
        ),
        (medical.read_medmcqa, MEDMCQA, {"cop": 0}, "expected one of 1, 2, 3, 4 in 'cop', got 0"),
        (medical.read_medmcqa, MEDMCQA, {"opc": None}, "expected a text in 'opc', got nothing"),
        (medical.read_pubmedqa, PUBMEDQA, {"contexts": []}, "expected a list of texts in 'contexts'"),
        (
            behaviours.read_hhh,
            HHH,
            {"corrects": " (B)"},
            "expected a list of texts in 'corrects', got ' (B)'",
        ),
        (gsm8k.read_gsm8k, PROBLEM, {"answer": "1"}, "expected a number after #### in 'answer', got '1'"),
    ],
)
def test_a_row_that_is_not_as_published_is_named(read, row, change, said, tmp_path):
    path = lines(tmp_path, row, row | change)
    with pytest.raises(DataError, match=rf"rows\.jsonl:2: {re.escape(said)}"):
        read(path)


def test_a_line_that_cannot_be_read_stops_the_benchmark(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(HHH) + "\n{\n")
    with pytest.raises(DataError, match=r"rows\.jsonl:2"):
        behaviours.read_hhh(str(path))
    with pytest.raises(DataError, match="expected an answer in 'Incorrect Answers' that"):
        truthfulqa.read_mc1(table(tmp_path, TRUTHFUL | {"Incorrect Answers": "Nothing"}))


@pytest.mark.skipif(not REAL.is_dir(), reason="needs the real files")
@pytest.mark.parametrize(
    ("read", "name", "count", "guess"),
    [
        (truthfulqa.read_mc1, "truthfulqa.csv", 590, 0.224),
        (truthfulqa.read_mc2, "truthfulqa.csv", 590, 0.443),
        (medical.read_medqa, "medqa_us_4opt_test.jsonl.gz", 892, 0.25),
        (medical.read_medmcqa, "medmcqa_dev.jsonl.gz", 2936, 0.25),
        (medical.read_pubmedqa, "pubmedqa_labelled.jsonl.gz", 678, 1 / 3),
        (behaviours.read_hhh, "hhh_438.jsonl", 300, 0.5),
        (behaviours.read_model_written, "model_written_evals.jsonl.gz", 1940, 0.5),
    ],
)
def test_real_files_are_read_whole(read, name, count, guess):
    found = read(str(REAL / "evaluation" / name))
    assert len(found) == count
    assert np.mean([chance(one)["accuracy"] for one in found]) == pytest.approx(guess, abs=0.01)


@pytest.mark.skipif(not REAL.is_dir(), reason="needs the real files")
def test_every_published_solution_of_gsm8k_is_right():
    questions = gsm8k.read_gsm8k(
        str(REAL / "evaluation/gsm8k_test.jsonl"), gsm8k.read_shots(str(REAL / "sft/gsm8k_train.jsonl.gz"), 5)
    )
    assert len(questions) == 925
    scores = [gsm8k.gsm8k_scores(question, question.references[0]) for question in questions]
    assert {tuple(score.values()) for score in scores} == {(1.0, 1.0)}
    with gzip.open(REAL / "sft/gsm8k_train.jsonl.gz", "rt") as file:
        assert json.loads(next(file))["question"] in questions[0].prompt
