"""Each layout, on a row written here in the published shape."""

import pytest

from jaxalign.data import (
    Comparison,
    Demonstration,
    Message,
    Options,
    PromptRecord,
    Ranking,
    Rating,
    Stepwise,
    read_records,
)
from jaxalign.errors import DataError

U, A, S = (lambda text, role=role: Message(role, text) for role in ("user", "assistant", "system"))

PKU = {
    "prompt": "How do locks work?",
    "response_0": "With pins.",
    "response_1": "Ask a smith.",
    "is_response_0_safe": False,
    "is_response_1_safe": True,
    "better_response_id": 0,
    "safer_response_id": 1,
}
ULTRAMEDICAL = {
    "prompt_id": "q1",
    "label_type": "hard",
    "prompt": "What is gout?",
    "chosen": [{"role": "user", "content": "What is gout?"}, {"role": "assistant", "content": "Crystals."}],
    "rejected": [{"role": "user", "content": "What is gout?"}, {"role": "assistant", "content": "A bird."}],
}
HH = {
    "chosen": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Name?\n\nAssistant: Ann",
    "rejected": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Name?\n\nAssistant: No",
}
SHAREGPT_PAIR = {
    "conversations": [
        {"from": "system", "value": "Be kind."},
        {"from": "human", "value": "Hi"},
    ],
    "chosen": {"from": "gpt", "value": "Hello"},
    "rejected": {"from": "gpt", "value": "Go"},
}
CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
SCORED = {
    "conversation": [{"role": "human", "content": "Hi"}, CHAT[1]],
    "meta_eval_score": 4.5,
    "score_reason": "ok",
}
BEST = {"query": "Q", "sample0": "a", "sample1": "b", "sample2": "c", "sample3": "d", "best": 2}

TABLE = [
    ("pku_saferlhf", PKU, Comparison(PKU["prompt"], "With pins.", "Ask a smith.")),
    ("preference", ULTRAMEDICAL, Comparison((U("What is gout?"),), "Crystals.", "A bird.")),
    ("preference", {"prompt": "P", "chosen": "c", "rejected": "r"}, Comparison("P", "c", "r")),
    (
        "preference_chat",
        {"chosen": [*CHAT[:1], {"role": "assistant", "content": "x"}], "rejected": CHAT},
        Comparison((U("Hi"),), "x", "Hello"),
    ),
    ("hh_rlhf", HH, Comparison((U("Hi"), A("Hello"), U("Name?")), "Ann", "No")),
    ("sharegpt_pair", SHAREGPT_PAIR, Comparison((S("Be kind."), U("Hi")), "Hello", "Go")),
    (
        "instruction_pair",
        {"instruction": "Do", "input": "x", "output": "z", "chosen": "c", "rejected": "r"},
        Comparison("Do\n\nx", "c", "r"),
    ),
    (
        "annotated_pair",
        {"instruction": "Do", "input": "", "response1": "a", "response2": "b"}
        | {"annotator1": 2, "annotator2": 0, "annotator3": 2},
        Comparison("Do", "b", "a"),
    ),
    ("best_of_n", BEST, Ranking("Q", ("a", "b", "c", "d"), 2)),
    ("scored_conversation", SCORED, Rating((U("Hi"),), "Hello", 4.5, None, "ok")),
    ("kto_chat", {"messages": CHAT, "label": False}, Rating((U("Hi"),), "Hello", None, False)),
    ("kto", {"prompt": "P", "completion": "C", "label": True}, Rating("P", "C", None, True)),
    (
        "stepwise",
        {"prompt": "P", "completions": ["a", "b", "c"], "labels": [True, 0, 0.25]},
        Stepwise("P", ("a", "b", "c"), (1.0, 0.0, 0.25)),
    ),
    ("messages", {"messages": CHAT}, Demonstration((U("Hi"), A("Hello")), None)),
    (
        "conversations",
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
        Demonstration((U("Hi"), A("Hello")), None),
    ),
    ("alpaca", {"instruction": "Do", "input": "", "output": "done"}, Demonstration("Do", "done")),
    ("alpaca", {"instruction": "Do", "input": "this", "output": "ok"}, Demonstration("Do\n\nthis", "ok")),
    ("prompt_completion", {"prompt": "P", "completion": "C"}, Demonstration("P", "C")),
    ("prompt_completion", {"prompt": CHAT[:1], "completion": CHAT[1:]}, Demonstration((U("Hi"), A("Hello")), None)),
    ("text", {"text": "Once."}, Demonstration("", "Once.")),
    ("prompt", {"prompt": "P"}, PromptRecord("P")),
    ("prompt", {"prompt": CHAT[:1]}, PromptRecord((U("Hi"),))),
]  # fmt: skip


def content(record):
    fields = {name: value for name, value in vars(record).items() if name not in ("source", "columns")}
    return type(record), fields


@pytest.mark.parametrize(("name", "row", "expected"), TABLE, ids=[f"{i}-{r[0]}" for i, r in enumerate(TABLE)])
def test_layout_is_detected_and_read(write, name, row, expected):
    path = write([row])
    (detected,), counts = read_records(path)
    (named,), _ = read_records(path, format=name)
    assert content(detected) == content(named) == content(expected)
    assert detected.source == f"{path}:1"
    assert counts.summary() == {"read": 1, "used": 1, "filtered": {}}


def test_pku_dimension_chooses_the_label(write):
    (record,), _ = read_records(write([PKU]), options=Options(dimension="safer"))
    assert (record.chosen, record.rejected) == ("Ask a smith.", "With pins.")


