"""Rated sheets are checked row by row, and agreement is that of the published measures."""

import re
from functools import partial

import numpy as np
import pytest

from jaxalign.errors import DataError
from jaxalign.evaluation.human_sheet.key import Item, Key
from jaxalign.evaluation.human_sheet.rated import agreement_of, read_rated, unrated_items
from jaxalign.evaluation.metrics import agreement

CODES = {"A": 0.0, "tie": 1.0, "B": 2.0}


def key_of(raters, items=4, kind="pair"):
    models = ("m", "n") if kind == "pair" else ("m",)
    item = Item(prompt=(("user", "p"),), models=models, answers=((("assistant", "a"),),) * len(models))
    return Key(
        kind=kind,
        seed=0,
        models=models,
        items={f"item-{n}": item for n in range(1, items + 1)},
        raters={rater: tuple(f"item-{n}" for n in mine) for rater, mine in raters.items()},
    )


KEY = key_of({"1": [2, 1, 3], "2": [1, 4]})


def sheet(folder, *rows, name="rated.csv", head="sheet,rater,item,choice", encoding="utf-8", key=KEY):
    path = folder / name
    path.write_bytes("\r\n".join([head, *rows]).replace("SHEET", key.sheet).encode(encoding))
    return str(path)


def test_ratings_of_several_files_are_read(tmp_path):
    one = sheet(tmp_path, "SHEET,1,item-1,A", "SHEET,1,item-2,", "SHEET,1,item-3,tie")
    two = sheet(tmp_path, "SHEET,2,item-1,B", name="two.csv")
    found = read_rated(KEY, [one, two])
    assert found == {("item-1", "1"): "A", ("item-3", "1"): "tie", ("item-1", "2"): "B"}
    assert unrated_items(KEY, found) == ("item-2", "item-4")


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1"])
def test_what_spreadsheets_write_is_read(separator, encoding, tmp_path):
    row = separator.join(["SHEET", "1", '"eins,\n;zwei äöü"', "item-1", " TIE "])
    head = separator.join(["Sheet", "rater", "prompt", "item", "choice "])
    path = sheet(tmp_path, row, separator * 4, "", head=head, encoding=encoding)
    assert read_rated(KEY, [path]) == {("item-1", "1"): "tie"}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("SHEET,1,item-2,C", "expected A, B, tie or nothing in 'choice' of item-2, got 'C'"),
        ("SHEET,1,item-2,1", "expected A, B, tie or nothing in 'choice' of item-2, got '1'"),
        ("SHEET,1,item-4,A", "'item-4' is none of the items of rater 1"),
        ("SHEET,1,item-9,A", "'item-9' is none of the items of rater 1"),
        ("SHEET,3,item-1,A", "rater '3' is not in the key; expected 1, 2"),
        ("s0,1,item-2,A", "a row of sheet 's0'; the key is of sheet s"),
        ("s0,1,item-2,", "a row of sheet 's0'; the key is of sheet s"),
        ("SHEET,1,item-1,A", "rater 1 rates item-1 at "),
        ("SHEET,1,item-1,B", "rater 1 rates item-1 at "),
        ("SHEET,1,item-2", "expected 4 columns, as in the header"),
        ("SHEET,1,item-2,A,x", "expected 4 columns, as in the header"),
        ('SHEET,1,item-2,"A', "not valid csv"),
    ],
)
def test_a_wrong_row_is_named(row, said, tmp_path):
    path = sheet(tmp_path, "SHEET,1,item-1,A", row)
    with pytest.raises(DataError, match=rf"rated\.csv:3: {re.escape(said)}"):
        read_rated(KEY, [path])


def test_a_second_rating_in_another_file_is_named_with_the_first(tmp_path):
    one = sheet(tmp_path, "SHEET,1,item-1,A")
    two = sheet(tmp_path, "SHEET,1,item-2,A", "SHEET,1,item-1,A", name="two.csv")
    with pytest.raises(DataError, match=r"two\.csv:3: rater 1 rates item-1 at .*rated\.csv:2 too"):
        read_rated(KEY, [one, two])


def test_an_empty_row_is_no_second_rating(tmp_path):
    path = sheet(tmp_path, "SHEET,1,item-1,", "SHEET,1,item-1,B", "SHEET,1,item-1,")
    assert read_rated(KEY, [path]) == {("item-1", "1"): "B"}


