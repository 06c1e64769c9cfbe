"""Choices become win rates by model, whatever the side; and rows to train on."""

import json
import math
from pathlib import Path

import pytest

from jaxalign.data.readers import read_records
from jaxalign.data.records import Comparison, Message
from jaxalign.errors import DataError
from jaxalign.evaluation.human_sheet import (
    export_pair_sheet,
    import_pair_ratings,
    preferences,
    write_preferences,
)
from jaxalign.evaluation.human_sheet.key import read_key
from jaxalign.uncertainty import clustered_interval, wilson_interval


def lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def exported(folder, models=("m", "n"), prompts=4, say=lambda model, p: f"{model}{p}", **options):
    files = [
        lines(folder / f"{m}.jsonl", *({"prompt": f"p{p}", "completion": say(m, p)} for p in range(prompts)))
        for m in models
    ]
    return export_pair_sheet(files, folder / "sheet", seed=0, **options)


def rate(sheet, folder, wins):
    """Files of the raters, in which `wins(rater, prompt, models shown)` gives the model that wins, "" or "tie"."""
    key, files = read_key(str(sheet.key), "pair"), []
    for rater, items in key.raters.items():
        rows = []
        for name in items:
            item = key.items[name]
            won = wins(rater, item.prompt[0][1], item.models)
            choice = "AB"[item.models.index(won)] if won in item.models else won
            rows.append(f"{key.sheet},{rater},{name},{choice}\n")
        path = folder / f"rated-{rater}.csv"
        path.write_text("".join(["sheet,rater,item,choice\n", *rows]))
        files.append(str(path))
    return files


def test_wins_are_of_models_and_not_of_sides(tmp_path):
    sheet = exported(tmp_path)
    won = {"p0": "m", "p1": "m", "p2": "n", "p3": "tie"}
    found = import_pair_ratings(sheet.key, rate(sheet, tmp_path, lambda _, prompt, __: won[prompt]))
    (pair,) = found.pairs
    assert (pair.model, pair.baseline) == ("m", "n")
    for rate_ in (pair.votes, pair.items):
        assert rate_.rate == (2 + 1 / 2) / 4
        assert (rate_.wins, rate_.ties, rate_.losses) == (2, 1, 1)
    assert (pair.items.low, pair.items.high) == wilson_interval(2.5, 4)
    assert (pair.votes.low, pair.votes.high) == clustered_interval([1, 1, 0, 0.5], [1] * 4)
    assert found.agreement is None and found.unrated == () and found.missing == 0


def test_several_raters_of_an_item_vote_and_its_choices_go_together(tmp_path):
    sheet = exported(tmp_path, raters=3, overlap=3)
    # By prompt the choices of raters 1, 2, 3: two of three, a split, all, and a win beside ties.
    votes = {"p0": "mmn", "p1": ["m", "n", "tie"], "p2": "nnn", "p3": ["tie", "tie", "m"]}
    files = rate(sheet, tmp_path, lambda rater, prompt, _: votes[prompt][int(rater) - 1])
    found = import_pair_ratings(sheet.key, files, confidence=0.9)
    (pair,) = found.pairs
    assert (pair.items.wins, pair.items.ties, pair.items.losses) == (2, 1, 1)
    assert (pair.votes.wins, pair.votes.ties, pair.votes.losses) == (4, 3, 5)
    assert pair.votes.rate == pytest.approx((4 + 3 / 2) / 12)
    expected = clustered_interval([2, 1.5, 0, 2], [3] * 4, confidence=0.9)
    assert (pair.votes.low, pair.votes.high) == pytest.approx(expected)
    # Of the other two's choices 1 of 2, 0, 2 and 1 are rater 1's; 1, 0, 2, 1 rater 2's; 0, 0, 2, 0 rater 3's.
    assert [found.raters[r].agreed for r in "123"] == pytest.approx([4 / 8, 4 / 8, 2 / 8])
    assert found.raters["3"].votes["m", "n"].rate == pytest.approx((1 + 1 / 2) / 4)
    # P_i = 1/3, 0, 1, 1/3 of pairs of raters.
    assert found.agreement.raw.value == pytest.approx((1 / 3 + 0 + 1 + 1 / 3) / 4)


