"""What is asked: prompts in text, turns or JSON of turns, and answers that repeat them."""

import json

import pytest

from jaxalign.data import chat_format, make_example, read_records
from jaxalign.data.examples import Filtered, Limits
from jaxalign.data.readers import Reading
from jaxalign.data.records import Message
from jaxalign.errors import DataError
from tests.data.layout_parts import FUNCTION, HI, A, S, U


def said(role, text, **more):
    return {"role": role, "content": text} | more


ASK, ASKED = said("user", "q"), U("q")
KIND = said("system", "Be kind.")
GOOD, BAD = said("assistant", "a"), said("assistant", "b")


def record_of(write, row, **settings):
    ((record,), _) = read_records(write([row]), reading=Reading(**settings))
    return record


def as_json(row):
    return {name: json.dumps(value) if isinstance(value, list) else value for name, value in row.items()}


JSON_ROWS = [
    {"prompt": [KIND, ASK], "chosen": [GOOD], "rejected": [BAD]},
    {"prompt": [ASK], "chosen": "a", "rejected": "b"},
    {"question": [KIND, ASK], "chosen": [ASK, GOOD], "rejected": [ASK, BAD]},
    {"prompt": [KIND, ASK]},
    {"prompt": [ASK], "completion": [GOOD]},
    {"prompt": "q", "completion": [GOOD]},
    {"prompt": "q", "completion": [GOOD], "label": True},
    {"prompt": [ASK], "completion": "a", "label": False},
    {"instruction": [ASK], "output": "a"},
    {"prompt": [{"from": "human", "value": "q"}], "completion": [{"from": "gpt", "value": "a"}]},
]


@pytest.mark.parametrize("row", JSON_ROWS, ids=range(len(JSON_ROWS)))
def test_turns_as_json_text_are_read_as_turns(write, row):
    plain, text = (record_of(write, given) for given in (row, as_json(row)))
    assert text == plain
    assert "[{" not in str(text)


def test_prompt_that_is_other_json_stays_text(write):
    for text in ('[{"a": 1}]', '[{"role": "king", "content": "x"}]', '[{"role": "user"}]', "[1, 2]", "[{"):
        assert record_of(write, {"prompt": text, "completion": "C"}).prompt == text


def test_turns_as_python_prints_them_are_refused(write):
    printed = str([ASK, GOOD])
    for row in ({"prompt": printed}, {"prompt": "q", "completion": printed}):
        with pytest.raises(DataError, match=r"field '\w+': expected turns as JSON, got a Python literal"):
            record_of(write, row)
    with pytest.raises(DataError, match="field 'chosen': expected turns as JSON"):
        record_of(write, {"prompt": "q", "chosen": printed, "rejected": printed})


def test_answers_of_which_one_is_turns_are_refused(write):
    with pytest.raises(DataError, match="field 'chosen': expected a list of messages, got str"):
        record_of(write, {"prompt": "q", "chosen": "a", "rejected": json.dumps([BAD])})


# prompt, turns before the answer, what is asked
REPEATED = [
    ([ASK], [KIND, ASK], (S("Be kind."), ASKED)),
    ([KIND, ASK], [ASK], (S("Be kind."), ASKED)),
    ([KIND], [KIND, ASK], (S("Be kind."), ASKED)),
    ([said("user", "q ")], [ASK], (ASKED,)),
    ([KIND, said("user", " q\n")], [ASK], (S("Be kind."), ASKED)),
    ([ASK], [ASK, *HI[1:], said("user", "more")], (ASKED, A("Hello"), U("more"))),
    ([*HI, ASK], [ASK], (U("Hi"), A("Hello"), ASKED)),
    ([KIND, ASK], [KIND], (S("Be kind."), ASKED)),
    ([ASK], [KIND], (S("Be kind."), ASKED)),
    ("q", [KIND], (S("Be kind."), ASKED)),
    ("q", [KIND, ASK], (S("Be kind."), ASKED)),
    ("User: q\nAssistant:", [ASK], (ASKED,)),
    ("<|im_start|>user\nq<|im_end|>", [ASK], (ASKED,)),
]
OTHER = [
    ([ASK], [said("user", "other")]),
    ([KIND, ASK], [KIND, said("user", "other")]),
    ([ASK, *HI[1:], said("user", "more")], [ASK]),
    ([said("system", "Be brief.")], [KIND, ASK]),
    ("Say it: q, please", [ASK]),
]
IDS = [str(i) for i in range(len(REPEATED))]


@pytest.mark.parametrize(("prompt", "before", "asks"), REPEATED, ids=IDS)
def test_prompt_that_dialogues_repeat_stands_once(write, prompt, before, asks):
    record = record_of(write, {"prompt": prompt, "chosen": [*before, GOOD], "rejected": [*before, BAD]})
    assert (record.prompt, record.chosen, record.rejected) == (asks, "a", "b")


@pytest.mark.parametrize(("prompt", "before", "asks"), REPEATED[:5], ids=IDS[:5])
def test_prompt_that_an_answer_repeats_stands_once(write, prompt, before, asks):
    record = record_of(write, {"prompt": prompt, "completion": [*before, GOOD]})
    assert record.prompt == (*asks, A("a"))
    record = record_of(write, {"prompt": prompt, "completion": [*before, GOOD], "label": True})
    assert (record.prompt, record.completion) == (asks, "a")


