"""The arithmetic, the check and the turns of `benchmarks/compare.py`; no other library is started."""

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
    reports = {"ours": COMPARED, "peer": {**COMPARED, name: changed}}
    if not fails:
        compare.check(case(benchmark, "ppo-s"), reports)
        return
    with pytest.raises(compare.BenchmarkError, match=f"^step 8: {name}"):
        compare.check(case(benchmark, "ppo-s"), reports)


# The first steps of sft-s-bf16, and those of the same weights and rows in float32 with an error.
MEASURED = {
    "ours": (
        [8.378893, 8.386317, 8.370321, 8.381478, 8.378819],
        [1.339002, 1.339513, 1.342045, 1.373986, 1.326932],
    ),
    "peer": (
        [8.378969, 8.386158, 8.370337, 8.381500, 8.378871],
        [1.334914, 1.334640, 1.336324, 1.369008, 1.321996],
    ),
    "labels shifted by one": ([8.377707, 8.385650, 8.368564], [1.349271, 1.346140, 1.348318]),
    "twice the learning rate": (
        [8.378876, 8.386806, 8.369575, 8.384262],
        [1.339268, 1.332341, 1.331854, 1.359025],
    ),
}


def measured(name):
    """Those steps, and then others that both sides have."""
    losses, norms = MEASURED[name]
    rest = [1.0] * (10 - len(losses))
    return {"tokens": [2040] * 10, "losses": losses + rest, "grad_norms": norms + rest}


@pytest.mark.parametrize(("error", "step"), [("labels shifted by one", 1), ("twice the learning rate", 3)])
def test_bfloat16_may_round_but_not_hide_an_error(benchmark, compare, error, step):
    bf16 = case(benchmark, "sft-s-bf16")
    compare.check(bf16, {"ours": measured("ours"), "peer": measured("peer")})
    with pytest.raises(compare.BenchmarkError, match=rf"^step {step}: losses"):
        compare.check(bf16, {"ours": measured(error), "peer": measured("peer")})


@pytest.mark.parametrize(
    ("task", "name", "rounding", "error"),
    [
        ("reward", "losses", 7e-5, 4e-4),
        ("reward", "grad_norms", 4e-3, 2e-2),
        ("dpo", "losses", 4e-3, 2e-2),
        ("dpo", "grad_norms", 3e-3, 2e-2),
        ("grpo", "grad_norms", 1e-3, 1e-2),
        ("ppo", "value_losses", 2e-3, 2e-2),
        ("ppo", "grad_norms", 1e-3, 1e-2),
    ],
)
def test_in_bfloat16_no_task_may_differ_much_more_than_rounding_does(
    benchmark, compare, task, name, rounding, error
):
    bf16 = case(benchmark, f"{task}-s-bf16")

    def reports(change):
        return {"ours": {**COMPARED, name: [x * (1 + change) for x in COMPARED[name]]}, "peer": COMPARED}

    compare.check(bf16, reports(rounding))
    with pytest.raises(compare.BenchmarkError, match=f"^step 1: {name}"):
        compare.check(bf16, reports(error))


@pytest.mark.parametrize(("name", "passes", "fails"), [("generate-s", 91, 89), ("generate-s-bf16", 31, 29)])
def test_a_sampler_that_takes_other_tokens_is_not_timed(benchmark, compare, name, passes, fails):
    def reports(equal):
        return {"ours": {"greedy": [[1] * 100]}, "peer": {"greedy": [[1] * equal + [2] * (100 - equal)]}}

    compare.check(case(benchmark, name), reports(passes))
    with pytest.raises(compare.BenchmarkError, match=f"only {fails}.0% of the greedy tokens are equal"):
        compare.check(case(benchmark, name), reports(fails))


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


def test_a_case_is_timed_once_its_sides_agree(benchmark, compare, sides, tmp_path, monkeypatch):
    monkeypatch.setattr(
        compare, "WAITED", 1e9
    )  # so that none is taken again where other tests hold the cores
    found = compare.measure(case(benchmark, "sft-s"), tmp_path, sides(1.0, 1.0), pairs=2, seconds=1e-4)
    assert len(found["seconds_a_step"]["ours"]) == len(found["seconds_a_step"]["peer"]) == 2
    # One program was compiled by the report itself, none by the repetitions.
    assert (found["programs"], found["recompilations"]) == (3, 0)
    assert found["compared"]["peer"]["losses"] == [1.0] * 10 and found["forms"] == {
        "model": {"products": "x"}
    }
    # One more step leads each repetition.
    assert sides.steps(tmp_path, "ours") == compare.WARM_UP + 2 * (1 + found["steps_a_repetition"])


def test_both_sides_have_more_warm_up_where_rows_have_many_lengths(
    benchmark, compare, sides, tmp_path, monkeypatch
):
    monkeypatch.setattr(compare, "WAITED", 1e9)
    found = compare.measure(case(benchmark, "sft-chat-s"), tmp_path, sides(1.0, 1.0), pairs=2, seconds=1e-4)
    taken = compare.WARM_UP + compare.LENGTHS_WARM_UP + 2 * (1 + found["steps_a_repetition"])
    assert [sides.steps(tmp_path, name) for name in ("ours", "peer")] == [taken] * 2
    assert found["recompilations"] == 0


def test_sides_take_turns_in_the_order_a_b_b_a(benchmark, compare, sides, tmp_path, monkeypatch):
    order, repeated = [], compare.repeated

    def noted(side, steps):
        order.append(side.name)
        return repeated(side, steps)

    monkeypatch.setattr(compare, "repeated", noted)
    compare.measure(case(benchmark, "sft-s"), tmp_path, sides(1.0, 1.0), pairs=3, seconds=1e-4)
    assert order == ["ours", "peer", "peer", "ours", "ours", "peer"]


def test_a_case_whose_sides_differ_is_never_timed(benchmark, compare, sides, tmp_path):
    with pytest.raises(compare.BenchmarkError, match="step 1: losses 1 here, 2 there"):
        compare.measure(case(benchmark, "sft-s"), tmp_path, sides(1.0, 2.0), pairs=1, seconds=1e-4)
    assert [sides.steps(tmp_path, name) for name in ("ours", "peer")] == [compare.WARM_UP] * 2


def test_a_side_that_gives_no_answer_ends_its_case_in_one_line(compare, tmp_path):
    side = compare.Child.start("peer", ["sleep", "60"], tmp_path / "log", {}, patience=0.06)
    try:
        with pytest.raises(
            compare.BenchmarkError, match=r"^peer gave no answer in 0\.001 minutes \(.*log\)$"
        ):
            side.run(1)
    finally:
        side.kill()
    assert side.process.returncode == -9


def test_a_long_case_is_waited_for_longer(benchmark, compare, tmp_path):
    sides = compare.Sides("true", "true", tmp_path)
    patience = {}
    for name in ("sft-s", "dpo-m-bf16"):
        side = sides.start("ours", case(benchmark, name), tmp_path)
        patience[name] = side.patience
        side.kill()
    assert patience == {"sft-s": 20 * 60, "dpo-m-bf16": 500 * 60}


def test_a_side_that_ends_is_reported_with_the_end_of_what_it_printed(compare, tmp_path):
    side = compare.Child.start("ours", ["sh", "-c", "echo no such thing; exit 3"], tmp_path / "log", {})
    side.process.wait()
    try:
        with pytest.raises(compare.BenchmarkError, match="ours ended with status 3: no such thing"):
            side.run(1)
    finally:
        side.kill()
