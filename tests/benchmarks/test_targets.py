"""The table of targets in `benchmarks/targets.py`."""

import pytest


def result(case, ours, peer):
    """Three pairs of a case that takes `ours` and `peer` seconds a step."""
    return {
        "asked": {"case": case.measured},
        "seconds_a_step": {"ours": [ours] * 3, "peer": [peer] * 3},
        "tokens_a_step": {"ours": [8.0] * 3, "peer": [8.0] * 3},
    }


@pytest.fixture
def found(benchmark):
    """Results by name and seconds."""
    cases = benchmark("cases").BY_NAME
    return lambda **seconds: [
        (cases[name.replace("_", "-")], result(cases[name.replace("_", "-")], *of))
        for name, of in seconds.items()
    ]


def rows(text):
    """Rows of a table by the last cell, the case."""
    cells = [line.strip("| ").split(" | ") for line in text.splitlines()[2:]]
    return {row[-1]: row for row in cells}


def test_every_target_has_a_row_whether_it_was_measured_or_not(benchmark, found):
    targets, cases = benchmark("targets"), benchmark("cases").CASES
    table = rows(targets.status(found(sft_s=(1.0, 1.5), dpo_s=(1.0, 1.2))))
    assert list(table) == [c.name for c in cases if c.target is not None and not c.rival_of]
    assert table["sft-s"][1:4] == ["float32", "1.2 times as fast", "1.50 [1.50, 1.50]"]
    assert table["dpo-s"][3] == "1.20 [1.20, 1.20], missed"
    assert table["grpo-m"][3] == table["memory-128k"][3] == "not measured"


def test_generation_counts_against_the_faster_form_of_the_peer(benchmark, found):
    targets, case = benchmark("targets"), benchmark("cases").BY_NAME["generate-s"]
    both = found(generate_s=(1.0, 2.0), generate_s_compiled=(1.0, 1.25))
    assert rows(targets.status(both))["generate-s-compiled"][3] == "1.25 [1.25, 1.25], missed"
    assert targets.verdict(case, both) == "1.5, missed by generate-s-compiled"
    one = found(generate_s=(1.0, 2.0))
    assert rows(targets.status(one))["generate-s"][3] == "2.00 [2.00, 2.00]; generate-s-compiled not measured"
    assert targets.verdict(case, one) == "1.5"


def test_a_result_of_other_settings_reaches_no_target(benchmark, found):
    rows_of = found(sft_s=(1.0, 1.5))
    rows_of[0][1]["asked"] = {"case": {**rows_of[0][0].measured, "batch": 4}}
    assert rows(benchmark("targets").status(rows_of))["sft-s"][3] == "not measured"