@pytest.mark.parametrize(("prompt", "before"), OTHER, ids=range(len(OTHER)))
def test_prompt_and_dialogues_that_ask_different_things_are_a_bad_row(write, prompt, before):
    message = (
        "rows.jsonl:1: field 'prompt': expected the prompt that the turns of '.*' repeat, got a different one"
    )
    for row in (
        {"prompt": prompt, "chosen": [*before, GOOD], "rejected": [*before, BAD]},
        {"prompt": prompt, "completion": [*before, GOOD]},
    ):
        with pytest.raises(DataError, match=message):
            record_of(write, row)


def test_prompt_of_a_call_and_of_sides_stands_once(write):
    sides = {"chosen": [ASK, GOOD], "rejected": [ASK, BAD]}
    assert record_of(write, {"conversations": [ASK]} | sides).prompt == (ASKED,)
    sides = {"preferred_output": [ASK, GOOD], "non_preferred_output": [ASK, BAD]}
    assert record_of(write, {"input": {"messages": [KIND, ASK]}} | sides).prompt == (S("Be kind."), ASKED)


def test_answer_of_several_turns_goes_on_after_the_prompt(write):
    more = [GOOD, said("user", "more"), BAD]
    record = record_of(write, {"prompt": [ASK], "completion": more})
    assert record.prompt == (ASKED, A("a"), U("more"), A("b"))


def test_weight_of_an_answer_is_kept_for_preferences_and_labels(write):
    light = said("assistant", "a", weight=0.5)
    kept = (Message("assistant", "a", 0.5),)
    assert record_of(write, {"messages": [ASK, light], "label": True}).completion == kept
    assert record_of(write, {"prompt": [ASK], "completion": [light], "label": True}).completion == kept
    pair = record_of(write, {"chosen": [ASK, light], "rejected": [ASK, said("assistant", "b", weight=0)]})
    assert (pair.chosen, pair.rejected) == (kept, (Message("assistant", "b", 0.0),))


def test_weights_of_earlier_answers_do_not_part_dialogues(write):
    first, again = [said("assistant", "x", weight=weight) for weight in (0, 1)]
    record = record_of(write, {"chosen": [ASK, first, ASK, GOOD], "rejected": [ASK, again, ASK, BAD]})
    assert (len(record.prompt), record.chosen, record.rejected) == (3, "a", "b")


MARKED = [
    ({"conversations": [said("user", "<image>\nWhat?"), GOOD]}, "<image>"),
    ({"messages": [said("user", "What?\n<image>"), GOOD]}, "<image>"),
    ({"messages": [said("user", "<video>"), GOOD]}, "<video>"),
    ({"messages": [ASK, GOOD, said("user", " <image> <image>\nAnd?"), GOOD]}, "<image>"),
    ({"prompt": "<audio>\nWhat is said?", "completion": "C"}, "<audio>"),
    ({"prompt": [said("user", "<image>\nWhat?")], "chosen": [GOOD], "rejected": [BAD]}, "<image>"),
    ({"file_name": "a.jpg", "text": "It is <image> here"}, "<image>"),
    ({"image": None, "prompt": "See <image> there", "completion": "C"}, "<image>"),
]


@pytest.mark.parametrize(("row", "mark"), MARKED, ids=range(len(MARKED)))
def test_mark_of_an_image_is_refused_until_it_is_ignored(write, row, mark):
    path = write([row])
    with pytest.raises(DataError, match=f"would leave unread '{mark}' .a part of the prompt"):
        read_records(path)
    _, counts = read_records(path, reading=Reading(ignore_columns=(mark,)))
    assert (counts.used, counts.unread[mark]) == (1, 1)


PAGES = [
    "Write <image> tags\nin HTML",
    "<p>\n<image></image>\n</p>\nWhat is this?",
    "<images>\nhere",
    "a < b and <video> c",
]


@pytest.mark.parametrize("text", PAGES)
def test_mark_inside_of_text_may_be_text(write, text):
    assert record_of(write, {"prompt": text, "completion": "C"}).prompt == text
    assert record_of(write, {"messages": [ASK, said("assistant", "<image>\nno")]}).prompt[1].content
    assert record_of(write, {"text": "<image>\nOnce."}).text == "<image>\nOnce."


def test_functions_that_no_template_could_write_are_refused(write):
    deep = json.loads("[" * 300 + "]" * 300)
    wrong = [
        ([FUNCTION | {"more": deep}], "nested too deeply"),
        (json.dumps([FUNCTION | {"more": float("nan")}]), "expected a finite number, got nan"),
        ('[{"name": "\\ud800"}]', "not valid text"),
    ]
    for tools, message in wrong:
        with pytest.raises(DataError, match=f"field 'tools': {message}"):
            record_of(write, {"messages": HI, "tools": tools})


UNEVEN = [(0, "label", "no completion token"), (0.5, "label", "weights of turns other than 0 and 1")]


@pytest.mark.parametrize(
    ("weight", "kind", "reason"),
    [*UNEVEN, (0, "demonstration", "no completion token"), (0.5, "demonstration", "")],
)
def test_weight_of_a_labelled_chat_is_never_taken_for_one(write, plain_bytes, weight, kind, reason):
    chat = chat_format(plain_bytes, "plain", "", "\n\nHuman:", "\n\nAssistant:")
    record = record_of(write, {"messages": [ASK, said("assistant", "a", weight=weight)], "label": True})
    if reason:
        with pytest.raises(Filtered, match=f"^{reason}$"):
            make_example(record, kind, chat, Limits(100, 0, "filter"))
    else:
        example = make_example(record, kind, chat, Limits(100, 0, "filter"))
        assert set(example.weights[0]) == {0.0, weight}
