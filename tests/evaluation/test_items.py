"""The items of a task are read whole, and a wrong row is named."""

import pytest

from jaxalign.errors import DataError
from jaxalign.evaluation.items import Item, read_items
from tests.evaluation import evaluation_folders as folders

CHOICES = {"choices": [" A", " B"], "logps": [-1, -2.5], "right": [1]}


def read(folder, *rows):
    return read_items(folders.write(folder / "run", folders.results(), {"quiz": rows}), "quiz")


def test_every_field_is_read(tmp_path):
    turns = [{"role": "user", "content": "Hi."}]
    found = read(
        tmp_path,
        folders.item(3, 1, **CHOICES),
        folders.item(
            1,
            prompt=turns,
            group="g",
            answers=["x", ""],
            references=["r"],
            scores={"a": None, "b": "nan"},
            judge={"rating": 3},
            notes=["n"],
        ),
    )
    assert list(found) == [3, 1]
    assert found[3] == Item(
        index=3,
        place="rows.jsonl:4",
        group="",
        prompt="question 3",
        answers=(),
        choices=(" A", " B"),
        logps=(-1.0, -2.5),
        right=(1,),
        references=(),
        scores={"accuracy": 1.0},
        judge={},
        notes=(),
    )
    second = found[1]
    assert (second.prompt, second.group, second.answers) == (tuple(turns), "g", ("x", ""))
    assert (second.references, second.judge, second.notes) == (("r",), {"rating": 3}, ("n",))
    assert second.scores["a"] is None and second.scores["b"] != second.scores["b"]


def test_a_task_without_items_has_none(tmp_path):
    folder = folders.write(tmp_path / "run", folders.results(), {"quiz": []})
    assert read_items(folder, "quiz") == read_items(folder, "other") == {}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"index": "1"}, "expected a whole number in 'index', got '1'"),
        ({"index": 0}, "index 0 comes twice"),
        ({"prompt": None}, "expected a text or turns in 'prompt', got nothing"),
        ({"prompt": ["x"]}, r"expected a text or turns in 'prompt', got \['x'\]"),
        ({"answers": "x"}, "expected a list of texts in 'answers', got 'x'"),
        (CHOICES | {"logps": [-1]}, "expected 2 numbers in 'logps', got 1"),
        (CHOICES | {"right": [2]}, r"expected places of 2 choices in 'right', got \[2\]"),
        (CHOICES | {"right": [0.5]}, "expected a list of whole numbers in 'right'"),
        ({"scores": {"a": "x"}}, "scores: expected a number in 'a', got 'x'"),
        ({"judge": "bad"}, "expected an object in 'judge', got 'bad'"),
    ],
)
def test_a_wrong_row_is_named(changes, said, tmp_path):
    with pytest.raises(DataError, match=rf"quiz\.jsonl:2: {said}"):
        read(tmp_path, folders.item(0), folders.item(1) | changes)


def test_a_line_that_cannot_be_read_is_named(tmp_path):
    folder = folders.write(tmp_path / "run", folders.results(), {"quiz": [folders.item(0)]})
    with (folder / "items/quiz.jsonl").open("a") as file:
        file.write("{\n")
    with pytest.raises(DataError, match=r"quiz\.jsonl:2"):
        read_items(folder, "quiz")
