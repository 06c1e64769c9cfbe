"""Messages that lie one by one become whole trees."""

import json
import random

import pytest

from jaxalign.data import DataConfig, load_dataset, read_records
from jaxalign.data.files import rows_of
from jaxalign.errors import DataError


def message(name, parent, tree, role, text, rank=None):
    return {
        "message_id": name, "parent_id": parent, "user_id": "u", "text": text, "role": role, "lang": "en",
        "rank": rank, "deleted": False, "message_tree_id": tree, "tree_state": "ready_for_export",
    }  # fmt: skip


def tree(number):
    t = f"t{number}"
    return [
        message(t, None, t, "prompter", f"question {number}"),
        message(f"{t}a", t, t, "assistant", "worse", rank=1),
        message(f"{t}b", t, t, "assistant", "better", rank=0),
        message(f"{t}c", f"{t}b", t, "prompter", "more?"),
        message(f"{t}d", f"{t}c", t, "assistant", "that is all", rank=0),
    ]


def test_flat_messages_give_what_whole_trees_give(write):
    flat = [row for number in range(3) for row in tree(number)]
    path = write(flat)
    rows = [row for _, row in rows_of(path)]
    assert [row["message_tree_id"] for row in rows] == ["t0", "t1", "t2"]
    assert [reply["text"] for reply in rows[0]["prompt"]["replies"]] == ["worse", "better"]
    whole = write(rows, "trees.jsonl")
    for kind in ("demonstration", "comparison"):
        found, counts = read_records(path, kind=kind)
        same, _ = read_records(whole, kind=kind)
        assert counts.read == counts.used == 3
        for one, other in zip(found, same, strict=True):
            first, second = ({k: v for k, v in vars(r).items() if k != "source"} for r in (one, other))
            assert first == second
    [record, *_] = read_records(path, kind="comparison")[0]
    assert (record.chosen, record.rejected) == ("better", "worse")
    assert record.source == f"{path}:1"
    chat = read_records(path, kind="demonstration")[0][1]
    assert [turn.content for turn in chat.prompt] == ["question 1", "better", "more?", "that is all"]
    assert chat.source == f"{path}:6"


def test_the_order_within_a_tree_does_not_matter_to_who_answers_whom(write):
    rows = tree(0)
    random.Random(1).shuffle(rows)
    [record] = read_records(write(rows), kind="comparison")[0]
    assert (record.chosen, record.rejected) == ("better", "worse")


WRONG = [
    (
        lambda rows: [*rows[:2], *tree(1), *rows[2:]],
        "the messages of the tree t0 are not together; sort the file",
    ),
    (lambda rows: [rows[0], *rows[3:]], "the message t0c answers t0b, which is not among those of its tree"),
    (
        lambda rows: [*rows, {**rows[0], "message_id": "x"}],
        "expected one first message in a tree, .* 2 first ones",
    ),
    (lambda rows: [*rows, {"text": "lost"}], "expected the field 'message_id' of a message of a tree"),
]


@pytest.mark.parametrize(("broken", "message"), WRONG)
def test_a_broken_tree_is_named_or_skipped(write, plain_bytes, broken, message):
    path = write([*tree(5), *broken(tree(0))])
    with pytest.raises(DataError, match=rf"rows.jsonl:\d+: {message}"):
        read_records(path)
    config = DataConfig(train=(path,), validation_fraction=0.0, template="plain", on_bad_row="skip")
    data = load_dataset(config, "demonstration", plain_bytes, seed=0)
    assert data.counts.filtered["malformed line"] >= 1
    assert "question 5" in json.dumps([e.prompt_text for e in data.train])
