"""The comparison table and its figures, from results put together by hand."""

import dataclasses

import pytest

from jaxalign.evaluation import Perplexity, estimate_mean, win_rate
from jaxalign.pipelines.compare import MethodResult, comparison_rows, gains


def result(name, true, proxy, wins=None):
    return MethodResult(
        name=name,
        true=None if true is None else estimate_mean(true),
        proxy=estimate_mean(proxy),
        kl=estimate_mean([1.0, 3.0]),
        perplexity=Perplexity(2.5, 0.9163, 100),
        wins=wins,
        length=12.0,
    )


SFT = result("SFT", [0.0, 2.0], [0.0, 1.0])
PPO = result("PPO", [3.0, 5.0], [2.0, 2.0], win_rate([1.0, 1.0], [0.0, 2.0]))


def test_gains_are_in_standard_deviations_of_the_baseline():
    # SFT: mean 1, deviation sqrt(2); PPO: mean 4.
    assert gains([SFT, PPO]) == {"PPO": pytest.approx((4 - 1) / 2**0.5)}


def test_without_a_true_reward_gains_are_the_proxys():
    rows = [dataclasses.replace(r, true=None) for r in (SFT, PPO)]
    # SFT: mean 0.5, deviation sqrt(0.5); PPO: mean 2.
    assert gains(rows) == {"PPO": pytest.approx((2 - 0.5) / 0.5**0.5)}


def test_rows_have_the_same_columns_and_show_mean_and_error():
    rows = comparison_rows([SFT, PPO])
    assert [list(row) for row in rows] == [list(rows[0])] * 2
    assert rows[1]["true reward"] == "4.00 ± 1.00"
    assert rows[1]["KL from SFT (nats)"] == "2.00 ± 1.00"
    assert rows[0]["win rate vs SFT"] == "-"
    assert rows[1]["win rate vs SFT"].startswith("50% [")


def test_an_unknown_truth_has_no_column():
    rows = comparison_rows([dataclasses.replace(SFT, true=None)])
    assert "true reward" not in rows[0]


def test_plain_figures_leave_out_what_is_not_known():
    plain = dataclasses.replace(SFT, true=None).plain()
    assert "true_reward" not in plain
    assert "win_rate" not in plain
    assert PPO.plain()["win_rate"] == 0.5
