"""Sheets are blind, repeatable and whole, and never lose a key."""

import csv
import gzip
import io
import json
from collections import Counter
from pathlib import Path

import pytest

from jaxalign.errors import ConfigError, DataError
from jaxalign.evaluation.human_sheet import export_pair_sheet, export_rating_sheet
from jaxalign.evaluation.human_sheet.key import Item, Key, read_key
from jaxalign.evaluation.human_sheet.rated import read_rated

REAL = Path(__file__).resolve().parents[4] / "shared/data/evaluation/alpaca_eval"


def answers(folder, model, prompts=range(20), say=lambda model, prompt: f"{model.upper()} {prompt}"):
    """A file of a model's answers; they do not hold its name as it is written."""
    path = folder / f"{model}.jsonl"
    rows = [{"prompt": f"prompt {p}", "completion": say(model, p)} for p in prompts]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def table(path):
    return list(csv.DictReader(io.StringIO(Path(path).read_bytes().decode("utf-8-sig"), newline="")))


def texts(sheet, suffix=".csv"):
    return [path.read_text(encoding="utf-8-sig") for path in sheet.files if path.suffix == suffix]


def test_the_key_says_which_model_is_on_which_side(tmp_path):
    files = [answers(tmp_path, name) for name in ("one", "two", "three")]
    sheet = export_pair_sheet(files, tmp_path / "out", seed=0, raters=2)
    key = read_key(str(sheet.key), "pair")
    assert key.sheet == sheet.sheet and key.models == ("one", "two", "three") and len(key.items) == 60
    for path in sheet.files[::2]:
        for row in table(path):
            item = key.items[row["item"]]
            assert row["prompt"] == item.prompt[0][1] and row["choice"] == ""
            number = row["prompt"].split()[1]
            assert [row["answer_a"], row["answer_b"]] == [f"{m.upper()} {number}" for m in item.models]
    sides = Counter(item.models for item in key.items.values())
    assert set(sides.values()) == {10} and len(sides) == 6


def test_no_sheet_names_a_model(tmp_path):
    files = [answers(tmp_path, name, say=lambda *_: "x") for name in ("secretone", "secrettwo")]
    sheet = export_pair_sheet(files, tmp_path / "out", seed=0, raters=2)
    single = export_rating_sheet(files[0], tmp_path / "single", seed=0)
    for one in (sheet, single):
        assert "secret" in one.key.read_text()
        for path in one.files:
            assert "secret" not in path.read_text().lower() and "secret" not in path.name
    assert sheet.identical == 20
    assert "20 items have the same answer on both sides" in sheet.lines()


def test_the_page_and_the_table_of_a_rater_have_the_same_items(tmp_path):
    files = [answers(tmp_path, name) for name in ("one", "two")]
    sheet = export_pair_sheet(files, tmp_path / "out", seed=0, raters=3, overlap=2)
    assert [path.name for path in sheet.files] == [
        f"rater-{n}.{kind}" for n in (1, 2, 3) for kind in ("csv", "html")
    ]
    key = read_key(str(sheet.key), "pair")
    for rater, path, page in zip("123", sheet.files[::2], texts(sheet, ".html"), strict=True):
        rows = table(path)
        assert tuple(row["item"] for row in rows) == key.raters[rater]
        places = [page.index(f'"id": "{row["item"]}"') for row in rows]
        assert places == sorted(places)
        assert {(row["sheet"], row["rater"]) for row in rows} == {(sheet.sheet, rater)}
    assert sheet.loads == {rater: len(items) for rater, items in key.raters.items()}
    assert sum(sheet.loads.values()) == 40


def test_a_seed_gives_the_same_sheet_and_another_another(tmp_path):
    files = [answers(tmp_path, name) for name in ("one", "two")]
    one, same, other = (
        export_pair_sheet(files, tmp_path / str(n), seed=seed, raters=2) for n, seed in enumerate((5, 5, 6))
    )
    assert [path.read_bytes() for path in one.files] == [path.read_bytes() for path in same.files]
    assert one.key.read_bytes() == same.key.read_bytes()
    assert other.sheet != one.sheet

    def models(sheet):
        return [item.models for item in read_key(str(sheet.key), "pair").items.values()]

    assert models(other) != models(one)


