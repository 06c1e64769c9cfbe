"""results.json is read as it was written, and what is wrong in it is named."""

import math
import re

import pytest

from jaxalign.errors import DataError
from jaxalign.evaluation.results import Figure, is_rate, labels_of, notes_of, parse_results, read_results
from tests.evaluation import evaluation_folders as folders


def test_every_field_is_read(tmp_path):
    groups = {"easy": {"accuracy": folders.figure(0.75, chance=0.25, better="lower", about="how often")}}
    task = folders.task(
        metrics={"nll": folders.figure(2.5, unit="nats")},
        groups=groups,
        notes=["x"],
        judge="j",
        of=9,
        seconds=2,
    )
    found = read_results(folders.write(tmp_path / "run", folders.results(tasks={"quiz": task})))
    assert (found.model, found.device, found.created) == ("mine", "cpu", "2026-01-02T03:04:05+00:00")
    assert found.settings == {"model": "mine", "shots": 5} and found.versions == {"jaxalign": "1.2.3"}
    quiz = found.tasks["quiz"]
    assert (quiz.about, quiz.source, quiz.file, quiz.kind) == (
        "What it asks.",
        "A paper",
        "rows.jsonl",
        "choices",
    )
    assert (quiz.sha256, quiz.items, quiz.of, quiz.seconds) == ("ab" * 32, 4, 9, 2.0)
    assert (quiz.judge, quiz.notes) == ("j", ("x",))
    assert quiz.metrics == {
        "nll": Figure(value=2.5, low=2.4, high=2.6, count=4, better="higher", unit="nats")
    }
    (figure,) = quiz.groups["easy"].values()
    assert (figure.value, figure.chance, figure.better, figure.about) == (0.75, 0.25, "lower", "how often")


def test_numbers_that_json_has_no_name_for_are_read():
    # As `runs.records` writes them.
    written = folders.figure() | {"value": "nan", "low": "-inf", "high": None}
    found = parse_results(folders.results(tasks={"quiz": folders.task({"x": written})}))
    figure = found.tasks["quiz"].metrics["x"]
    assert math.isnan(figure.value) and figure.low == -math.inf and math.isnan(figure.high)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"value": "high"}, "accuracy: expected a number in 'value', got 'high'"),
        ({"value": None}, "accuracy: expected a number in 'value', got nothing"),
        ({"value": True}, "accuracy: expected a number in 'value', got True"),
        ({"count": 1.5}, "accuracy: expected a whole number in 'count', got 1.5"),
        ({"better": "up"}, "accuracy: expected higher, lower or nothing in 'better', got 'up'"),
    ],
)
def test_a_wrong_figure_is_named(changes, said, tmp_path):
    task = folders.task({"accuracy": folders.figure() | changes})
    folder = folders.write(tmp_path / "run", folders.results(tasks={"quiz": task}))
    with pytest.raises(DataError, match=rf"results\.json: tasks: quiz: metrics: {re.escape(said)}"):
        read_results(folder)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (folders.results(model=3), "expected a text in 'model', got 3"),
        (folders.results(tasks=[]), r"expected an object in 'tasks', got \[\]"),
        (
            folders.results(tasks={"quiz": folders.task(notes="x")}),
            "quiz: expected a list of texts in 'notes'",
        ),
        (folders.results(tasks={"quiz": folders.task(of=None)}), "quiz: expected a whole number in 'of'"),
        # Its items would be looked for elsewhere.
        (folders.results(tasks={"../quiz": folders.task()}), r"expected a task's name.*'\.\./quiz'"),
        ([], "expected an object, got"),
    ],
)
def test_a_wrong_field_is_named(found, said, tmp_path):
    with pytest.raises(DataError, match=rf"results\.json: .*{said}"):
        read_results(folders.write(tmp_path / "run", found))


def test_a_folder_without_results_is_named(tmp_path):
    with pytest.raises(
        DataError, match=r"results\.json: no such file; expected a folder that `jaxalign evaluate`"
    ):
        read_results(tmp_path / "nowhere")
    (tmp_path / "results.json").write_text('{"model": ')
    with pytest.raises(DataError, match=r"results\.json: not readable JSON \(Expecting value"):
        read_results(tmp_path)


@pytest.mark.parametrize(
    ("figures", "rate"),
    [
        ([(0.4, 0.3, 0.5)], True),
        # Intervals by the normal distribution reach beyond the ends.
        ([(0.99, 0.95, 1.03)], True),
        # Of all models and groups alike.
        ([(0.4, 0.3, 0.5), (1.4, 1.3, 1.5)], False),
        ([(0.4, -2.0, 3.0)], False),
        ([(1.05, math.nan, math.nan)], False),
        ([(-0.1, -0.2, 0.0)], False),
        ([(math.nan, math.nan, math.nan)], False),
        ([(math.nan, math.nan, math.nan), (0.5, math.nan, math.nan)], True),
        ([], False),
    ],
)
def test_what_looks_like_a_fraction_is_a_rate(figures, rate):
    assert is_rate(Figure(value=v, low=low, high=high, count=1) for v, low, high in figures) == rate


def test_a_unit_says_whether_it_is_a_rate():
    half = {"value": 0.5, "low": 0.4, "high": 0.6, "count": 1}
    assert not is_rate([Figure(**half, unit="nats")])
    assert not is_rate([Figure(**half, unit="")])
    assert is_rate([Figure(**half | {"value": 1.5}, unit="rate")])


def test_two_evaluations_of_one_model_have_two_names():
    found = [parse_results(folders.results(name)) for name in ("a", "b", "a")]
    assert labels_of(found) == ["a (1)", "b", "a (2)"]


def test_a_note_is_told_once_and_says_whose_it_is():
    def tasks(*notes, **changes):
        return parse_results(
            folders.results(tasks={"quiz": folders.task(notes=list(notes), **changes)})
        ).tasks["quiz"]

    assert notes_of(["a"], [tasks("x", "y")]) == ["x", "y"]
    assert notes_of(["a", "b", "c"], [tasks("x", "y"), None, tasks("y", "z")]) == ["a: x", "y", "c: z"]
    assert notes_of(["a", "b"], [tasks(), tasks(items=3)]) == [
        "The models were not asked the same number of rows."
    ]
    assert notes_of(["a", "b"], [tasks(), tasks(items=3, sha256="cd")]) == [
        "The models were not asked the rows of the same file."
    ]
    assert notes_of(["a", "b"], [tasks(judge="j"), tasks()]) == [
        "The models did not have the same judge: j judged a, nobody judged b."
    ]
