"""Ratings of one model's answers, by item and by rater."""

import json
import math

import pytest

from jaxalign.errors import DataError
from jaxalign.evaluation import estimate_mean
from jaxalign.evaluation.human_sheet import export_rating_sheet, import_pair_ratings, import_ratings
from jaxalign.evaluation.human_sheet.key import read_key
from jaxalign.evaluation.metrics.agreement import krippendorff_alpha


def exported(folder, prompts=4, **options):
    path = folder / "m.jsonl"
    path.write_text("".join(json.dumps({"prompt": str(p), "completion": "x"}) + "\n" for p in range(prompts)))
    return export_rating_sheet(str(path), folder / "sheet", seed=0, **options)


def rate(sheet, folder, table):
    """Files of the raters: `table[prompt][rater]`, 0 for none."""
    key, files = read_key(str(sheet.key), "rating"), []
    for number, (rater, items) in enumerate(key.raters.items()):
        values = [table[int(key.items[name].prompt[0][1])][number] or "" for name in items]
        path = folder / f"rated-{rater}.csv"
        rows = [f"{key.sheet},{rater},{name},{value}\n" for name, value in zip(items, values, strict=True)]
        path.write_text("".join(["sheet,rater,item,rating\n", *rows]))
        files.append(str(path))
    return files


def test_an_item_counts_once_however_many_rate_it(tmp_path):
    sheet = exported(tmp_path, raters=2, overlap=2)
    table = [(5, 3), (2, 0), (0, 0), (1, 1)]
    found = import_ratings(sheet.key, rate(sheet, tmp_path, table))
    by_prompt = {found.key.items[item].prompt[0][1]: score for item, score in found.scores.items()}
    assert by_prompt == {"0": 4.0, "1": 2.0, "3": 1.0}
    mean = estimate_mean([4.0, 2.0, 1.0])
    assert (found.mean.mean, found.mean.count) == (pytest.approx(7 / 3), 3)
    assert found.mean.low == pytest.approx(mean.low) and found.mean.high == pytest.approx(mean.high)
    assert found.counts == {1: 2, 2: 1, 3: 1, 4: 0, 5: 1}
    assert [found.key.items[name].prompt[0][1] for name in found.unrated] == ["2"] and found.missing == 3


def test_a_kinder_rater_is_seen(tmp_path):
    sheet = exported(tmp_path, raters=3, overlap=3)
    table = [(5, 3, 3), (4, 3, 2), (2, 1, 1), (3, 0, 0)]
    found = import_ratings(sheet.key, rate(sheet, tmp_path, table))
    # Of items 0, 1, 2: 5 - 3, 4 - 2.5, 2 - 1.
    assert found.raters["1"].off == pytest.approx((2 + 1.5 + 1) / 3)
    assert found.raters["1"].mean == pytest.approx(14 / 4)
    assert found.raters["2"].off == pytest.approx((-1 + 0 - 0.5) / 3)
    assert [(r.rated, r.unrated) for r in found.raters.values()] == [(4, 0), (3, 1), (3, 1)]


def test_agreement_knows_the_order_of_ratings(tmp_path):
    sheet = exported(tmp_path, prompts=6, raters=2, overlap=2)
    table = [(5, 4), (4, 4), (1, 2), (2, 2), (3, 3), (5, 5)]
    found = import_ratings(sheet.key, rate(sheet, tmp_path, table), confidence=0.9, resamples=100).agreement
    assert found.alpha.value == pytest.approx(krippendorff_alpha(table, level="ordinal"))
    assert found.alpha.value > krippendorff_alpha(table, level="nominal")
    assert found.raw.value == pytest.approx(4 / 6)
    # Quadratic weights: sum (a - b)^2 = 2 of 6 items, by chance the mean over all pairs of a rating of each.
    chance = sum((a - b) ** 2 for a, _ in table for _, b in table) / 36
    assert found.kappa.value == pytest.approx(1 - (2 / 6) / chance)


def test_one_rater_has_no_one_to_agree_with(tmp_path):
    sheet = exported(tmp_path, raters=2)
    files = rate(sheet, tmp_path, [(3, 3)] * 4)
    found = import_ratings(sheet.key, files[:1])
    assert found.agreement is None and found.raters["1"].off is None
    assert math.isnan(found.raters["2"].mean) and found.raters["2"].rated == 0


def test_a_sheet_of_the_other_kind_is_refused(tmp_path):
    sheet = exported(tmp_path)
    with pytest.raises(DataError, match=r"key\.json: expected the key of a pair sheet, got that of a rating"):
        import_pair_ratings(sheet.key, [])
    with pytest.raises(DataError, match="expected a rating, got none"):
        import_ratings(sheet.key, [])
