"""Sides that run by themselves, in `benchmarks/once.py`: started anew each time, compared all the same."""

import pytest


@pytest.fixture
def start(benchmark, sides, tmp_path):
    case = benchmark("cases").BY_NAME["start-s"]
    return lambda ours, peer: benchmark("once").measure_start(case, tmp_path, sides(ours, peer), pairs=2)


def test_starts_are_timed_in_pairs_after_one_that_is_not_counted(start):
    found = start(1.0, 1.0)
    assert (
        len(found["seconds"]["ours"]) == len(found["seconds"]["peer"]) == len(found["compile_seconds"]) == 2
    )
    assert found["compared"]["ours"]["losses"] == [1.0]


def test_a_start_whose_first_loss_differs_fails(benchmark, start):
    with pytest.raises(benchmark("compare").BenchmarkError, match=r"step 1: losses 1 here, 1\.01 there"):
        start(1.0, 1.01)


def test_the_memory_of_a_step_that_differs_is_not_kept(benchmark, sides, tmp_path):
    case, once = benchmark("cases").BY_NAME["memory-128k"], benchmark("once")
    assert once.measure_memory(case, tmp_path, sides(1.0, 1.0))["memory"] == {"ours": 2, "peer": 2}
    with pytest.raises(benchmark("compare").BenchmarkError, match="step 1: losses"):
        once.measure_memory(case, tmp_path, sides(1.0, 1.1))