def test_each_pair_of_models_has_its_rate(tmp_path):
    sheet = exported(tmp_path, ("m", "n", "o"), prompts=10)
    found = import_pair_ratings(sheet.key, rate(sheet, tmp_path, lambda _, __, models: max(models)))
    assert [(p.model, p.baseline) for p in found.pairs] == [("m", "n"), ("m", "o"), ("n", "o")]
    assert [(p.votes.rate, p.votes.losses) for p in found.pairs] == [(0.0, 10)] * 3
    assert set(found.raters["1"].votes) == {("m", "n"), ("m", "o"), ("n", "o")}


def test_a_rater_who_takes_the_first_is_seen(tmp_path):
    sheet = exported(tmp_path, prompts=20, raters=2, overlap=2)

    def wins(rater, prompt, models):
        return models[0] if rater == "1" else "tie" if prompt == "p0" else models[1]

    found = import_pair_ratings(sheet.key, rate(sheet, tmp_path, wins))
    one, two = (found.raters[r].first for r in "12")
    assert (one.rate, one.first, one.second, one.ties) == (1.0, 20, 0, 0)
    assert (two.rate, two.first, two.second, two.ties) == (0.0, 0, 19, 1)
    assert found.first.rate == pytest.approx(20 / 39) and found.first.ties == 1
    # Half the items show m first, so who takes the first prefers neither model.
    assert found.raters["1"].votes["m", "n"].rate == 0.5
    assert one.low > 0.5 and two.high < 0.5


def test_the_interval_of_the_first_share_is_over_items(tmp_path):
    sheet = exported(tmp_path, prompts=6, raters=2, overlap=2)
    takes = {"p0": 0, "p1": 0, "p2": 0, "p3": 0, "p4": 1, "p5": 1}
    found = import_pair_ratings(
        sheet.key, rate(sheet, tmp_path, lambda _, prompt, models: models[takes[prompt]])
    )
    assert found.first.rate == 8 / 12
    assert (found.first.low, found.first.high) == clustered_interval([2, 2, 2, 2, 0, 0], [2] * 6)
    ties = import_pair_ratings(sheet.key, rate(sheet, tmp_path, lambda *_: "tie")).first
    assert math.isnan(ties.rate) and math.isnan(ties.low) and ties.ties == 12


def test_what_is_not_rated_is_told(tmp_path):
    sheet = exported(tmp_path, prompts=6, raters=2, overlap=2)
    skipped = {("1", "p0"), ("2", "p0"), ("2", "p1")}
    files = rate(sheet, tmp_path, lambda rater, prompt, _: "" if (rater, prompt) in skipped else "m")
    found = import_pair_ratings(sheet.key, files)
    assert [found.key.items[name].prompt[0][1] for name in found.unrated] == ["p0"]
    assert found.missing == 3
    assert [(r.rated, r.unrated) for r in found.raters.values()] == [(5, 1), (4, 2)]
    alone = import_pair_ratings(sheet.key, files[:1])
    assert (alone.missing, alone.raters["2"].rated, alone.raters["2"].agreed) == (7, 0, None)
    assert alone.raters["2"].votes == {} and math.isnan(alone.raters["2"].first.rate)


def test_the_sheet_of_another_key_is_refused(tmp_path):
    (tmp_path / "other").mkdir()
    one, other = exported(tmp_path), exported(tmp_path / "other", prompts=5)
    files = rate(other, tmp_path, lambda *_: "m")
    with pytest.raises(DataError, match=rf"rated-1\.csv:2: a row of sheet '{other.sheet}'; .* {one.sheet}"):
        import_pair_ratings(one.key, files)


def test_trainers_read_the_preferences_and_ties_are_left_out(tmp_path):
    sheet = exported(tmp_path, prompts=5, raters=2, overlap=2)
    votes = {"p0": "mm", "p1": "nn", "p2": "mn", "p3": ["tie", "n"], "p4": ["", ""]}
    ratings = import_pair_ratings(
        sheet.key, rate(sheet, tmp_path, lambda rater, prompt, _: votes[prompt][int(rater) - 1])
    )
    found = write_preferences(tmp_path / "out" / "rows.jsonl", ratings)
    assert found == preferences(ratings)
    assert (found.ties, found.unrated, found.identical, found.empty) == (1, 1, 0, 0)
    records, counts = read_records(str(tmp_path / "out" / "rows.jsonl"), kind="preference")
    assert counts.filtered == {} and counts.unread == {}
    assert {(r.prompt, r.chosen, r.rejected) for r in records} == {
        ("p0", "m0", "n0"),
        ("p1", "n1", "m1"),
        ("p3", "n3", "m3"),
    }


