"""TruthfulQA's questions and their scores are those of lm-evaluation-harness (its release 0.4.13)."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from jaxalign.evaluation.tasks import truthfulqa
from jaxalign.evaluation.tasks.choices import choice_scores

lm_eval = pytest.importorskip("lm_eval")

FIELDS = ("Category", "Question", "Best Answer", "Correct Answers", "Incorrect Answers")
ROWS = [
    ("Food", "What if you eat seeds?", "Nothing", "Nothing; They pass.; Nothing", "You grow; You die"),
    (
        "Law",
        "Größe zählt?",
        "No",
        "No; Nie und nimmer, das ist 東京",
        "Yes; Only on Mondays.; Ja; Nobody knows it",
    ),
    ("Myth", "Who is it?", "I have no comment.", "I have no comment.; Nobody", "The Yeti"),
]
# The same rows as the published multiple-choice file has them: right answers, wrong answers.
MC1 = [
    (["Nothing."], ["You grow.", "You die."]),
    (["No."], ["Yes.", "Only on Mondays.", "Ja.", "Nobody knows it."]),
    (["I have no comment."], ["The Yeti."]),
]
MC2 = [
    (["Nothing.", "They pass."], MC1[0][1]),
    (["No.", "Nie und nimmer, das ist 東京."], MC1[1][1]),
    (["I have no comment.", "Nobody."], MC1[2][1]),
]


def targets(right, wrong):
    return {"choices": [*right, *wrong], "labels": [*[1] * len(right), *[0] * len(wrong)]}


DOCS = [
    {"question": row[1], "mc1_targets": targets(*one), "mc2_targets": targets(*all_of)}
    for row, one, all_of in zip(ROWS, MC1, MC2, strict=True)
]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    place = tmp_path_factory.mktemp("truthfulqa") / "TruthfulQA.csv"
    with place.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([FIELDS, *ROWS])
    return str(place)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """The harness's tasks on rows of our own."""
    from lm_eval.tasks import TaskManager

    home = tmp_path_factory.mktemp("tasks")
    data = home / "rows.jsonl"
    data.write_text("".join(json.dumps(doc) + "\n" for doc in DOCS))
    theirs = Path(lm_eval.__file__).parent / "tasks/truthfulqa"
    for kind in ("mc1", "mc2"):
        text = (
            f"include: {theirs}/truthfulqa_{kind}.yaml\ntask: {kind}\ntag: null\ndataset_path: json\n"
            f"dataset_name: null\ndataset_kwargs: {{data_files: {{validation: {data}}}}}\n"
        )
        if kind == "mc1":  # its only metric is acc
            text += "metric_list: [{metric: acc}, {metric: acc_bytes}]\n"
        (home / f"{kind}.yaml").write_text(text)
    manager = TaskManager(include_path=str(home), include_defaults=False)
    return manager.load(["mc1", "mc2"])["tasks"]


@pytest.fixture
def questions(path):
    return {"mc1": truthfulqa.read_mc1(path), "mc2": truthfulqa.read_mc2(path)}


@pytest.mark.parametrize("kind", ["mc1", "mc2"])
def test_questions_and_choices_are_those_of_the_harness(tasks, questions, kind):
    for doc, question in zip(DOCS, questions[kind], strict=True):
        assert question.context == tasks[kind].doc_to_text(doc)
        assert question.choices == tuple(f" {choice}" for choice in tasks[kind].doc_to_choice(doc))
        labels = doc[f"{kind}_targets"]["labels"]
        assert question.right == tuple(i for i, label in enumerate(labels) if label)


@pytest.mark.parametrize("kind", ["mc1", "mc2"])
def test_scores_are_those_of_the_harness(tasks, questions, kind):
    rng, found = np.random.default_rng(0), []
    for _ in range(50):
        for doc, question in zip(DOCS, questions[kind], strict=True):
            # Near enough to each other that the shares are not all 0 or 1, and far below 0 as of long answers.
            logps = -30 - rng.gamma(1.0, 2.0, len(question.choices))
            theirs = tasks[kind].process_results(doc, [(logp, False) for logp in logps])
            ours = choice_scores(question, logps)
            found.append(ours)
            if kind == "mc1":
                # The question's only right answer is the first.
                assert (ours["accuracy"], ours["accuracy_per_byte"]) == (theirs["acc"], theirs["acc_bytes"])
            else:
                assert ours["right_probability"] == pytest.approx(theirs["acc"], abs=1e-12)
    for name in ("accuracy", "accuracy_per_byte"):
        assert 0 < np.mean([scores[name] for scores in found]) < 1
    assert any(scores["accuracy"] != scores["accuracy_per_byte"] for scores in found)
