"""Sheets as raters give them back: checked row by row against the key, and how far the raters agree."""

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from jaxalign.errors import DataError
from jaxalign.evaluation.human_sheet.key import CHOICES, COLUMN, Key
from jaxalign.evaluation.metrics.agreement import (
    Agreement,
    Level,
    cohens_kappa,
    fleiss_kappa,
    krippendorff_alpha,
    raw_agreement,
    with_interval,
)

# Item and rater -> the choice, as the key's kind writes it.
Rated = Mapping[tuple[str, str], str]


@dataclass(frozen=True, kw_only=True)
class RaterAgreement:
    """How far raters give an item the same rating.

    Attributes:
      raw: share of pairs of raters.
      alpha: Krippendorff's.
      kappa: Cohen's of two raters, else Fleiss' over the items of which all ratings are there; None where no item has
        them.
    """

    raw: Agreement
    alpha: Agreement
    kappa: Agreement | None


def read_rated(key: Key, files: Sequence[str]) -> dict[tuple[str, str], str]:
    """The ratings of several raters' csv files, as the page saves them or a spreadsheet does (, ; or tab between).

    Columns `sheet`, `rater`, `item` and the choice count, others do not. A row without a choice is none.

    Raises:
      DataError: naming file and line: no such columns, a row of another sheet, an item that is not the rater's, a value
        that is no choice, or a second rating of an item by a rater; or no rating in all.
    """
    found: dict[tuple[str, str], str] = {}
    places: dict[tuple[str, str], str] = {}
    known = {choice.lower(): choice for choice in CHOICES[key.kind]}
    given = {rater: frozenset(items) for rater, items in key.raters.items()}
    wanted = ("sheet", "rater", "item", COLUMN[key.kind])
    for path in files:
        for place, row in _rows(path, wanted):
            sheet, rater, item, value = (row[name].strip() for name in wanted)
            if sheet != key.sheet:
                raise DataError(f"{place}: a row of sheet {sheet!r:.40}; the key is of sheet {key.sheet}")
            if rater not in given:
                raise DataError(
                    f"{place}: rater {rater!r:.40} is not in the key; expected {_few(key.raters)}"
                )
            if item not in given[rater]:
                raise DataError(f"{place}: {item!r:.40} is none of the items of rater {rater}")
            if not value:
                continue
            if value.lower() not in known:
                raise DataError(
                    f"{place}: expected {', '.join(CHOICES[key.kind])} or nothing in {wanted[-1]!r} of {item}, got "
                    f"{value!r:.40}"
                )
            if (item, rater) in found:
                raise DataError(f"{place}: rater {rater} rates {item} at {places[item, rater]} too")
            found[item, rater], places[item, rater] = known[value.lower()], place
    if not found:
        raise DataError(f"{', '.join(files) or 'files'}: expected a rating, got none")
    return found


def agreement_of(
    key: Key,
    rated: Rated,
    codes: Mapping[str, float],
    level: Level,
    *,
    seed: int,
    confidence: float,
    resamples: int,
) -> RaterAgreement | None:
    """The raters' agreement; None where no item has two ratings. Intervals are over items.

    Args:
      key, rated: the ratings.
      codes: a number for each choice; in order, where the level is not nominal.
      level: of alpha. Cohen's kappa has quadratic weights where it is not nominal; Fleiss' is always nominal.
      seed, confidence, resamples: of the intervals.
    """
    raters = list(key.raters)
    table = np.full((len(key.items), len(raters)), np.nan)
    places = {item: place for place, item in enumerate(key.items)}
    for (item, rater), choice in rated.items():
        table[places[item], raters.index(rater)] = codes[choice]
    counts = np.count_nonzero(~np.isnan(table), axis=1)
    if counts.max() < 2:
        return None
    interval = partial(with_interval, seed=seed, confidence=confidence, resamples=resamples)
    if len(raters) == 2:
        kappa = interval(partial(cohens_kappa, weights=None if level == "nominal" else "quadratic"), table)
    else:
        planned = Counter(item for mine in key.raters.values() for item in mine)
        whole = table[counts == [planned[item] for item in key.items]]
        kappa = interval(fleiss_kappa, whole) if len(whole) else None
    return RaterAgreement(
        raw=interval(raw_agreement, table),
        alpha=interval(partial(krippendorff_alpha, level=level), table),
        kappa=kappa,
    )


def unrated_items(key: Key, rated: Rated) -> tuple[str, ...]:
    """The items without any rating."""
    there = {item for item, _ in rated}
    return tuple(item for item in key.items if item not in there)


def _rows(path: str, wanted: Sequence[str]) -> list[tuple[str, dict[str, str]]]:
    """(place, row) of each row that is not empty.

    `data.files` needs commas and UTF-8, which spreadsheets of many countries do not write. What counts here is ASCII:
    any encoding of the texts beside it will do.
    """
    try:
        text = Path(path).read_bytes().removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    header = text.partition("\n")[0]
    csv.field_size_limit(2**31 - 1)  # the default refuses texts over 128 KB
    reader = csv.DictReader(
        io.StringIO(text, newline=""), delimiter=max(",;\t", key=header.count), strict=True
    )
    found, line = [], 0
    try:
        names = [name.strip().lower() for name in reader.fieldnames or ()]
        lacking = [name for name in wanted if name not in names]
        if lacking:
            raise DataError(f"{path}:1: expected the columns {', '.join(wanted)}, there is no {lacking[0]}")
        reader.fieldnames = names
        line = reader.line_num
        for row in reader:
            line = reader.line_num
            place = f"{path}:{line}"
            if None in row or None in row.values():
                raise DataError(f"{place}: expected {len(names)} columns, as in the header")
            if any(value.strip() for value in row.values()):
                found.append((place, row))
    except csv.Error as error:
        raise DataError(f"{path}:{line + 1}: not valid csv ({error})") from None
    return found


def _few(names: Mapping[str, object]) -> str:
    some = list(names)
    return ", ".join(some) if len(some) < 6 else f"{some[0]} to {some[-1]}"
