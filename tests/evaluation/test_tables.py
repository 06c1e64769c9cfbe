"""Tables for the terminal."""

import math

import numpy as np
import pytest

from jaxalign.errors import DataError
from jaxalign.evaluation.results import Figure
from jaxalign.evaluation.tables import format_table, interval, measured, number, results_table
from tests.evaluation import evaluation_folders as folders


def test_the_first_column_stands_to_the_left_and_the_others_to_the_right():
    rows = [{"method": "SFT", "win rate": "-"}, {"method": "a long name", "win rate": "50% [2%, 98%]"}]
    assert format_table(rows).splitlines() == [
        "method            win rate",
        "-----------  -------------",
        "SFT                      -",
        "a long name  50% [2%, 98%]",
    ]
    assert format_table([]) == ""


@pytest.mark.parametrize(
    ("value", "rate", "text"),
    [
        (0.5, False, "0.500"),
        (0.5, True, "50.0"),
        (1.0, True, "100"),
        (0.99951, True, "100"),
        (0.0567, True, "5.67"),
        (0.00012345, True, "0.0123"),
        (0, True, "0"),
        (12.345, False, "12.3"),
        (123.45, False, "123"),
        (999.4, False, "999"),
        (999.5, False, "1,000"),
        (12345.6, False, "12,346"),
        (-12345.6, False, "-12,346"),
        (1.5e6, False, "1.5e+06"),
        (0.0000123, False, "1.23e-05"),
        (-0.25, True, "-25.0"),
        (math.nan, False, "–"),
        (None, True, "–"),
        (math.inf, True, "∞"),
        (-math.inf, False, "-∞"),
    ],
)
def test_numbers_have_three_significant_digits(value, rate, text):
    assert number(value, rate=rate) == text


def test_a_unit_stands_behind_the_value():
    figure = {"value": 0.5, "low": 0.25, "high": 0.75, "count": 1}
    assert measured(Figure(**figure), rate=True) == "50.0%"
    assert measured(Figure(**figure), rate=False) == "0.500"
    assert measured(Figure(**figure, unit="nats"), rate=False) == "0.500 nats"
    assert measured(Figure(**figure, unit="%"), rate=False) == "0.500%"
    assert interval(Figure(**figure), rate=True) == "[25.0, 75.0]"
    assert interval(Figure(**figure | {"low": math.nan}), rate=True) == ""


def test_results_are_a_row_a_metric_and_notes_are_below():
    found = folders.results(
        tasks={
            "quiz": folders.task(
                {"accuracy": folders.figure(0.5, chance=0.25), "nll": folders.figure(2.0)},
                notes=["3 rows cut"],
            ),
            "longer": folders.task({"win": folders.figure(0.25, low=None, count=np.int64(1234))}),
        }
    )
    assert results_table(found).splitlines() == [
        "task    metric                 value  chance      n",
        "----------------  ------------------  ------  -----",
        "quiz    accuracy  50.0% [40.0, 60.0]   25.0%      4",
        "quiz    nll        2.00 [1.90, 2.10]              4",
        "longer  win                    25.0%          1,234",
        "",
        "notes",
        "  quiz: 3 rows cut",
    ]


def test_models_are_columns_with_a_dash_where_one_was_not_asked():
    first = folders.results("a", {"quiz": folders.task({"accuracy": folders.figure(0.5)})})
    second = folders.results(
        "b",
        {
            "quiz": folders.task({"accuracy": folders.figure(0.25, count=3)}, items=3),
            "new": folders.task({"kl": folders.figure(3.0)}),
        },
    )
    assert results_table(first, others=[second]).splitlines() == [
        "task  metric                     a                   b  chance      n",
        "--------------  ------------------  ------------------  ------  -----",
        "quiz  accuracy  50.0% [40.0, 60.0]  25.0% [15.0, 35.0]          4 / 3",
        "new   kl                         –   3.00 [2.90, 3.10]              4",
        "",
        "notes",
        "  quiz: The models were not asked the same number of rows.",
    ]


def test_no_terminal_obeys_a_name_and_wrong_results_are_refused():
    found = folders.results(tasks={"quiz\x1b[2J": folders.task(notes=["a\nb\x1b]0;t\x07"])})
    table = results_table(found)
    assert "\x1b" not in table and "\x07" not in table and "  quiz [2J: a b ]0;t " in table
    with pytest.raises(DataError, match="results: expected an object in 'tasks', got nothing"):
        results_table({"model": "x"})
