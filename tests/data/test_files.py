"""Containers of rows, and files that are wrong."""

import gzip
import json

import pytest

from jaxalign.data import read_records
from jaxalign.errors import DataError

ROWS = [{"prompt": "one", "completion": "é\u2028 1"}, {"prompt": "two", "completion": "long" * 50_000}]


def as_jsonl(path):
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in ROWS), "utf-8")


def as_bom_and_crlf(path):
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(json.dumps(r) for r in ROWS).encode())


def as_gzip(path):
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(r) + "\n" for r in ROWS)


def as_json(path):
    path.write_text(json.dumps(ROWS, indent=1), "utf-8")


def as_csv(path):
    import csv

    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["prompt", "completion"])
        writer.writeheader()
        writer.writerows(ROWS)


def as_parquet(path):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)


def as_dataset(path):
    import datasets

    datasets.Dataset.from_list(ROWS).save_to_disk(str(path))


KINDS = [
    ("a.jsonl", as_jsonl), ("a.jsonl", as_bom_and_crlf), ("a.jsonl.gz", as_gzip), ("a.json", as_json),
    ("a.json", as_jsonl), ("a.csv", as_csv), ("a.parquet", as_parquet), ("folder", as_dataset),
]  # fmt: skip


@pytest.mark.parametrize(("name", "make"), KINDS, ids=[f"{n}-{m.__name__}" for n, m in KINDS])
def test_every_container_gives_the_same_records(tmp_path, name, make):
    make(tmp_path / name)
    records, _ = read_records(str(tmp_path / name))
    assert [(r.prompt, r.completion) for r in records] == [(r["prompt"], r["completion"]) for r in ROWS]


def test_a_folder_of_splits_gives_train_or_the_named_split(tmp_path):
    import datasets

    splits = {
        name: datasets.Dataset.from_list(rows) for name, rows in (("train", ROWS[:1]), ("test", ROWS[1:]))
    }
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "d"))
    assert [r.prompt for r in read_records(str(tmp_path / "d"))[0]] == ["one"]
    assert [r.prompt for r in read_records(str(tmp_path / "d#test"))[0]] == ["two"]
    with pytest.raises(DataError, match=r"no split 'dev'; name one as .*: train, test"):
        read_records(str(tmp_path / "d#dev"))


def test_csv_labels_may_be_text(tmp_path):
    (tmp_path / "a.csv").write_text("query,sample0,sample1,best\nQ,a,b,1\n")
    (record,), _ = read_records(str(tmp_path / "a.csv"))
    assert record.best == 1


BROKEN = [
    ("empty.jsonl", b"", "the file is empty"),
    ("blank.jsonl", b" \n\n", "the file is empty"),
    ("list.json", b"[]", "expected a list of rows, got an empty list"),
    ("header.csv", b"prompt,completion\n", "a header but no rows"),
    ("bad.json", b'[{"prompt": "a"},\n{"prompt" "b"}]', "bad.json:2: not valid JSON"),
    ("bad.jsonl", b'{"prompt": "a"}\n{"prompt": \n', "bad.jsonl:2: not valid JSON .* at column"),
    ("row.jsonl", b'{"prompt": "a"}\n[1]\n', "row.jsonl:2: expected an object with named fields, got list"),
    ("wide.csv", b"prompt\na,b\n", "wide.csv:2: expected 1 columns, as in the header"),
    ("latin.jsonl", b'{"prompt": "\xe9"}\n', "not UTF-8 text"),
    ("cut.jsonl.gz", gzip.compress(b'{"prompt": "abc"}\n' * 99)[:-9], "cannot be read"),
    ("not.jsonl.gz", b"plain text", "cannot be read"),
    ("not.parquet", b"plain text", "not a readable parquet file"),
    ("a.txt", b"x", "expected a .jsonl, .json, .csv, .parquet file"),
]


@pytest.mark.parametrize(("name", "body", "message"), BROKEN, ids=[name for name, _, _ in BROKEN])
def test_broken_file_gives_one_line_that_names_it(tmp_path, name, body, message):
    path = tmp_path / name
    path.write_bytes(body)
    with pytest.raises(DataError, match=message) as caught:
        read_records(str(path))
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none.jsonl: there is no such file"):
        read_records(str(tmp_path / "none.jsonl"))
    with pytest.raises(DataError, match=r"^data/none.jsonl: there is no such file$"):
        read_records("data/none.jsonl")


def test_malformed_line_can_be_skipped_and_is_counted(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt"\n{"prompt": "b"}\n')
    records, counts = read_records(str(path), on_bad_row="skip")
    assert [r.source for r in records] == [f"{path}:1", f"{path}:3"]
    assert counts.summary() == {"read": 3, "used": 2, "filtered": {"malformed line": 1}}
