"""Bars and tables of figures."""

import math
import re

import pytest

from jaxalign.evaluation.metrics.significance import Difference
from jaxalign.evaluation.report_figures import Block, Line, axis_of, bar, breakable, metric_head, table_of
from jaxalign.evaluation.results import Figure


def figure(value, low=math.nan, high=math.nan, **changes):
    return Figure(value=value, low=low, high=high, count=1234, **changes)


def places(svg):
    """(start, width) of the bar, and where each kind of line is, in percent."""
    fill = re.search(r"class=fill x=([\d.]+)% y=6 width=([\d.]+)%", svg)
    lines = {}
    for kind, x1, x2 in re.findall(r"<line class=(\w+) x1=([\d.]+)% x2=([\d.]+)%", svg):
        lines.setdefault(kind, []).append((float(x1), float(x2)))
    return tuple(map(float, fill.groups())), lines


def test_a_bar_shows_value_interval_and_chance_where_they_lie():
    svg = bar(figure(0.6, 0.5, 0.75, chance=0.25), (0.0, 1.0), rate=True)
    assert places(svg) == ((0, 60), {"chance": [(25, 25)], "reach": [(50, 75), (50, 50), (75, 75)]})
    assert "<title>60.0% [50.0, 75.0], chance 25.0%</title>" in svg


def test_a_bar_begins_at_zero_also_of_a_negative_value():
    fill, lines = places(bar(figure(-1.0, -1.5, -0.5), (-2.0, 2.0), rate=False))
    assert fill == (25, 25) and lines["zero"] == [(50, 50)]
    assert lines["reach"][0] == (12.5, 37.5)
    assert places(bar(figure(1.0), (-2.0, 2.0), rate=False)) == ((50, 25), {"zero": [(50, 50)]})


def test_what_reaches_beyond_the_axis_ends_there_and_no_value_has_no_bar():
    _, lines = places(bar(figure(1.0, 0.9, 1.05), (0.0, 1.0), rate=True))
    assert lines["reach"][0] == (90, 100)
    assert bar(figure(math.nan), (0.0, 1.0), rate=True) == ""
    assert bar(figure(math.inf), (0.0, 1.0), rate=True) == ""


@pytest.mark.parametrize(
    ("figures", "axis"),
    [
        ([figure(5.5, 5.0, 6.2)], (0, 10)),
        ([figure(1.0)], (0, 1)),
        ([figure(3.0), figure(150.0, 140.0, 180.0)], (0, 200)),
        ([figure(0.03)], (0, 0.05)),
        ([figure(-0.3, -0.6, 0.0), figure(1.1)], (-1, 2)),
        ([figure(2.0, chance=4.0)], (0, 5)),
        ([figure(0.0)], (0, 1)),
        ([figure(math.inf), figure(math.nan)], (0, 1)),
    ],
)
def test_an_axis_begins_at_zero_and_ends_at_a_round_number(figures, axis):
    assert axis_of(figures, rate=False) == pytest.approx(axis)
    assert axis_of(figures, rate=True) == (0, 1)


def test_a_row_has_value_interval_count_and_difference_bold_where_it_is_clear():
    def difference(low, high):
        return Difference(mean=0.1, low=low, high=high, p_value=0.5, count=9)

    lines = [
        Line(model=0, label="<a>", figure=figure(0.5, 0.4, 0.6)),
        Line(model=1, label="b", figure=figure(0.6), difference=difference(0.05, 0.2)),
        Line(model=2, label="c", figure=figure(0.6), difference=difference(-0.05, 0.2)),
        Line(model=3, label="d", figure=None),
    ]
    block = Block(head="accuracy", lines=lines, rate=True, axis=(0.0, 1.0))
    table = table_of(["<i>x</i>", block], first="metric", several=True, baseline="<a>")
    across, first, second, third, fourth = table.split("<tr class=")[1:]
    assert "<td colspan=6><i>x</i></td>" in across and ">less &lt;a&gt;</th>" in table
    assert "<td class=head rowspan=4>accuracy</td>" in first and "&lt;a&gt;" in first
    assert "<b>50.0%</b> <span class=dim>[40.0, 60.0]</span>" in first and ">1,234</td>" in first
    assert "<td class='number less'></td>" in first
    told = "+10.0 <span class=dim>[{}, +20.0]</span>"
    assert f"<b title='its interval leaves out 0'>{told.format('+5.00')}</b>" in second
    assert f"<td class='number less'>{told.format('-5.00')}</td>" in third
    assert "not evaluated" in fourth and "<svg" not in fourth
    assert {row.count("</td>") for row in (second, third, fourth)} == {5}


def test_one_model_has_no_column_for_its_name():
    block = Block(head="x", lines=[Line(model=0, label="m", figure=figure(0.5))], rate=True, axis=(0.0, 1.0))
    table = table_of([block], first="metric", several=False)
    assert table.count("</th>") == table.count("</td>") == 4
    assert "class=model" not in table


def test_a_metric_says_which_way_is_better_and_how_far_bars_reach():
    up = metric_head("a_<b>", [figure(0.5, better="higher")], rate=True, axis=(0.0, 1.0))
    assert up == 'a_<wbr>&lt;b&gt; <span class=dim title="higher is better">↑</span>'
    down = metric_head("kl", [figure(0.5), figure(0.5, better="lower")], rate=False, axis=(-1.0, 2000.0))
    assert "↓" in down and "bars: -1 to 2,000" in down
    assert metric_head("length", [figure(0.5)], rate=True, axis=(0.0, 1.0)) == "length"


def test_an_escaped_name_does_not_break_within_its_escapes():
    assert breakable("</x_y>") == "&lt;/<wbr>x_<wbr>y&gt;"
