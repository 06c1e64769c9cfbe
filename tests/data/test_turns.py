"""Turns in the ways that files write them."""

import json
import math

import pytest

from jaxalign.data.fields import BadRow, Fields
from jaxalign.data.records import Message
from jaxalign.data.turns import (
    ROLES,
    alternate,
    completion_of,
    extra_id_turns,
    glaive_turns,
    messages,
    pairs_of_turns,
    split_answer,
    transcript_turns,
    turns_in,
)
from tests.data.layout_parts import HI, WEATHER, A, S, T, U

CALL = {"role": "assistant", "content": None, "tool_calls": [WEATHER]}


def one(**turn):
    (message,) = messages([{"role": "assistant", "content": "x"} | turn], "messages")
    return message


@pytest.mark.parametrize("role", [*ROLES, "Assistant", "USER"])
def test_every_known_role_is_read(role):
    body = '{"name": "f"}' if ROLES.get(role) == "call" else "x"
    (turn,) = messages([{"from": role, "value": body}], "conversations")
    assert turn.role in ("system", "developer", "user", "assistant", "tool")


def test_call_with_empty_or_null_content_is_kept_as_a_call():
    for content in (None, ""):
        assert messages([CALL | {"content": content}], "messages") == (A("", tool_calls=[WEATHER]),)


