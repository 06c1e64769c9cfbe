"""AlpacaEval's files are read whole, and give the figures of its leaderboards."""

import csv
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jaxalign.errors import DataError
from jaxalign.evaluation.judging.alpaca import (
    Annotation,
    alpaca_figures,
    annotation_row,
    read_annotations,
    write_annotations,
)

REAL = Path(__file__).resolve().parents[4] / "shared/data/evaluation/alpaca_eval"
ROW = {
    "instruction": "Say hi.",
    "dataset": "koala",
    "generator_1": "base",
    "output_1": "Hi.",
    "generator_2": "mine",
    "output_2": "Hello there.",
    "annotator": "me",
    "preference": 2,
}


def lines(folder, *rows):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def preferring(*values):
    one = Annotation(
        instruction="q", baseline="base", baseline_output="a", model="mine", output="abc", preference=1.0
    )
    return [replace(one, instruction=f"q{i}", preference=value) for i, value in enumerate(values)]


def test_a_draw_is_half_a_win():
    found = alpaca_figures(preferring(2.0, 2.0, 1.5, 1.0, None))
    assert found.win_rate == found.discrete_win_rate == 100 * (2 + 0.5) / 4
    assert (found.n_wins, found.n_draws, found.n_wins_base, found.n_total) == (2, 1, 1, 4)
    # Deviations from 5/8: 3/8 twice, -1/8, -5/8; their squares sum to 44/64.
    assert found.standard_error == pytest.approx(100 * math.sqrt(44 / 64 / 3 / 4))
    assert found.unjudged == 1


def test_a_probability_counts_as_it_is_and_discretely_as_the_likelier_output():
    found = alpaca_figures(preferring(1.9, 1.6, 1.4, 1.1, 1.2))
    assert found.win_rate == pytest.approx(100 * (0.9 + 0.6 + 0.4 + 0.1 + 0.2) / 5)
    assert found.discrete_win_rate == 40
    assert (found.n_wins, found.n_draws, found.n_wins_base) == (2, 0, 3)


def test_a_single_row_has_no_standard_error():
    assert math.isnan(alpaca_figures(preferring(2.0)).standard_error)


def test_questions_without_a_row_are_counted_and_rows_without_a_question_too():
    rows = preferring(2.0, None)
    found = alpaca_figures(rows, questions=["q0", "q2", "q2"])
    assert (found.missing, found.unknown, found.unjudged) == (2, 1, 1)
    assert alpaca_figures(rows).missing is None


def test_all_rows_of_a_file_are_kept(tmp_path):
    rows = [ROW | {"preference": value} for value in (1, 1.25, 0, 1.5, None, float("nan"))]
    found = read_annotations(lines(tmp_path, *rows))
    assert [one.preference for one in found] == [1.0, 1.25, 1.5, 1.5, None, None]
    assert (found[0].baseline_output, found[0].output) == ("Hi.", "Hello there.")
    assert (found[0].baseline, found[0].model) == ("base", "mine")


def test_an_empty_output_is_one(tmp_path):
    assert read_annotations(lines(tmp_path, ROW | {"output_2": ""}))[0].output == ""


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"preference": 3}, "expected a number from 1 to 2, or null, in 'preference', got 3"),
        ({"preference": 0.5}, "expected a number from 1 to 2, or null, in 'preference', got 0.5"),
        ({"preference": "2"}, "expected a number from 1 to 2, or null, in 'preference', got '2'"),
        ({"preference": True}, "expected a number from 1 to 2, or null, in 'preference', got True"),
        ({"output_2": None}, "expected a text in 'output_2', got None"),
        ({"generator_1": ""}, "expected a text in 'generator_1', got ''"),
        (
            {"generator_2": "other"},
            "expected mine against base as in the rows before it, got other against base",
        ),
    ],
)
def test_a_wrong_row_is_named(change, said, tmp_path):
    with pytest.raises(DataError, match=rf"rows\.jsonl:2: {re.escape(said)}"):
        read_annotations(lines(tmp_path, ROW, ROW | change))


def test_a_row_without_a_preference_field_is_no_unjudged_row(tmp_path):
    row = {name: value for name, value in ROW.items() if name != "preference"}
    with pytest.raises(DataError, match=r"rows\.jsonl:1: .* got no such field"):
        read_annotations(lines(tmp_path, row))


def test_nothing_judged_has_no_figures():
    with pytest.raises(DataError, match="got 2 rows without a preference"):
        alpaca_figures(preferring(None, None))


@pytest.mark.parametrize("value", [0.0, 2.5, float("nan")])
def test_a_preference_outside_its_range_is_refused(value):
    with pytest.raises(ValueError, match="preference must lie in"):
        preferring(value)


@pytest.mark.parametrize("name", ["annotations.json", "deep/annotations.jsonl"])
def test_what_is_written_is_read_again(name, tmp_path):
    rows = [*preferring(1.0, 1.5, 1.75, None), *preferring(2.0)]
    rows[0] = replace(rows[0], output="ein „Umlaut“:\u2028ü\n")
    write_annotations(tmp_path / name, rows)
    assert read_annotations(str(tmp_path / name)) == rows
    assert [path.name for path in (tmp_path / name).parent.iterdir()] == [Path(name).name]


def test_the_tools_table_has_the_columns_that_alpaca_eval_reads(tmp_path):
    pandas = pytest.importorskip("pandas")  # which alpaca_eval reads its .json files with
    rows = preferring(1.0, 1.5, None, 2.0)
    write_annotations(tmp_path / "annotations.json", rows)
    table = pandas.read_json(tmp_path / "annotations.json")
    assert list(table.columns) == list(ROW) == list(annotation_row(rows[0]))
    np.testing.assert_array_equal(table["preference"], [1.0, 1.5, np.nan, 2.0])


def test_a_file_of_another_kind_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"rows.csv: expected a name that ends in \.json or \.jsonl"):
        write_annotations(tmp_path / "rows.csv", preferring(2.0))


@pytest.mark.skipif(not REAL.is_dir(), reason="needs the real files")
@pytest.mark.parametrize(
    ("annotations", "board", "model", "unjudged", "tolerance"),
    [
        ("gpt4_alpaca-7b", "1_gpt4", "alpaca-7b", 0, 1e-12),
        ("gpt4_llama-2-7b-chat-hf", "1_gpt4", "llama-2-7b-chat-hf", 0, 1e-12),
        ("gpt4_zephyr-7b-beta", "1_gpt4", "zephyr-7b-beta", 2, 1e-12),
        # This copy keeps ten digits of each probability; the leaderboard was computed from all.
        ("weighted_gpt4_turbo_alpaca-7b", "2_weighted", "alpaca-7b", 0, 1e-9),
    ],
)
def test_the_published_figures_come_out(annotations, board, model, unjudged, tolerance):
    with (REAL / f"leaderboard_alpaca_eval_{board}.csv").open(newline="") as file:
        published = next(row for row in csv.DictReader(file) if row["model"] == model)
    rows = read_annotations(str(REAL / f"annotations_{annotations}.jsonl.gz"))
    found = alpaca_figures(rows, questions=[row.instruction for row in rows])
    for name in ("n_wins", "n_wins_base", "n_draws", "n_total", "avg_length"):
        assert getattr(found, name) == int(published[name]), name
    for name in ("win_rate", "standard_error", "discrete_win_rate"):
        assert getattr(found, name) == pytest.approx(float(published[name]), rel=tolerance), name
    assert (found.unjudged, found.missing, found.unknown) == (unjudged, 0, 0)
    assert found.n_total + found.unjudged == len(rows) == 805