def test_missing_and_doubled_prompts_are_counted_and_shown(tmp_path):
    one = answers(tmp_path, "one", [0, 1, 2, 2, 2])
    two = answers(tmp_path, "two", [1, 2, 3, 4, 5, 6, 7])
    sheet = export_pair_sheet([one, two], tmp_path / "out", seed=0)
    assert sheet.items == 2
    assert sheet.missing == {"one": tuple(f"prompt {n}" for n in range(3, 8)), "two": ("prompt 0",)}
    assert sheet.doubled == {"one": ("prompt 2", "prompt 2"), "two": ()}
    assert sheet.lines() == [
        f"sheet {sheet.sheet}: 2 items, 1 raters of 2 items; {sheet.key}",
        "one: no answer to 5 prompts: 'prompt 3', 'prompt 4', 'prompt 5' and 2 more",
        "two: no answer to 1 prompts: 'prompt 0'",
        "one: further answers are left out of 2 prompts: 'prompt 2', 'prompt 2'",
    ]


def test_raters_with_little_time_leave_items_out(tmp_path):
    files = [answers(tmp_path, name) for name in ("one", "two")]
    sheet = export_pair_sheet(files, tmp_path / "out", seed=0, raters=3, overlap=2, items_per_rater=5)
    assert (sheet.items, sheet.left_out, set(sheet.loads.values())) == (7, 13, {4, 5})
    assert sheet.lines()[1] == "13 items are left out, as the raters have no room for them"
    single = export_rating_sheet(files[0], tmp_path / "single", seed=3, items_per_rater=4)
    shown = [row["prompt"] for row in table(single.files[0])]
    assert len(shown) == 4 and single.left_out == 16 and set(shown) != {f"prompt {n}" for n in range(4)}


def test_a_single_sheet_has_one_answer_an_item(tmp_path):
    sheet = export_rating_sheet(answers(tmp_path, "one"), tmp_path / "out", seed=0, raters=2, overlap=2)
    rows = table(sheet.files[0])
    assert list(rows[0]) == ["sheet", "rater", "item", "prompt", "answer", "rating"] and len(rows) == 20
    assert all(row["answer"] == f"ONE {row['prompt'].split()[1]}" for row in rows)
    assert read_key(str(sheet.key), "rating").models == ("one",)


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", "\n\t =1+1"])
def test_no_cell_is_a_formula(text, tmp_path):
    files = [answers(tmp_path, name, [0], lambda *_: text) for name in ("one", "two")]
    (row,) = table(export_pair_sheet(files, tmp_path / "out", seed=0).files[0])
    assert row["answer_a"] == "'" + text.strip()


def test_texts_of_any_kind_come_back_from_the_table_and_the_key(tmp_path):
    text = 'a "quoted", text;\r\nof ü two\u2028lines \U0001f600'
    files = [answers(tmp_path, name, [0], lambda *_: text) for name in ("one", "two")]
    sheet = export_pair_sheet(files, tmp_path / "out", seed=0)
    assert table(sheet.files[0])[0]["answer_a"] == text
    assert read_key(str(sheet.key), "pair").items["item-1"].answers[0] == (("assistant", text),)


def test_several_turns_are_told_apart_in_a_cell(tmp_path):
    path = tmp_path / "one.jsonl"
    chat = [{"role": "system", "content": "Be terse."}, {"role": "user", "content": "Hi."}]
    path.write_text(json.dumps({"prompt": chat, "completion": "Yes?"}))
    (row,) = table(export_rating_sheet(str(path), tmp_path / "out", seed=0).files[0])
    assert row["prompt"] == "system: Be terse.\n\nuser: Hi."