@pytest.mark.parametrize("value", ["0", "6", "3.5", "A", "-1", "٣"])
def test_a_rating_out_of_the_scale_is_refused(value, tmp_path):
    key = key_of({"1": [1]}, items=1, kind="rating")
    path = sheet(tmp_path, f"SHEET,1,item-1,{value}", head="sheet,rater,item,rating", key=key)
    with pytest.raises(DataError, match=r"rated\.csv:2: expected 1, 2, 3, 4, 5 or nothing in 'rating'"):
        read_rated(key, [path])


def test_a_file_without_ratings_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"rated\.csv: expected a rating, got none"):
        read_rated(KEY, [sheet(tmp_path, "SHEET,1,item-1,")])
    with pytest.raises(DataError, match=r"rated\.csv:1: .* there is no choice"):
        read_rated(KEY, [sheet(tmp_path, "SHEET,1,item-1,3", head="sheet,rater,item,rating")])
    with pytest.raises(DataError, match=r"none\.csv: cannot be read"):
        read_rated(KEY, [str(tmp_path / "none.csv")])
    (tmp_path / "rated.csv").write_bytes(b"")
    with pytest.raises(DataError, match=r"rated\.csv:1: .* there is no sheet"):
        read_rated(KEY, [str(tmp_path / "rated.csv")])


def agreement_for(key, rated, level="nominal", codes=CODES):
    return agreement_of(key, rated, codes, level, seed=0, confidence=0.9, resamples=50)


def rated_of(table):
    """(item, rater) -> choice, of a table of items by raters in which . is none."""
    return {
        (f"item-{i}", f"{r}"): {"A": "A", "B": "B", "=": "tie"}.get(x, x)
        for i, row in enumerate(table, 1)
        for r, x in enumerate(row, 1)
        if x != "."
    }


def test_two_raters_have_cohens_kappa():
    table = ["AA", "AB", "BB", "==", "B.", "A="]
    found = agreement_for(key_of({"1": range(1, 7), "2": range(1, 7)}, items=6), rated_of(table))
    # 3 of 5 agree; by chance 3/5 1/5 + 1/5 2/5 + 1/5 2/5 of A, B and ties.
    assert found.raw.value == pytest.approx(3 / 5) and found.raw.items == 5
    chance = (3 * 1 + 1 * 2 + 1 * 2) / 25
    assert found.kappa.value == pytest.approx((3 / 5 - chance) / (1 - chance))
    # Of the 10 ratings 4 are A, 3 B, 3 ties: D_e = 1 - (4 3 + 3 2 + 3 2) / (10 9), D_o = 2 / 5.
    assert found.alpha.value == pytest.approx(1 - (2 / 5) / (1 - 24 / 90))
    for one in (found.raw, found.alpha, found.kappa):
        assert one.low <= one.value <= one.high and one.low < one.high


def test_more_raters_have_fleiss_kappa_of_the_items_that_all_of_theirs_rated():
    raters = {"1": [1, 2, 3, 4], "2": [1, 2, 5, 4], "3": [3, 5]}
    table = ["AA.", "AB.", "B.B", "A..", ".=A"]
    found = agreement_for(key_of(raters, items=5), rated_of(table))
    # Items 1, 2, 3 and 5: half agree; of their ratings 4 are A, 3 B, 1 a tie.
    chance = (4**2 + 3**2 + 1) / 64
    assert found.kappa.value == pytest.approx((1 / 2 - chance) / (1 - chance))
    assert found.kappa.items == found.raw.items == 4


def test_ordered_ratings_are_compared_as_such():
    rng = np.random.default_rng(0)
    values = rng.integers(1, 6, (30, 2))
    key = key_of({"1": range(1, 31), "2": range(1, 31)}, items=30, kind="rating")
    rated = rated_of([[str(x) for x in row] for row in values])
    found = agreement_for(key, rated, "ordinal", {str(n): float(n) for n in range(1, 6)})
    assert found.alpha.value == pytest.approx(agreement.krippendorff_alpha(values, level="ordinal"))
    kappa = partial(agreement.cohens_kappa, weights="quadratic")
    assert found.kappa == agreement.with_interval(kappa, values, seed=0, confidence=0.9, resamples=50)


def test_items_of_one_rater_have_no_agreement():
    key = key_of({"1": [1, 2], "2": [3, 4]})
    assert agreement_for(key, rated_of(["A.", "B.", ".A", ".B"])) is None


def test_unfinished_items_alone_have_no_fleiss_kappa():
    key = key_of({"1": [1], "2": [1], "3": [1]}, items=1)
    found = agreement_for(key, rated_of(["AA."]))
    assert found.kappa is None and found.raw.value == 1
