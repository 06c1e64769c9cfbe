"""The arithmetic and the check of `benchmarks/compare.py`; no other library is started."""

import contextlib

import pytest

COMPARED = {"tokens": [64] * 12, "losses": [1.0] * 12, "value_losses": [0.5] * 12, "grad_norms": [2.0] * 12}


@pytest.fixture
def compare(benchmark):
    return benchmark("compare")


def case(benchmark, name):
    return benchmark("cases").BY_NAME[name]


def test_the_ratio_is_the_median_of_pairs_and_lies_in_its_interval(compare):
    times = {"ours": [1.0, 2.0, 1.0, 4.0, 1.0], "peer": [2.0, 3.0, 3.0, 2.0, 2.0]}
    tokens = {"ours": [8.0] * 5, "peer": [8.0] * 5}
    middle, low, high = compare.ratio({"seconds_a_step": times, "tokens_a_step": tokens}, draws=500)
    assert middle == 2.0
    assert 0.5 <= low <= middle <= high <= 3.0


def test_steps_of_more_tokens_count_for_more(compare):
    result = {
        "seconds_a_step": {"ours": [1.0, 1.0], "peer": [3.0, 3.0]},
        "tokens_a_step": {"ours": [10.0, 10.0], "peer": [15.0, 15.0]},
    }
    assert compare.ratio(result, draws=10)[0] == pytest.approx((3.0 / 15.0) / (1.0 / 10.0))


@pytest.mark.parametrize(
    ("name", "change", "fails"),
    [
        ("losses", 1e-5, False),
        ("losses", 1e-3, True),
        ("value_losses", 1e-5, False),
        ("value_losses", 1e-3, True),
        ("grad_norms", 5e-4, False),
        ("grad_norms", 5e-3, True),
        ("tokens", 1 / 64, True),
        ("losses", float("nan"), True),
    ],
)
def test_sides_that_compute_something_else_are_not_timed(benchmark, compare, name, change, fails):
    changed = [x * (1 + change * (i == 7)) if i == 7 else x for i, x in enumerate(COMPARED[name])]
    last = {"ours": COMPARED, "peer": {**COMPARED, name: changed}}
    if not fails:
        compare.check(case(benchmark, "ppo-s"), last)
        return
    with pytest.raises(compare.BenchmarkError, match=f"^step 8: {name}"):
        compare.check(case(benchmark, "ppo-s"), last)


@pytest.mark.parametrize("name", ["tokens", "losses", "grad_norms"])
def test_a_side_that_reports_too_few_steps_is_not_timed(benchmark, compare, name):
    silent = {**COMPARED, name: COMPARED[name][:9]}
    with pytest.raises(compare.BenchmarkError, match=f"9 {name} to compare, expected 10"):
        compare.check(case(benchmark, "sft-s"), {"ours": silent, "peer": COMPARED})


def test_the_memory_of_a_few_steps_needs_one_that_is_compared(benchmark, compare):
    few = {name: values[:1] for name, values in COMPARED.items()}
    compare.check(case(benchmark, "memory-128k"), {"ours": few, "peer": COMPARED})
    with pytest.raises(compare.BenchmarkError, match="0 tokens to compare"):
        compare.check(case(benchmark, "memory-128k"), {"ours": few | {"tokens": []}, "peer": COMPARED})


@pytest.mark.parametrize("gap", [1e-2, float("nan")])
def test_a_peer_whose_packed_rows_see_each_other_is_not_timed(benchmark, compare, gap):
    packed = case(benchmark, "sft-chat-s-peer-packed")
    compare.check(packed, {"ours": COMPARED, "peer": {**COMPARED, "packing_gap": 1e-6}})
    with pytest.raises(compare.BenchmarkError, match="change each other's logits"):
        compare.check(packed, {"ours": COMPARED, "peer": {**COMPARED, "packing_gap": gap}})


def test_the_parts_of_a_step_add_up_to_it(compare):
    repetitions = [
        {"steps": 2, "seconds": 3.0, "spent": {"data": 0.5}},
        {"steps": 2, "seconds": 5.0, "spent": {"data": 0.5, "logging": 1.0}},
    ]
    assert compare.split(repetitions) == {"data": 0.25, "logging": 0.25, "step": 1.5}


def test_a_case_whose_release_is_not_there_fails_in_one_line(benchmark, compare, tmp_path):
    sides = compare.Sides("python", "python", tmp_path)
    with pytest.raises(compare.BenchmarkError, match="no TRL there; `make bench-peers` fetches it"):
        sides.start("peer", case(benchmark, "ppo-s"), tmp_path)


def test_given_completions_are_the_same_in_every_process_and_differ_by_row(benchmark):
    given = benchmark("cases").given_completion
    first = given(1, 0, 4096)
    assert first == given(1, 0, 4096) and len(first) == 192
    assert first != given(1, 1, 4096) and first != given(2, 0, 4096)
    assert min(first) >= 4 and max(first) < 4096


def test_the_default_cases_take_about_an_hour(benchmark):
    minutes = sum(c.minutes for c in benchmark("cases").CASES if c.default)
    assert 40 <= minutes <= 70


def test_a_side_that_ends_is_reported_with_the_end_of_what_it_printed(compare, tmp_path):
    side = compare.Child.start("ours", ["sh", "-c", "echo no such thing; exit 3"], tmp_path / "log", {})
    side.process.wait()
    try:
        with pytest.raises(compare.BenchmarkError, match="ours ended with status 3: no such thing"):
            side.run(1)
    finally:
        with contextlib.suppress(BrokenPipeError):
            side.commands.close()
        side.answers.close()