def test_a_key_is_never_overwritten(tmp_path):
    files = [answers(tmp_path, name) for name in ("one", "two")]
    sheet = export_pair_sheet(files, tmp_path / "out", seed=0)
    before = {path: path.read_bytes() for path in (sheet.key, *sheet.files)}
    for again in (
        lambda: export_pair_sheet(files, tmp_path / "out", seed=1),
        lambda: export_rating_sheet(files[0], tmp_path / "out", seed=1),
    ):
        with pytest.raises(DataError, match=r"out: holds the key of a sheet already"):
            again()
    assert {path: path.read_bytes() for path in before} == before
    assert {path.name for path in (tmp_path / "out").iterdir()} == {path.name for path in before}


def test_what_cannot_be_a_sheet_is_refused(tmp_path):
    files = [answers(tmp_path, name, range(3)) for name in ("one", "two")]
    with pytest.raises(ConfigError, match="files: expected the answers of two models or more, got 1"):
        export_pair_sheet(files[:1], tmp_path / "out", seed=0)
    with pytest.raises(ConfigError, match="raters: 1 of 4 would get no item"):
        export_pair_sheet(files, tmp_path / "out", seed=0, raters=4)
    assert not (tmp_path / "out").exists()


def test_a_key_that_was_changed_is_refused(tmp_path):
    sheet = export_pair_sheet([answers(tmp_path, name) for name in ("one", "two")], tmp_path / "out", seed=0)
    with pytest.raises(DataError, match=r"key\.json: expected the key of a rating sheet, got that of a pair"):
        read_key(str(sheet.key), "rating")
    sheet.key.write_text(sheet.key.read_text().replace('"ONE 3"', '"ONE 4"'))
    with pytest.raises(DataError, match=rf"key\.json: the key of sheet {sheet.sheet} was changed"):
        read_key(str(sheet.key), "pair")
    for text in ("{", "[]", "{}", '{"kind": "pair"}'):
        sheet.key.write_text(text)
        with pytest.raises(DataError, match=r"key\.json: expected the key of a sheet"):
            read_key(str(sheet.key), "pair")
    with pytest.raises(DataError, match=r"none\.json: cannot be read"):
        read_key(str(tmp_path / "none.json"), "pair")


def test_a_spreadsheet_takes_no_name_of_a_sheet_for_a_number():
    item = Item(prompt=(("user", "p"),), models=("m",), answers=((("assistant", "a"),),))
    keys = [
        Key(kind="rating", seed=seed, models=("m",), items={"item-1": item}, raters={"1": ("item-1",)})
        for seed in range(50)
    ]
    assert len({key.sheet for key in keys}) == 50 and all(key.sheet[0] == "s" for key in keys)


@pytest.mark.skipif(not REAL.is_dir(), reason="needs the real files")
def test_published_answers_become_a_sheet_and_are_read_again(tmp_path):
    with gzip.open(REAL / "annotations_gpt4_zephyr-7b-beta.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line in file]
    files = []
    for side in (1, 2):
        path = tmp_path / f"{side}.jsonl"
        names = {f"output_{side}": "output", f"generator_{side}": "generator", "instruction": "instruction"}
        path.write_text("".join(json.dumps({n: row[o] for o, n in names.items()}) + "\n" for row in rows))
        files.append(str(path))
    sheet = export_pair_sheet(files, tmp_path / "out", seed=0, raters=3, overlap=2)
    key = read_key(str(sheet.key), "pair")
    assert sheet.items + len(sheet.doubled[key.models[0]]) == len(rows) == 805
    filled = []
    for path in sheet.files[::2]:
        given = table(path)
        assert all(len(row) == 7 and None not in row.values() for row in given)
        filled.append(str(tmp_path / path.name))
        with Path(filled[-1]).open("w", newline="") as file:
            writer = csv.DictWriter(file, list(given[0]))
            writer.writeheader()
            writer.writerows(row | {"choice": "A"} for row in given)
    assert len(read_rated(key, filled)) == 2 * sheet.items
