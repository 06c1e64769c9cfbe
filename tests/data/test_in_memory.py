"""Rows given by a Python program are read as the rows of a file are."""

import json

import datasets
import pytest

from jaxalign.data import Comparison, DataConfig, Demonstration, PromptRecord, load_dataset
from jaxalign.errors import ConfigError, DataError

ROWS = [{"prompt": f"q{i} ", "chosen": f"yes {i}", "rejected": f"no {i}", "extra": i} for i in range(40)]


@pytest.fixture
def read(byte_tokenizer):
    """`read(kind="comparison", train_dataset=..., eval_dataset=..., **keys of the section data)`."""

    def found(kind="comparison", *, train_dataset=None, eval_dataset=None, **keys):
        config = DataConfig(**({"template": "plain"} | keys))
        return load_dataset(
            config, kind, byte_tokenizer, seed=0, train_dataset=train_dataset, eval_dataset=eval_dataset
        )

    return found


def texts(examples):
    return [(example.rows, example.prompt_tokens) for example in examples]


def test_a_list_a_table_an_iterable_and_a_file_give_the_same_examples(read, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    wanted = read(train=str(path))
    table = datasets.Dataset.from_list(ROWS)
    assert len(wanted.train) + len(wanted.validation) == 40
    for given in (ROWS, table, table.to_iterable_dataset(), table.with_format("numpy")):
        found = read(train_dataset=given)
        assert texts(found.train) == texts(wanted.train)
        assert texts(found.validation) == texts(wanted.validation)
        assert found.counts.summary() == wanted.counts.summary()
    assert found.train[0].source.startswith("train_dataset:row ")


def test_a_table_is_read_in_its_own_order_and_choice(read, byte_tokenizer):
    table = datasets.Dataset.from_list(ROWS).select([7, 3, 5])
    found = read(train_dataset=table, validation_fraction=0.0)
    chosen = [byte_tokenizer.decode(example.rows[0], skip_special_tokens=True) for example in found.train]
    assert chosen == ["q7 yes 7", "q3 yes 3", "q5 yes 5"]


def test_records_are_taken_as_they_are(read, byte_tokenizer):
    records = [Comparison(row["prompt"], row["chosen"], row["rejected"]) for row in ROWS]
    assert texts(read(train_dataset=records).train) == texts(read(train_dataset=ROWS).train)
    found = read("demonstration", train_dataset=[Demonstration("a ", "b")], validation_fraction=0.0)
    assert byte_tokenizer.decode(found.train[0].rows[0]) == "a b</s>"
    found = read(
        "prompt", train_dataset=[PromptRecord("a ", columns={"answer": "7"})], validation_fraction=0.0
    )
    assert found.train[0].columns["answer"] == "7"


def test_held_out_rows_are_those_given(read):
    found = read(train_dataset=ROWS, eval_dataset=ROWS[:5])
    assert len(found.validation) == 5 and len(found.train) == 35
    assert found.counts.filtered["duplicate"] == 5


def test_a_stream_of_given_rows_and_a_limit_of_them(read):
    stream = read(train_dataset=ROWS, streaming=True, window=8, validation_fraction=0.0, workers=1)
    assert sorted(texts(stream.train)) == sorted(
        texts(read(train_dataset=ROWS[:8], validation_fraction=0.0).train)
    )
    assert read(train_dataset=ROWS, limit=10).counts.used == 10


def test_other_rows_under_the_same_name_are_not_taken_from_the_cache(read):
    changed = [row | {"chosen": "other"} for row in ROWS]
    first, second = read(train_dataset=ROWS), read(train_dataset=changed)
    assert texts(first.train) != texts(second.train)
    assert first.files["train_dataset"] != second.files["train_dataset"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("rows.jsonl", r"train_dataset: expected .*, got str; files go to data.train and data.validation"),
        ({"train": ROWS, "test": ROWS}, r"a mapping of train, test: give one of them, as .*=data\['train'\]"),
        (iter(ROWS), "list_iterator, which can be read only once"),
        (datasets.Dataset.from_list(ROWS).to_pandas(), r"train_dataset=frame.to_dict\('records'\)"),
        (7, "train_dataset: expected .*, got int"),
    ],
)  # fmt: skip
def test_what_holds_no_rows_is_refused_with_what_would(read, rows, message):
    with pytest.raises(ConfigError, match=message):
        read(train_dataset=rows)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "train_dataset: no rows"),
        ([*ROWS[:2], 3], "train_dataset:row 3: expected an object with named fields, got int"),
        ([*ROWS[:2], {"prompt": "q"}], "train_dataset:row 3: expected the field 'chosen'"),
        ([{"prompt": b"q"}], "train_dataset:row 1: column 'prompt': expected text"),
        (
            [Comparison("a", "b", "c"), ROWS[0]],
            "train_dataset:row 2: expected a record like the first row",
        ),
    ],
)
def test_a_bad_row_is_named_by_its_number(read, rows, message):
    with pytest.raises(DataError, match=message):
        read(train_dataset=rows)


def test_rows_and_files_together_are_refused(read):
    with pytest.raises(ConfigError, match=r"train_dataset and data\.train: choose one"):
        read(train_dataset=ROWS, train="rows.jsonl")


def test_one_file_may_be_named_without_a_list(tmp_path):
    assert DataConfig(train="a.jsonl", types=["x"]) == DataConfig(train=("a.jsonl",), types=("x",))
    assert DataConfig(train=tmp_path / "a.jsonl").train == (str(tmp_path / "a.jsonl"),)
