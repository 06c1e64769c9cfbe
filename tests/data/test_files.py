"""Containers of rows, and files that are wrong."""

import datetime
import decimal
import gzip
import json
import pickle

import pytest

from jaxalign.data import files, read_records
from jaxalign.data.files import chunks_of, count_rows, rows_of
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
    with pytest.raises(DataError, match=r"none.jsonl: no such file"):
        read_records(str(tmp_path / "none.jsonl"))
    with pytest.raises(DataError, match=r"^data/none.jsonl: no such file$"):
        read_records("data/none.jsonl")


def test_malformed_line_can_be_skipped_and_is_counted(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt"\n{"prompt": "b"}\n')
    records, counts = read_records(str(path), on_bad_row="skip")
    assert [r.source for r in records] == [f"{path}:1", f"{path}:3"]
    assert counts.summary() == {"read": 3, "used": 2, "filtered": {"malformed line": 1}}


GOOD = '{"prompt": "a", "completion": "b"}'
MALFORMED = {
    "no JSON": (b'{"prompt"', "not valid JSON"),
    "no UTF-8": (b'{"prompt": "\xe9"}', "not UTF-8 text"),
    "an unpaired surrogate": (b'{"prompt": "x \\ud83d y"}', r"\\ud83d is an unpaired surrogate"),
    "an unpaired surrogate, second": (b'{"prompt": ["\\uDE00"]}', r"\\ude00 is an unpaired surrogate"),
    "a long integer": (b'{"prompt": ' + b"9" * 5000 + b"}", "4300 digits"),
    "deep nesting": (b'{"prompt": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "nested too deeply"),
    "no object": (b'"text"', "expected an object with named fields, got str"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_every_kind_of_malformed_line_is_named_or_skipped(tmp_path, name):
    line, message = MALFORMED[name]
    path = tmp_path / "a.jsonl"
    path.write_bytes(GOOD.encode() + b"\n" + line + b"\n" + GOOD.encode())
    with pytest.raises(DataError, match=message) as caught:
        read_records(str(path))
    assert str(caught.value).startswith(f"{path}:2: ")
    assert "\n" not in str(caught.value)
    records, counts = read_records(str(path), on_bad_row="skip")
    assert [r.source for r in records] == [f"{path}:1", f"{path}:3"]
    assert counts.filtered == {"malformed line": 1}


def test_a_whole_character_by_two_escapes_is_text(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "\\ud83d\\ude00", "completion": "b"}\n')
    assert read_records(str(path))[0][0].prompt == "\N{GRINNING FACE}"


def test_a_csv_row_that_is_no_utf8_is_skipped_alone(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"prompt,completion\na,b\n\xe9,c\nd,e\n")
    with pytest.raises(DataError, match=r"a.csv:3: not UTF-8 text"):
        read_records(str(path))
    assert [r.prompt for r in read_records(str(path), on_bad_row="skip")[0]] == ["a", "d"]


def test_a_small_file_that_expands_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LEAST_BYTES", 4 * 2**20)
    path = tmp_path / "bomb.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=9) as file:
        for _ in range(8):
            file.write(b" " * 2**20)
    with pytest.raises(
        DataError, match=r"bomb.jsonl.gz: it holds more than 4,194,304 bytes .* data.max_bytes"
    ):
        list(chunks_of(str(path)))
    with pytest.raises(DataError, match="the file is empty"):
        list(chunks_of(str(path), max_bytes=2**24))
    as_gzip(path)
    with pytest.raises(DataError, match="more than 1,000 bytes"):
        list(chunks_of(str(path), max_bytes=1000))
    assert len(list(chunks_of(str(path)))) == 1


def test_a_long_file_comes_in_chunks_that_hold_its_lines_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "CHUNK_BYTES", 64)
    path = tmp_path / "a.jsonl"
    lines = [json.dumps({"prompt": f"{i}" * (i % 40), "completion": "b"}) for i in range(60)]
    lines[7] = ""
    path.write_text("\n".join(lines))
    chunks = list(chunks_of(str(path)))
    assert len(chunks) > 20
    assert count_rows(str(path)) == 59
    found = [pair for chunk in chunks for pair in pickle.loads(pickle.dumps(chunk)).rows()]
    assert [place for place, _ in found] == [f"{path}:{i + 1}" for i in range(60) if i != 7]
    assert [row for _, row in found] == [json.loads(line) for line in lines if line]
    few = list(chunks_of(str(path), most_rows=2))
    assert max(chunk.size for chunk in few) == 2
    assert [pair for chunk in few for pair in chunk.rows()] == found


def test_values_that_json_lacks_become_plain_or_are_refused_by_column(tmp_path):
    import pyarrow
    import pyarrow.parquet

    when = datetime.datetime(2024, 5, 1, 12, 30)
    row = {
        "prompt": "a", "when": when, "day": when.date(), "price": decimal.Decimal("1.50"),
        "count": decimal.Decimal("2"), "turns": [{"at": when}], "took": datetime.timedelta(seconds=90),
    }  # fmt: skip
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "a.parquet")
    [(place, found)] = rows_of(str(tmp_path / "a.parquet"))
    assert place.endswith("a.parquet:row 1")
    assert json.loads(json.dumps(found)) == found
    assert (found["when"], found["day"]) == ("2024-05-01T12:30:00", "2024-05-01")
    assert (found["price"], found["count"], found["took"]) == (1.5, 2, 90.0)
    assert found["turns"] == [{"at": "2024-05-01T12:30:00"}]
    images = [{"prompt": "a", "image": {"bytes": b"x"}}, {"prompt": "b", "image": None}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(images), tmp_path / "b.parquet")
    bad, good = rows_of(str(tmp_path / "b.parquet"))
    assert str(bad[1]).endswith(
        "b.parquet:row 1: column 'image': expected text, numbers, lists or objects, got bytes"
    )
    assert good[1] == {"prompt": "b", "image": None}


def test_a_hub_id_may_name_configuration_revision_and_split(monkeypatch):
    import datasets

    asked = []

    def load(name, configuration, **options):
        asked.append((name, configuration, options))
        if configuration == "none":
            raise ValueError("BuilderConfig 'none' not found. Available: ['main', 'socratic']\nmore")
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load)
    for name in ("a/b", "a/b#test", "a/b:main", "a/b:main@v1.0#test[:10%]"):
        assert [row for _, row in rows_of(name)] == ROWS
    plain = {"revision": None, "streaming": False}
    assert asked == [
        ("a/b", None, {"split": "train"} | plain),
        ("a/b", None, {"split": "test"} | plain),
        ("a/b", "main", {"split": "train"} | plain),
        ("a/b", "main", {"split": "test[:10%]", "revision": "v1.0", "streaming": False}),
    ]
    with pytest.raises(DataError, match=r"^a/b:none: .* Available: \['main', 'socratic'\]$"):
        list(rows_of("a/b:none"))


def test_a_folder_of_data_files_is_read_by_its_splits(tmp_path):
    as_jsonl(tmp_path / "train.jsonl")
    (tmp_path / "test.jsonl").write_text(json.dumps(ROWS[1]) + "\n")
    assert [row for _, row in rows_of(str(tmp_path))] == ROWS
    assert [row for _, row in rows_of(f"{tmp_path}#test")] == ROWS[1:]
    with pytest.raises(DataError, match=r"no split 'dev'; name one as .*#split: train, test$"):
        list(rows_of(f"{tmp_path}#dev"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: .* doesn't contain any data files"):
        list(rows_of(str(tmp_path / "empty")))


CSV = "prompt,completion\nWrite 007,007\nA half?,2.50\nA country,NA\nSay it,null\nWhen?,2024-05-01\n"


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl", "rows.parquet", "rows.json"])
def test_a_folder_gives_the_values_that_its_files_give(tmp_path, name):
    import pyarrow
    import pyarrow.parquet

    (tmp_path / "rows.csv").write_text(CSV)
    rows = [row for _, row in rows_of(str(tmp_path / "rows.csv"))]
    file = tmp_path / "data" / name
    file.parent.mkdir()
    if name == "rows.csv":
        file.write_text(CSV)
    elif name == "rows.parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    else:
        file.write_text(json.dumps(rows) if name == "rows.json" else "\n".join(map(json.dumps, rows)))
    found = list(rows_of(str(file.parent)))
    assert [row for _, row in found] == rows
    assert [row["completion"] for row in rows] == ["007", "2.50", "NA", "null", "2024-05-01"]
    assert found[0][0].startswith(f"{file.parent}:{name}:")


def test_rows_of_a_folder_are_numbered_through_its_files_and_placed_in_each(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "CHUNK_BYTES", 64)
    for name, count in (("train-0.jsonl", 7), ("train-1.jsonl", 4)):
        (tmp_path / name).write_text("".join(f'{{"prompt": "{name} {i}"}}\n\n' for i in range(count)))
    chunks = list(chunks_of(str(tmp_path)))
    assert len(chunks) > 4
    found = [item for chunk in chunks for item in pickle.loads(pickle.dumps(chunk)).numbered_rows()]
    assert [number for number, _, _ in found] == list(range(11))
    assert [place for _, place, _ in found][6:9] == ["train-0.jsonl:13", "train-1.jsonl:1", "train-1.jsonl:3"]
    assert count_rows(str(tmp_path)) == 11


README = '---\nconfigs:\n- config_name: default\n  data_files: "*.csv"\n  sep: ";"\n---\n'
UNREAD = [
    ({"train.jsonl": "", "other.jsonl": ""}, r"other\.jsonl belongs to no split \(train\); name the files one by one"),
    ({"a.jsonl": "", "b.jsonl": "", "c.csv": ""}, r"c\.csv belongs to no split"),
    ({"a.txt": "x"}, r"a\.txt: expected a \.jsonl, \.json, \.csv, \.parquet file"),
    ({"a.csv": "x;y\n", "README.md": README}, "its README sets sep, which is not supported; name its files one by one"),
]  # fmt: skip


@pytest.mark.parametrize(("there", "message"), UNREAD, ids=["split", "kind", "text", "settings"])
def test_what_lies_in_a_folder_and_would_not_be_read_is_named(tmp_path, there, message):
    for name, body in there.items():
        (tmp_path / name).write_text(body or json.dumps(ROWS[0]) + "\n")
    with pytest.raises(DataError, match=message) as caught:
        list(rows_of(str(tmp_path)))
    assert "\n" not in str(caught.value)


QUOTES = [
    (b'prompt,completion\nq1,"unbalanced\nq2,a2\nq3,a3\n', "a.csv:2: .*unexpected end of data, .* to line 4"),
    (b'prompt,completion\nq0,a0\nq1,"unbalanced\nq2,a2\nq3,"a3"\n', r"a\.csv:3: not valid csv .* to line 5"),
    (b'prompt,completion\nq1,"Hello" he said\n', r"a\.csv:2: not valid csv"),
]


@pytest.mark.parametrize(("body", "message"), QUOTES)
def test_a_stray_quote_in_a_csv_is_named_by_the_line_where_its_row_begins(tmp_path, body, message):
    (tmp_path / "a.csv").write_bytes(body)
    with pytest.raises(DataError, match=message):
        list(rows_of(str(tmp_path / "a.csv")))


def test_a_csv_row_behind_a_blank_line_is_named_by_its_own_line(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,completion\na,b\n\nc,d\n")
    assert [place[-2:] for place, _ in rows_of(str(tmp_path / "a.csv"))] == [":2", ":4"]


def test_quotes_inside_of_a_csv_value_are_text(tmp_path):
    (tmp_path / "a.csv").write_text('prompt,completion\nsay "hi",now\n"a ""b"" c\nd",e\n')
    assert [row for _, row in rows_of(str(tmp_path / "a.csv"))] == [
        {"prompt": 'say "hi"', "completion": "now"}, {"prompt": 'a "b" c\nd', "completion": "e"},
    ]  # fmt: skip


def test_two_columns_of_one_name_are_refused(tmp_path):
    import pyarrow
    import pyarrow.parquet

    (tmp_path / "a.csv").write_text("prompt,completion,completion\nq1,first,second\n")
    table = pyarrow.table([["q1"], ["first"], ["second"]], names=["prompt", "completion", "completion"])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    for name in ("a.csv", "a.parquet"):
        with pytest.raises(
            DataError, match=rf"{name}: expected unique column names, got 'completion' twice$"
        ):
            list(rows_of(str(tmp_path / name)))


def test_a_parquet_value_that_python_cannot_hold_is_a_malformed_row(tmp_path):
    import pyarrow
    import pyarrow.parquet

    offsets, body = (pyarrow.py_buffer(b) for b in (b"\0\0\0\0\1\0\0\0\3\0\0\0\4\0\0\0", b"a\xff\xfeb"))
    columns = {
        "prompt": pyarrow.Array.from_buffers(pyarrow.string(), 3, [None, offsets, body]),
        "completion": ["x", "y", "z"],
        "when": pyarrow.array([0, 0, 10**17], pyarrow.timestamp("ms")),
    }
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    good, text, date = rows_of(str(path))
    assert good[1] == {"prompt": "a", "completion": "x", "when": "1970-01-01T00:00:00"}
    assert str(text[1]) == f"{path}:row 2: column 'prompt': not UTF-8 text"
    assert str(date[1]).startswith(f"{path}:row 3: column 'when': not readable (")
    _, counts = read_records(str(path), on_bad_row="skip")
    assert counts.filtered == {"malformed line": 2}


def test_a_path_that_may_not_be_looked_at_is_one_line():
    with pytest.raises(DataError, match=r"^x+\.jsonl: cannot be read \(File name too long\)$"):
        list(rows_of("x" * 5000 + ".jsonl"))


@pytest.mark.parametrize("name", ["folder", "a.json"])
def test_long_rows_come_few_to_a_chunk(tmp_path, monkeypatch, name):
    import datasets

    monkeypatch.setattr(files, "CHUNK_BYTES", 10_000)
    rows = [{"prompt": f"{i}", "completion": "long " * 400} for i in range(40)]
    if name == "folder":
        datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / name))
    else:
        (tmp_path / name).write_text(json.dumps(rows))
    chunks = list(chunks_of(str(tmp_path / name)))
    assert {chunk.size for chunk in chunks} == {4}
    assert [row for chunk in chunks for _, row in chunk.rows()] == rows
