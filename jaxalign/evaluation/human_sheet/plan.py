"""Who rates what: items to raters, each item to several of them, in an order of each rater's own."""

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np

from jaxalign.errors import ConfigError


def items_to_rate(items: int, *, raters: int, overlap: int, items_per_rater: int = 0) -> int:
    """How many of the items can be rated.

    n = min(N, floor(raters items_per_rater / overlap))

    Args:
      items: N, that there are.
      raters: their number.
      overlap: raters of each item.
      items_per_rater: at most; 0 for as many as all items need.

    Raises:
      ConfigError: a number out of range, or no item that could be rated.
    """
    if raters < 1:
        raise ConfigError(f"raters: expected 1 or more, got {raters}")
    if not 1 <= overlap <= raters:
        raise ConfigError(f"overlap: expected 1 to {raters}, the number of raters, got {overlap}")
    if items_per_rater < 0:
        raise ConfigError(f"items_per_rater: expected 0 (as many as it takes) or more, got {items_per_rater}")
    if not items_per_rater:
        return items
    count = min(items, raters * items_per_rater // overlap)
    if not count:
        raise ConfigError(
            f"items_per_rater: {raters} raters of {items_per_rater} cannot rate an item {overlap} times; expected "
            f"{math.ceil(overlap / raters)} or more"
        )
    return count


def assign(items: int, *, raters: int, overlap: int, rng: np.random.Generator) -> list[list[int]]:
    """The items of each rater, in the order in which they are shown.

    Each item goes to `overlap` raters: those with the fewest so far, of these to whom shares fewest items with the
    ones it went to already. So loads differ by one at most, and all pairs of raters can be compared.

    Args:
      items: their number.
      raters, overlap: see `items_to_rate`.
      rng: which breaks ties, and orders.
    """
    given: list[list[int]] = [[] for _ in range(raters)]
    shared = np.zeros((raters, raters), np.int64)
    for item in range(items):
        chosen: list[int] = []
        luck = rng.permutation(raters)
        for _ in range(overlap):
            rest = (rater for rater in range(raters) if rater not in chosen)
            chosen.append(min(rest, key=lambda r: (len(given[r]), shared[r, chosen].sum(), luck[r])))
        for rater in chosen:
            given[rater].append(item)
            shared[rater, chosen] += 1
    return [[mine[i] for i in rng.permutation(len(mine))] for mine in given]


def pair_items(prompts: int, models: int, rng: np.random.Generator) -> list[tuple[int, int, int]]:
    """(prompt, model, other model) of each comparison, in random order of prompts.

    All prompts come once before one comes again, with the pairs of models in turn: the first n of them are of as many
    prompts, and of all pairs as evenly, as n allows.
    """
    pairs = list(combinations(range(models), 2))
    order = rng.permutation(prompts)
    return [
        (int(prompt), *pairs[(place + turn) % len(pairs)])
        for turn in range(len(pairs))
        for place, prompt in enumerate(order)
    ]


def sides(pairs: Sequence[tuple[int, int]], rng: np.random.Generator) -> list[bool]:
    """Whether the second model of each item is shown first: at random, and of each pair of models half the time."""
    found = [False] * len(pairs)
    for pair in sorted(set(pairs)):
        places = [place for place, one in enumerate(pairs) if one == pair]
        # Of an odd number one more or one less.
        flips = (np.arange(len(places)) + rng.integers(2)) % 2 == 1
        for place, flip in zip(places, rng.permutation(flips), strict=True):
            found[place] = bool(flip)
    return found
