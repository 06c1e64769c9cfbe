"""Items are spread over raters evenly, and sides over items."""

from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from jaxalign.errors import ConfigError
from jaxalign.evaluation.human_sheet.plan import assign, items_to_rate, pair_items, sides


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize(
    ("items", "raters", "overlap"), [(10, 1, 1), (11, 3, 1), (11, 3, 2), (30, 4, 2), (30, 5, 3), (7, 4, 4)]
)
def test_each_item_has_its_raters_and_loads_are_even(items, raters, overlap):
    given = assign(items, raters=raters, overlap=overlap, rng=rng())
    seen = Counter(item for mine in given for item in mine)
    assert set(seen) == set(range(items)) and set(seen.values()) == {overlap}
    assert all(len(set(mine)) == len(mine) for mine in given)
    loads = [len(mine) for mine in given]
    assert sum(loads) == items * overlap and max(loads) - min(loads) <= 1


@pytest.mark.parametrize(("raters", "overlap", "items"), [(4, 2, 60), (3, 2, 60), (5, 3, 60), (6, 2, 60)])
def test_all_pairs_of_raters_share_items(raters, overlap, items):
    given = [set(mine) for mine in assign(items, raters=raters, overlap=overlap, rng=rng(1))]
    shared = [len(a & b) for a, b in combinations(given, 2)]
    fair = items * overlap * (overlap - 1) / (raters * (raters - 1))
    assert min(shared) > 0.6 * fair and max(shared) < 1.4 * fair


def test_each_rater_has_an_order_of_their_own():
    one, two = assign(30, raters=2, overlap=2, rng=rng())
    assert sorted(one) == sorted(two) == list(range(30))
    assert one != two and list(range(30)) not in (one, two)


@pytest.mark.parametrize(
    ("per_rater", "count"), [(0, 100), (10, 15), (5, 7), (1, 1), (1000, 100)]
)  # 3 raters, 2 of them an item: floor(3 n / 2)
def test_raters_with_little_time_rate_fewer_items(per_rater, count):
    assert items_to_rate(100, raters=3, overlap=2, items_per_rater=per_rater) == count
    given = assign(count, raters=3, overlap=2, rng=rng())
    assert not per_rater or max(map(len, given)) <= per_rater


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"raters": 0, "overlap": 1}, "raters: expected 1 or more, got 0"),
        ({"raters": 2, "overlap": 3}, "overlap: expected 1 to 2, the number of raters, got 3"),
        ({"raters": 2, "overlap": 0}, "overlap: expected 1 to 2"),
        ({"raters": 2, "overlap": 1, "items_per_rater": -1}, "items_per_rater: expected 0"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        items_to_rate(10, **options)


def test_every_pair_of_models_is_asked_of_every_prompt():
    found = pair_items(5, 3, rng())
    assert Counter(found) == Counter((p, *pair) for p in range(5) for pair in [(0, 1), (0, 2), (1, 2)])


def test_the_first_items_are_of_as_many_prompts_and_evenly_of_all_pairs():
    first = pair_items(30, 3, rng())[:30]
    assert len({prompt for prompt, *_ in first}) == 30
    assert set(Counter(models for _, *two in first for models in [tuple(two)]).values()) == {10}
    assert [prompt for prompt, *_ in first] != sorted(prompt for prompt, *_ in first)


def test_half_of_the_items_of_each_pair_are_turned_round():
    pairs = [(0, 1)] * 40 + [(1, 2)] * 7
    found = sides(pairs, rng())
    assert sum(found[:40]) == 20 and sum(found[40:]) in (3, 4)
    assert found[:40] not in ([True, False] * 20, [False, True] * 20)
    assert found != sides(pairs, rng(1))


def test_the_odd_item_of_a_pair_may_have_either_side():
    assert {sides([(0, 1)], rng(seed))[0] for seed in range(20)} == {True, False}
