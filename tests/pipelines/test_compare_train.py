"""Feedback in rounds, with what people edited in place."""

import json
from dataclasses import replace

import pytest

from jaxalign.errors import DataError
from jaxalign.pipelines.compare_train import feedback_parts, peaks
from tests.pipelines.compare_files import small, write_rows


def parts(tmp_path, rows, **settings):
    config = small(tmp_path, settings={"feedback": settings})
    config = replace(config, data=replace(config.data, feedback=(write_rows(tmp_path / "f.jsonl", rows),)))
    return [
        [json.loads(line) for line in file.read_text().splitlines()]
        for file in feedback_parts(config, tmp_path)
    ]


def test_rounds_are_parts_of_the_feedback_in_its_order(tmp_path):
    rows = [{"prompt": str(i), "completion": "a", "label": True} for i in range(5)]
    assert parts(tmp_path, rows) == [rows[:2], rows[2:]]


def test_what_a_person_edited_takes_the_answers_place_and_is_good(tmp_path):
    rows = [
        {"prompt": "p", "completion": "worse", "label": False, "edited": "better"},
        {"prompt": "q", "completion": "kept", "label": False, "edited": ""},
    ]
    first, second = parts(tmp_path, rows)
    assert first == [{"prompt": "p", "completion": "better", "label": True}]
    assert second == [{"prompt": "q", "completion": "kept", "label": False}]


def test_an_edited_answer_passes_the_least_score(tmp_path):
    rows = [
        {"question": "q", "said": "x", "judgment": 1, "edited": "y"},
        {"question": "q", "said": "z", "judgment": 1},
    ]
    columns = {"prompt": "question", "completion": "said"}
    found = parts(tmp_path, rows, data={"columns": columns, "score_field": "judgment", "min_score": 4})
    assert [part[0]["judgment"] for part in found] == [4, 1]
    assert found[0][0]["said"] == "y"


def test_fewer_rows_than_rounds_and_edits_of_nothing_are_refused(tmp_path):
    with pytest.raises(DataError, match="1 rows for 2 rounds"):
        parts(tmp_path, [{"prompt": "p", "completion": "c"}])
    with pytest.raises(DataError, match=r"f\.jsonl:1: expected a text in completion, which 'edited'"):
        parts(tmp_path, [{"prompt": "p", "edited": "e"}] * 2)


def test_the_peak_is_of_this_process_at_least_what_it_holds_now():
    held = bytearray(64 * 2**20)
    held[:: 2**12] = b"x" * len(held[:: 2**12])
    found = peaks()
    assert "device_bytes" not in found  # the host's memory is all that a CPU has
    assert found["host_bytes"] > len(held)
