"""Tables for the terminal."""

from jaxalign.evaluation.tables import format_table


def test_the_first_column_stands_to_the_left_and_the_others_to_the_right():
    rows = [{"method": "SFT", "win rate": "-"}, {"method": "a long name", "win rate": "50% [2%, 98%]"}]
    assert format_table(rows).splitlines() == [
        "method            win rate",
        "-----------  -------------",
        "SFT                      -",
        "a long name  50% [2%, 98%]",
    ]
    assert format_table([]) == ""
