"""The arithmetic and the check of `benchmarks/compare.py`; no other library is started."""

import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def compare(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    for name in ("cases", "compare"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import compare

    yield compare
    for name in ("cases", "compare"):
        sys.modules.pop(name, None)


def test_the_ratio_is_the_median_of_pairs_and_lies_in_its_interval(compare):
    times = {"ours": [1.0, 2.0, 1.0, 4.0, 1.0], "peer": [2.0, 3.0, 3.0, 2.0, 2.0]}
    middle, low, high = compare.ratio({"seconds_a_step": times}, draws=500)
    assert middle == 2.0
    assert 0.5 <= low <= middle <= high <= 3.0


@pytest.mark.parametrize(
    ("name", "change", "fails"),
    [
        ("losses", 1e-5, False),
        ("losses", 1e-3, True),
        ("grad_norms", 5e-4, False),
        ("grad_norms", 5e-3, True),
    ],
)
def test_sides_that_compute_something_else_are_not_timed(compare, name, change, fails):
    ours = {"losses": [1.0] * 12, "grad_norms": [2.0] * 12}
    peer = {**ours, name: [x * (1 + change * (i == 7)) for i, x in enumerate(ours[name])]}
    case = sys.modules["cases"].BY_NAME["sft-s"]
    if not fails:
        compare.check(case, {"ours": ours, "peer": peer})
        return
    with pytest.raises(compare.BenchmarkError, match=f"step 8: {name}"):
        compare.check(case, {"ours": ours, "peer": peer})


def test_given_completions_are_the_same_in_every_process_and_differ_by_row(compare):
    given = sys.modules["cases"].given_completion
    first = given(1, 0, 4096)
    assert first == given(1, 0, 4096) and len(first) == 192
    assert first != given(1, 1, 4096) and first != given(2, 0, 4096)
    assert min(first) >= 4 and max(first) < 4096