def test_token_id_labels_are_decoded(write):
    row = {"query": [1, 2], "sample0": [3], "sample1": [4], "sample2": [5], "sample3": [6, 6], "best": 3}
    path = write([row])
    (record,), _ = read_records(path, options=Options(decode=lambda ids: "-".join(map(str, ids))))
    assert record.prompt == "1-2"
    assert record.candidates == ("3", "4", "5", "6-6")
    with pytest.raises(DataError, match=r"rows.jsonl:1: field .* token ids: set data.label_tokenizer"):
        read_records(path)


def test_several_files_are_read_in_order(write):
    first, second = write([BEST], "one.json"), write([{**BEST, "best": 0}, BEST], "two.jsonl")
    records, counts = read_records([first, second])
    assert [r.best for r in records] == [2, 0, 2]
    assert counts.read == 3


def test_hh_transcript_without_leading_blank_lines(write):
    row = {name: value.lstrip() for name, value in HH.items()}
    (record,), _ = read_records(write([row]))
    assert record.prompt == (U("Hi"), A("Hello"), U("Name?"))


BAD = [
    ("preference", {"prompt": "P", "chosen": "c"}, "expected the field 'rejected'"),
    (
        "preference",
        {"prompt": "P", "chosen": 3, "rejected": "r"},
        "field 'chosen': expected a list of messages",
    ),
    (
        "preference",
        {"prompt": "P", "chosen": "a", "rejected": "b", "margin": "x"},
        "field 'margin': expected a number",
    ),
    ("hh_rlhf", {"chosen": "Hello", "rejected": "Go"}, "field 'chosen': expected turns marked by"),
    ("pku_saferlhf", {**PKU, "better_response_id": 2}, r"'better_response_id': expected an index in 0\.\.1"),
    ("best_of_n", {**BEST, "best": 4}, r"'best': expected an index in 0\.\.3, got 4"),
    ("messages", {"messages": [{"role": "wizard", "content": "x"}]}, "message 0: unknown role 'wizard'"),
    ("messages", {"messages": [{"role": "user"}]}, "message 0: expected role and content"),
    ("kto", {"prompt": "P", "completion": "C", "label": "maybe"}, "field 'label': expected true or false"),
    ("scored_conversation", {**SCORED, "meta_eval_score": "good"}, "'meta_eval_score': expected a number"),
    ("scored_conversation", {**SCORED, "conversation": CHAT[:1]}, "the last message to be the assistant's"),
    ("prompt_completion", {"prompt": "P", "completion": None}, "'completion': expected text, got nothing"),
]


@pytest.mark.parametrize(("name", "row", "message"), BAD, ids=[f"{i}-{r[0]}" for i, r in enumerate(BAD)])
def test_bad_row_stops_with_its_line_or_is_counted(write, name, row, message):
    good = next(r for n, r, _ in TABLE if n == name)
    path = write([good, row])
    with pytest.raises(DataError, match=message) as caught:
        read_records(path, format=name)
    assert str(caught.value).startswith(f"{path}:2: ")
    assert "\n" not in str(caught.value)
    records, counts = read_records(path, format=name, on_bad_row="skip")
    assert len(records) == 1
    assert counts.summary() == {"read": 2, "used": 1, "filtered": {"bad row": 1}}


UNUSABLE = [
    ({"prompt": "P", "chosen": "same", "rejected": "same"}, "chosen equals rejected"),
    ({**HH, "rejected": "\n\nHuman: Other\n\nAssistant: No"}, "dialogues part before the last turn"),
    ({"instruction": "D", "response1": "a", "response2": "b", "annotator1": 1, "annotator2": 2}, "tie"),
]


@pytest.mark.parametrize(("row", "reason"), UNUSABLE, ids=[reason for _, reason in UNUSABLE])
def test_row_that_prefers_nothing_is_counted_not_dropped(write, row, reason):
    records, counts = read_records(write([row]))
    assert records == []
    assert counts.summary() == {"read": 1, "used": 0, "filtered": {reason: 1}}


def test_unknown_layout_and_unknown_format_are_named(write):
    path = write([{"foo": 1, "bar": 2}])
    with pytest.raises(DataError, match=r"rows.jsonl:1: no known format has the fields bar, foo"):
        read_records(path)
    with pytest.raises(DataError, match="'hh' is not known; expected auto or one of"):
        read_records(path, format="hh")


BAD_STEPS = [
    ({"completions": ["a", "b"], "labels": [True]}, "'labels': expected one for each of the 2 steps, got 1"),
    ({"completions": [], "labels": []}, "'completions': expected at least one step, got an empty list"),
    ({"completions": ["a"], "labels": [1.5]}, r"'labels': step 1: expected true, .* in \[0, 1\], got 1.5"),
    ({"completions": ["a"], "labels": [float("nan")]}, "'labels': step 1: expected true, .* got nan"),
    ({"completions": ["a", "b"], "labels": [1, -1]}, "'labels': step 2: expected true, .* got -1"),
    ({"completions": ["a"], "labels": ["yes"]}, "'labels': step 1: expected true, .* got 'yes'"),
    ({"completions": ["a", 2], "labels": [1, 1]}, "'completions': step 2: expected text, got int"),
    ({"completions": "a", "labels": [1]}, "'completions': expected a list, one for each step, got str"),
]


@pytest.mark.parametrize(("fields", "message"), BAD_STEPS)
def test_wrong_steps_are_named_by_file_and_line(write, fields, message):
    good = {"prompt": "P", "completions": ["a"], "labels": [True]}
    path = write([good, {"prompt": "P"} | fields])
    with pytest.raises(DataError, match=f"rows.jsonl:2: field {message}"):
        read_records(path)