def test_what_teaches_nothing_is_left_out_and_counted(tmp_path):
    sheet = exported(
        tmp_path, say=lambda m, p: {0: "same", 1: "" if m == "m" else "x", 2: m if m == "m" else ""}[p % 3]
    )
    ratings = import_pair_ratings(sheet.key, rate(sheet, tmp_path, lambda *_: "m"))
    found = preferences(ratings)
    # Prompts 0 and 3 have one answer twice, of 1 the empty one wins, of 2 it loses.
    assert (found.identical, found.empty, found.ties, found.unrated) == (2, 1, 0, 0)
    assert found.rows == ({"prompt": "p2", "chosen": "m", "rejected": ""},)
    records, _ = read_records(write(tmp_path, ratings), kind="preference")
    assert [(r.chosen, r.rejected) for r in records] == [("m", "")]


def write(folder, ratings):
    write_preferences(folder / "rows.jsonl", ratings)
    return str(folder / "rows.jsonl")


def test_conversations_stay_conversations(tmp_path):
    questions = lines(tmp_path / "q.jsonl", {"question_id": 1, "category": "x", "turns": ["One?", "Two?"]})
    files = [
        lines(
            tmp_path / f"{m}.jsonl",
            {"question_id": 1, "model_id": m, "choices": [{"turns": [f"{m}1", f"{m}2"]}]},
        )
        for m in "mn"
    ]
    sheet = export_pair_sheet(files, tmp_path / "sheet", seed=0, questions=questions)
    ratings = import_pair_ratings(sheet.key, rate(sheet, tmp_path, lambda *_: "n"))
    (record,), counts = read_records(write(tmp_path, ratings), kind="preference")
    sides = [
        (Message("assistant", f"{m}1"), Message("user", "Two?"), Message("assistant", f"{m}2")) for m in "nm"
    ]
    assert isinstance(record, Comparison) and [record.chosen, record.rejected] == sides
    assert record.prompt in ("One?", (Message("user", "One?"),)) and counts.filtered == {}


def test_a_chat_prompt_stays_a_chat(tmp_path):
    chat = [{"role": "system", "content": "Be terse."}, {"role": "user", "content": "Hi."}]
    files = [lines(tmp_path / f"{m}.jsonl", {"prompt": chat, "completion": m}) for m in "mn"]
    sheet = export_pair_sheet(files, tmp_path / "sheet", seed=0)
    ratings = import_pair_ratings(sheet.key, rate(sheet, tmp_path, lambda *_: "n"))
    (record,), _ = read_records(write(tmp_path, ratings), kind="preference")
    assert record.prompt == (Message("system", "Be terse."), Message("user", "Hi."))
    assert (record.chosen, record.rejected) == ("n", "m")


def test_space_is_kept_for_training(tmp_path):
    texts = {"m": ("Once:\n", " upon\n"), "n": ("Once:", " a")}
    files = [lines(tmp_path / f"{m}.jsonl", {"prompt": p, "completion": c}) for m, (p, c) in texts.items()]
    sheet = export_pair_sheet(files, tmp_path / "sheet", seed=0)
    ratings = import_pair_ratings(sheet.key, rate(sheet, tmp_path, lambda *_: "n"))
    assert preferences(ratings).rows == ({"prompt": "Once:\n", "chosen": " a", "rejected": " upon\n"},)


def test_no_row_is_written_where_none_wins(tmp_path):
    sheet = exported(tmp_path)
    ratings = import_pair_ratings(sheet.key, rate(sheet, tmp_path, lambda *_: "tie"))
    with pytest.raises(DataError, match=r"rows\.jsonl: no item has an answer that wins \(4 ties\)"):
        write(tmp_path, ratings)
    with pytest.raises(DataError, match=r"rows\.csv: expected a name that ends in \.jsonl"):
        write_preferences(tmp_path / "rows.csv", ratings)
    assert not Path(tmp_path / "rows.jsonl").exists()