def test_arguments_as_json_text_become_objects():
    call = {"function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    assert one(tool_calls=[call]).extra == {"tool_calls": [WEATHER]}
    assert one(function_call=call["function"], content=None) == A("", tool_calls=[WEATHER])


def test_tool_calls_and_fields_of_a_turn_go_to_its_extra():
    turns = [{"role": "tool", "content": "Sun", "tool_call_id": "c", "name": "weather"}]
    assert messages(turns, "messages") == (T("Sun", tool_call_id="c", name="weather"),)
    assert one(reasoning_content="so").extra == {"reasoning_content": "so"}
    assert one(thinking="so").extra == {"thinking": "so"}


@pytest.mark.parametrize(
    ("turn", "weight"),
    [
        ({}, 1.0),
        ({"weight": 0}, 0.0),
        ({"weight": 0.5}, 0.5),
        ({"weight": 2}, 2.0),
        ({"weight": None}, 1.0),
        ({"train": False}, 0.0),
        ({"loss": False}, 0.0),
        ({"loss": True}, 1.0),
        ({"weight": False}, 0.0),
    ],
)
def test_weight_of_a_turn(turn, weight):
    assert one(**turn).weight == weight


@pytest.mark.parametrize("weight", [-1, math.nan, math.inf, "1", 10**400])
def test_weight_that_is_none_is_refused(weight):
    with pytest.raises(BadRow, match="message 0: 'weight': expected a number of 0 or more"):
        one(weight=weight)


def test_empty_keys_as_arrow_fills_them_leave_a_plain_turn():
    empty = {"tool_calls": None, "name": None, "images": [], "weight": None}
    row = Fields({})
    assert messages([HI[1] | empty], "messages", row) == (A("Hello"),)
    assert row.inside == {}


def test_unknown_keys_of_turns_are_told_by_name():
    row = Fields({})
    messages([HI[0] | {"mood": "fine", "other": ""}], "messages", row)
    assert row.inside == {"messages.mood": "fine"}


def test_parts_of_text_are_joined():
    parts = [{"type": "text", "text": "a", "image_url": None}, {"type": "text", "text": "b"}, "c"]
    assert one(content=parts).content == "abc"


BAD = [
    ("turn", "expected a list of messages, got str"),
    ([], "expected a list of messages, got list"),
    (["x"], "message 0: expected role and content, got str"),
    ([{"content": "x"}], "message 0: expected role and content"),
    ([{"role": "user", "content": 3}], "message 0: expected role and content"),
    ([{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}], "part of type 'input_audio'"),
    ([CALL | {"tool_calls": [{"function": {"arguments": {}}}]}], "a tool call: expected an object with name"),
    ([CALL | {"tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}], "arguments of the tool 'f': not valid"),
    ([{"from": "function_call", "value": "no"}], "message 0: expected JSON, got 'no'"),
    ("[{'role': 'user'}]", "field 'messages': expected JSON"),
    ([HI[1] | {"value": "other"}], "message 0: 'content' and 'value' differ"),
    ([HI[1] | {"from": "human"}], "message 0: 'role' and 'from' differ"),
    ([HI[1] | {"reasoning_content": 3}], "message 0: 'reasoning_content': expected text, got int"),
    ([HI[1] | {"thinking": ["x"]}], "message 0: 'thinking': expected text, got list"),
    ([{"from": "function_call", "value": '{"name": "f"}', "thinking": 3}], "'thinking': expected text, got int"),
]  # fmt: skip


@pytest.mark.parametrize(("value", "message"), BAD)
def test_what_is_no_list_of_turns_is_refused(value, message):
    with pytest.raises(BadRow, match=message):
        messages(value, "messages")


def call_with(arguments):
    return [CALL | {"tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}]


HALF = '"hi \\ud83d"'
DEEP = "[" * 300 + "]" * 300
CANNOT_BE_JSON = [
    (f'[{{"role": "user", "content": {HALF}}}]', r"field 'messages': not valid text .\\ud83d is an unpaired surrogate"),
    (call_with(f'{{"q": {HALF}}}'), "message 0: arguments of the tool 'f': not valid text"),
    (call_with('{"q": "\\uD83D"}'), "arguments of the tool 'f': not valid text"),
    (call_with('{"q": NaN}'), "arguments of the tool 'f': expected a finite number, got nan"),
    (call_with('{"q": [-1e999]}'), "arguments of the tool 'f': expected a finite number, got -inf"),
    (call_with({"q": math.inf}), "arguments of the tool 'f': expected a finite number, got inf"),
    (call_with(DEEP), "arguments of the tool 'f': nested too deeply"),
    (call_with(json.loads(DEEP)), "arguments of the tool 'f': nested too deeply"),
    (call_with("[" * 100_000), "arguments of the tool 'f': nested too deeply"),
    ([{"from": "function_call", "value": f'{{"name": {HALF}}}'}], "field 'messages': message 0: not valid text"),
    ("[" + '{"a": ' * 100_000, "field 'messages': nested too deeply"),
]  # fmt: skip


@pytest.mark.parametrize(("value", "message"), CANNOT_BE_JSON, ids=range(len(CANNOT_BE_JSON)))
def test_json_inside_a_field_is_checked_as_a_file_is(value, message):
    with pytest.raises(BadRow, match=message) as caught:
        messages(value, "messages")
    str(caught.value).encode()


def test_whole_characters_as_two_escapes_are_read():
    (turn,) = messages('[{"role": "user", "content": "\\ud83d\\ude00"}]', "messages")
    assert turn == U("\U0001f600")
    assert messages(call_with('{"q": "\\ud83d\\ude00"}'), "messages")[0].extra["tool_calls"][0]["function"][
        "arguments"
    ] == {"q": "\U0001f600"}


def test_text_under_the_other_name_is_read_where_one_is_empty():
    assert messages([{"role": "assistant", "content": None, "from": None, "value": "x"}], "m") == (A("x"),)
    assert messages([HI[1] | {"from": "gpt", "value": "Hello"}], "m") == (A("Hello"),)
    row = Fields({})
    assert messages([HI[1] | {"from": "Ann"}], "messages", row) == (A("Hello"),)
    assert row.inside == {"messages.from": "Ann"}


def test_turn_that_is_a_call_keeps_what_else_it_has():
    row = Fields({})
    call = {"from": "function_call", "value": '{"name": "f"}', "reasoning_content": "so", "mood": "fine"}
    (turn,) = messages([call], "conversations", row)
    assert turn.extra["reasoning_content"] == "so"
    assert row.inside == {"conversations.mood": "fine"}


def test_text_is_turns_only_where_each_has_a_role_and_says_something():
    for indent in (None, 1):
        assert turns_in(json.dumps(HI, indent=indent)) == HI
    assert turns_in('[{"from": "gpt", "value": "x"}]')
    for text in (
        '[{"role": "user"}]',
        '[{"role": "wizard", "content": "x"}]',
        '[{"content": "x"}]',
        "[1]",
        "[{",
    ):
        assert turns_in(text) is None


def test_transcript_with_text_before_its_first_mark_gives_nothing():
    assert transcript_turns("Intro\n\nHuman: Hi", "\n\nHuman:", "\n\nAssistant:") == ()
    assert transcript_turns("Human: Hi", "\n\nHuman:", "\n\nAssistant:") == (U("Hi"),)


def test_extra_id_marks_give_turns_without_the_empty_system_prompt():
    marked = "<extra_id_0>System\n\n<extra_id_1>User\nHi\n<extra_id_1>Assistant\n"
    assert extra_id_turns(marked) == (U("Hi"),)
    assert extra_id_turns("Hi\n<extra_id_1>Assistant\nHello\n<extra_id_1>User\nName?") == (
        U("Hi"),
        A("Hello"),
        U("Name?"),
    )
    assert extra_id_turns("<extra_id_0>System\nBe.\n<extra_id_1>User\nHi")[0] == S("Be.")


def test_glaive_call_after_words_keeps_both():
    chat = (
        'USER: Rome?\n\n\nASSISTANT: One moment. <functioncall> {"name": "f", "arguments": {}} <|endoftext|>'
    )
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    assert glaive_turns(chat, "chat") == (U("Rome?"), A("One moment.", tool_calls=[call]))
    with pytest.raises(BadRow, match="expected turns marked by 'USER:'"):
        glaive_turns("Hello", "chat")


def test_glaive_arguments_with_an_apostrophe_are_read():
    chat = 'ASSISTANT: <functioncall> {"name": "f", "arguments": \'{"q": "it\'s"}\'} <|endoftext|>'
    (turn,) = glaive_turns(chat, "chat")
    assert turn.extra["tool_calls"][0]["function"]["arguments"] == {"q": "it's"}


def test_pairs_and_columns_of_turns():
    assert pairs_of_turns([["a", "b"]], "history") == (U("a"), A("b"))
    assert pairs_of_turns({"input": ["a"], "output": ["b"]}, "history") == (U("a"), A("b"))
    assert alternate(["a", "c"], ["b", "d"], "prompt") == (U("a"), A("b"), U("c"), A("d"))
    for wrong in ("a", [["a"]], [["a", 1]], [1]):
        with pytest.raises(BadRow, match="field 'history': expected a list of"):
            pairs_of_turns(wrong, "history")
    with pytest.raises(BadRow, match="expected 2 texts, one for each turn, got 1"):
        alternate(["a", "c"], ["b"], "prompt")


def test_plain_answer_is_text_and_any_other_is_turns():
    assert split_answer((U("a"), A("b")), "x") == ((U("a"),), "b")
    call = Message("assistant", "", extra={"tool_calls": [WEATHER]})
    for turn in (call, Message("assistant", "a", 0.0), Message("assistant", "a", 0.5)):
        assert completion_of((turn,)) == (turn,)
    assert completion_of((A("a"), U("b"), A("c"))) == (A("a"), U("b"), A("c"))
