"""Answers that outlive the process that asked for them."""

import json

import pytest

from jaxalign.errors import ConfigError, DataError
from jaxalign.evaluation.kept_answers import KeptAnswers

IDENTITY = {"model": "m", "temperature": 0.0}


def rows(*indices):
    return [{"index": i, "answers": [f"a{i}"]} for i in indices]


def test_rows_are_there_again_and_the_missing_are_known(tmp_path):
    file = tmp_path / "folder" / "x.jsonl"
    KeptAnswers(file, IDENTITY).add(rows(2, 0))
    kept = KeptAnswers(file, IDENTITY)
    assert kept.missing(4) == [1, 3] and kept.rows[2]["answers"] == ["a2"]
    kept.add(rows(1))
    assert KeptAnswers(file, IDENTITY).missing(3) == []


def test_nothing_is_written_before_there_is_an_answer(tmp_path):
    KeptAnswers(tmp_path / "folder" / "x.jsonl", IDENTITY)
    assert not (tmp_path / "folder").exists()


@pytest.mark.parametrize("bytes_left", [5, 60, 75])
def test_a_line_that_a_kill_has_cut_off_is_left_out_and_written_over(tmp_path, bytes_left):
    file = tmp_path / "x.jsonl"
    KeptAnswers(file, IDENTITY).add(rows(0, 1))
    file.write_bytes(file.read_bytes()[:bytes_left])
    kept = KeptAnswers(file, IDENTITY)
    assert kept.missing(2)
    kept.add(rows(*kept.missing(2)))
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert lines[0] == {"identity": IDENTITY} and [line["index"] for line in lines[1:]] == [0, 1]


def test_answers_of_another_identity_are_refused_by_what_differs(tmp_path):
    file = tmp_path / "x.jsonl"
    KeptAnswers(file, IDENTITY).add(rows(0))
    with pytest.raises(
        ConfigError, match=r"x.jsonl: holds answers with temperature=0.0, asked for now is 1.0"
    ):
        KeptAnswers(file, IDENTITY | {"temperature": 1.0})
    with pytest.raises(ConfigError, match=r"holds answers with seed=None, asked for now is 3"):
        KeptAnswers(file, IDENTITY | {"seed": 3})


def test_a_line_that_is_no_row_is_named(tmp_path):
    file = tmp_path / "x.jsonl"
    KeptAnswers(file, IDENTITY).add(rows(0))
    file.write_text(file.read_text() + "nonsense\n")
    with pytest.raises(DataError, match=r"x.jsonl:3: expected a row in JSON"):
        KeptAnswers(file, IDENTITY)
