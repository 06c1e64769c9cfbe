"""Chat templates in the manners of the published ones: what is given, what counts, and what is refused.

The templates are written here; each does what it is named for as the published ones of its family do.
"""

import json
import re

import pytest

from jaxalign.data import DataConfig, Message, chat_format, load_dataset
from jaxalign.errors import DataError
from tests.data.conftest import byte_tokenizer

HEAD = "<|im_start|>{{ m.role }}\n"
ASKS = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"

# Qwen 3: an answer has its reasoning while it is the last turn, and loses it once another follows.
THINKS = (
    "{% for m in messages %}" + HEAD + "{% set text = m.content %}"
    "{% if m.role == 'assistant' %}{% set text = m.content.split('</think>')[-1].lstrip('\n') %}"
    "{% if loop.last %}<think>\n"
    "{{ m.reasoning_content if m.reasoning_content else '' }}\n</think>\n\n{% endif %}{% endif %}"
    "{{ text }}<|im_end|>\n{% endfor %}" + ASKS
)
# Phi 3: what is not asked ends with a token of its own, after the end of the turn.
CLOSES = (
    "{% for m in messages %}" + HEAD + "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% else %}{{ eos_token }}{% endif %}"
)
# Mistral v0.3: the system turn stands in the user's last turn, and nowhere once that is answered.
MOVES = (
    "{% for m in messages %}{% if m.role == 'user' %}[{% if loop.last and messages[0].role == 'system' %}"
    "{{ messages[0].content }} | {% endif %}{{ m.content }}]{% elif m.role == 'assistant' %} {{ m.content }}<eos>"
    "{% endif %}{% endfor %}"
)
# DeepSeek R1: a model is asked with the beginning of its reasoning, and what was reasoned is left out afterwards.
OPENS = (
    "{% for m in messages %}{% if m.role == 'user' %}[{{ m.content }}]{% else %}<|im_start|>"
    "{{ m.content.split('</think>')[-1] }}<eos>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|><think>\n{% endif %}"
)
# Qwen 2.5: a default system turn; tools and calls where there are any.
DEFAULT = (
    "{% if tools %}<|im_start|>system\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}<|im_end|>\n"
    "{% elif messages[0].role != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}"
    "{% for m in messages %}" + HEAD + "{{ m.content }}{% if m.tool_calls %}{% for c in m.tool_calls %}"
    "<call>{{ c.function.name }} {{ c.function.arguments | tojson }}</call>{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}" + ASKS
)
# What is generated stands between marks; earlier answers are shortened.
MARKED = (
    "{% for m in messages %}" + HEAD + "{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content if loop.last else m.content[:2] }}<|im_end|>\n{% endgeneration %}"
    "{% else %}{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}" + ASKS
)
# Llama 3.2: today's date.
DATED = "{{ strftime_now('%d %b %Y') }}" + CLOSES
DROPS = "{% for m in messages %}{% if m.role != 'system' %}[{{ m.content }}]{% endif %}{% endfor %}"

S, U, A = Message("system", "Be kind."), Message("user", "hi"), Message("assistant", "yo")
U2, A2 = Message("user", "more"), Message("assistant", "sure")
TOOL = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}},
}
TOOLS = Message("tools", json.dumps([TOOL]))
CALL = {"id": "a1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
CALLS = Message("assistant", "", extra={"tool_calls": [CALL]})
GAVE = Message("tool", '{"sun": 1}', extra={"tool_call_id": "a1"})


def make(template, date=""):
    return chat_format(byte_tokenizer(template), "tokenizer", "", "\n\nHuman:", "\n\nAssistant:", date)


def shown(chat, rows):
    """Rows as text, what counts between « and »."""
    lines = []
    for row in chat.encoder.rows(rows):
        line, counted = "", False
        for token, weight in zip(row.ids, row.weights, strict=True):
            if (weight > 0) != counted:
                line += "»" if counted else "«"
                counted = weight > 0
            line += chat.tokenizer.decode([token])
        lines.append(line + "»" * counted)
    return lines


def told(template, *turns):
    chat = make(template)
    return shown(chat, chat.conversation(turns).rows)


def test_answers_that_a_template_rewrites_later_are_trained_as_they_were_written_at_their_time():
    first = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    then = "<|im_end|>\n<|im_start|>user\nmore<|im_end|>\n<|im_start|>assistant\n"
    assert told(THINKS, U, A, U2, A2) == [
        f"{first}«<think>\n\n</think>\n\nyo<|im_end|>»",
        f"{first}yo{then}«<think>\n\n</think>\n\nsure<|im_end|>»",
    ]
    thought = Message("assistant", "yo", extra={"reasoning_content": "hm"})
    assert told(THINKS, U, thought) == [f"{first}«<think>\nhm\n</think>\n\nyo<|im_end|>»"]


def test_a_chat_in_several_rows_gives_an_example_for_each_answer(write):
    turns = [{"role": m.role, "content": m.content} for m in (U, A, U2, A2)]
    config = DataConfig(train=(write([{"messages": turns}]),), validation_fraction=0.0)
    data = load_dataset(config, "demonstration", byte_tokenizer(THINKS), seed=0)
    assert data.counts.summary() == {"read": 1, "used": 1, "filtered": {}}
    assert len(data.train) == 2
    assert data.train[0].group == data.train[1].group


def test_only_the_answer_that_counts_is_asked_for():
    """A preference over a chat whose earlier turns are rewritten needs the last answer alone."""
    chat = make(THINKS)
    written = chat.answered((U, A, U2), "sure")
    assert shown(chat, written.rows)[0].endswith("assistant\n«<think>\n\n</think>\n\nsure<|im_end|>»")
    prompt = chat.prompt_ids((U, A, U2))
    assert chat.example((U, A, U2), "sure").ids[: len(prompt)] == prompt


def test_an_answer_ends_with_its_turn_not_with_what_closes_the_chat():
    assert told(CLOSES, U, A, U2, A2) == [
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n«yo<|im_end|>»"
        "\n<|im_start|>user\nmore<|im_end|>\n<|im_start|>assistant\n«sure<|im_end|>»"
    ]
    assert make(CLOSES).stop_ids == (2,)


def test_a_system_turn_that_moves_stands_where_the_model_is_asked():
    assert told(MOVES, S, U, A, U2, A2) == [
        "[Be kind. | hi]« yo<eos>»",
        "[hi] yo<eos>[Be kind. | more]« sure<eos>»",
    ]
    chat = make(MOVES)
    for answer in ("sure", "no"):
        [line] = shown(chat, chat.answered((S, U, A, U2), answer).rows)
        assert line == f"[hi] yo<eos>[Be kind. | more]« {answer}<eos>»"


def test_reasoning_goes_on_from_where_the_template_asks():
    chat = make(OPENS)
    thinks, plain = "<think>\nhm\n</think>\n\nyo", "yo"
    written = chat.conversation((U, Message("assistant", thinks)))
    assert shown(chat, written.rows) == ["[hi]<|im_start|><think>\n«hm\n</think>\n\nyo<eos>»"]
    assert written.note == ""
    assert chat.prompt_text((U,)) == "hi"
    without = chat.conversation((U, A))
    assert shown(chat, without.rows) == ["[hi]<|im_start|><think>\n«\n</think>\n\nyo<eos>»"]
    assert (
        without.note
        == "answers without reasoning, which the chat template asks for: <think> is closed at once"
    )
    # However they are answered, prompts are the same, and begin the rows.
    prompt = chat.prompt_ids((U,))
    for answer in (thinks, plain, "<html>", "<the end", "</s>"):
        assert chat.example((U,), answer).ids[: len(prompt)] == prompt
    assert shown(chat, chat.answered((U,), "<html>").rows)[0].endswith("</think>\n\n<html><eos>»")
    asks = OPENS.replace("<think>\n", "Well: ")
    with pytest.raises(DataError, match="starts answers with 'Well:', but this one does not start with it"):
        make(asks).conversation((U, A))


def test_a_chat_that_begins_with_an_answer_does_not_count_what_stands_before_it():
    assert told(DEFAULT, A, U, A2) == [
        "<|im_start|>system\nYou help.<|im_end|>\n<|im_start|>assistant\n«yo<|im_end|>»"
        "\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n«sure<|im_end|>»"
    ]


def test_marks_of_what_is_generated_are_no_part_of_an_answer():
    assert told(MARKED, U, Message("assistant", "yo"), U2, A2) == [
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n«yo<|im_end|>»"
        "\n<|im_start|>user\nmore<|im_end|>\n<|im_start|>assistant\n«sure<|im_end|>»"
    ]


def test_turns_of_weight_0_are_given_and_others_count_by_their_weights():
    quiet = Message("assistant", "yo", weight=0.0)
    [line] = told(DEFAULT, S, U, quiet, U2, A2)
    assert re.findall("«(.*?)»", line, re.DOTALL) == ["sure<|im_end|>"]
    chat = make(DEFAULT)
    [row] = chat.encoder.rows(chat.conversation((S, U, Message("assistant", "yo", weight=0.5), U2, A2)).rows)
    assert set(row.weights) == {0.0, 0.5, 1.0}
    assert sum(weight == 0.5 for weight in row.weights) == len("yo") + 1
    assert chat.conversation((U, quiet)).rows == []


def test_tools_calls_and_what_they_gave_are_written_and_only_answers_count():
    [line] = told(DEFAULT, TOOLS, U, CALLS, GAVE, A2)
    assert line.startswith(f"<|im_start|>system\n{json.dumps(TOOL)}\n<|im_end|>")
    assert re.findall("«(.*?)»", line, re.DOTALL) == [
        '<call>weather {"city": "Rome"}</call><|im_end|>',
        "sure<|im_end|>",
    ]
    assert '{"sun": 1}' in line


LEFT_OUT = [
    (DROPS, (S, U, A), r"the chat template drops a turn of the system \('Be kind\.'\)"),
    (DROPS, (TOOLS, U, A), "drops the row's tools .'weather'"),
    (CLOSES, (U, CALLS), "drops the tool calls .'weather'"),
    (
        CLOSES,
        (U, Message("assistant", "yo", extra={"reasoning_content": "hm"})),
        "drops the field 'reasoning_content' of an answer .'hm'",
    ),
    (MOVES, (U, CALLS, GAVE, A2), "drops the tool calls"),
    (MOVES, (U, A, GAVE, A2), "drops a turn of the tool"),
    (MOVES, (U, A, Message("tool", "\u6674\u308c"), A2), "drops a turn of the tool"),
    (MARKED, (U, Message("assistant", "yonder"), U2, A2), "drops a turn of the assistant .'yonder'"),
    (
        CLOSES,
        (U, Message("assistant", "", weight=0.0, extra={"tool_calls": [CALL]}), U2, A2),
        "the tool calls",
    ),
    (
        CLOSES,
        (U, Message("assistant", "yo", extra={"thinking": "hm"})),
        "drops the field 'thinking' of an answer .'hm'",
    ),
    (
        "{% for m in messages %}[{{ m.content | upper }}]{% endfor %}",
        (U, A),
        "drops part of an answer .'yo'",
    ),
]


@pytest.mark.parametrize(("template", "turns", "message"), LEFT_OUT)
def test_what_a_template_would_leave_out_is_refused_by_name(template, turns, message):
    with pytest.raises(DataError, match=message):
        make(template).conversation(turns)


@pytest.mark.parametrize("template", ["markers", "plain"])
def test_without_a_chat_template_what_only_one_can_write_is_refused(plain_bytes, template):
    chat = chat_format(plain_bytes, template, "", "\n\nHuman:", "\n\nAssistant:")
    with pytest.raises(DataError, match="a message has tool_calls, which needs a chat template"):
        chat.conversation((U, CALLS))
    with pytest.raises(DataError, match=r"the row lists tools, .* data\.ignore_columns"):
        chat.conversation((TOOLS, U, A))


def test_names_that_are_not_written_are_remarked():
    named = Message("user", "hi", extra={"name": "Ada"})
    assert make(DEFAULT).conversation((named, A)).note == "names of messages are not written"
    assert make(DEFAULT).conversation((U, A)).note == ""


def test_a_template_writes_the_day_of_the_run():
    chat = make(DATED, "2026-01-31")
    assert shown(chat, chat.conversation((U, A)).rows)[0].startswith("31 Jan 2026<|im_start|>")
    assert chat.tokenizer.decode(chat.prompt_ids((U,))).startswith("31 Jan 2026<|im_start|>")
    with pytest.raises(DataError, match="prints today's date in an unsupported way"):
        make("{% set f = '%Y' %}{{ strftime_now(f) }}" + CLOSES, "2026-01-31").conversation((U, A))


def test_a_prompt_that_a_template_has_written_already_is_refused(chatml, write):
    chat = chat_format(chatml, "auto", "", "\n\nHuman:", "\n\nAssistant:")
    with pytest.raises(DataError, match=r"begins with '<\|im_start\|>user' as if .* data\.template=plain"):
        chat.prompt_ids("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")
    plain = chat_format(chatml, "plain", "", "", "")
    assert plain.prompt_ids("<|im_start|>user\nhi") == chatml("<|im_start|>user\nhi")["input_ids"]


def test_a_developer_speaks_as_the_system_where_a_template_knows_none():
    [line] = told(DEFAULT, Message("developer", "Be kind."), U, A)
    assert line.startswith("<|im_start|>system\nBe kind.<|im_end|>")
    [line] = told(DEFAULT + "{# developer #}", Message("developer", "Be kind."), U, A)
    assert "<|im_start|>developer\nBe kind.<|im_end|>" in line


@pytest.mark.parametrize("template", [THINKS, CLOSES, MOVES, DEFAULT])
def test_a_conversation_of_three_turns_is_asked_as_the_template_writes_it(template):
    chat = make(template)
    turns = (U, A, U2, A2, Message("user", "bye"))
    rows = [{"role": m.role, "content": m.content} for m in turns]
    whole = chat.tokenizer.apply_chat_template(rows, add_generation_prompt=True, return_dict=False)
    assert chat.prompt_ids(turns) == whole


def test_stop_ids_are_what_training_teaches(chatml, plain_bytes):
    assert make(DEFAULT).stop_ids == (2,)
    assert make(MOVES).stop_ids == (0,)
    assert make("{% for m in messages %}[{{ m.content }}]{% endfor %}").stop_ids == ()
    for template in ("markers", "plain"):
        assert chat_format(plain_bytes, template, "", "", "").stop_ids == (0,)
        assert chat_format(plain_bytes, template, "none", "", "").stop_ids == ()
    assert chat_format(chatml, "auto", "<eos>", "", "").stop_ids == (2, 0)


def test_a_turn_may_end_with_a_token_that_is_not_special_and_calls_with_one_of_their_own():
    tokenizer = byte_tokenizer(
        "{% for m in messages %}{{ m.content }}{% if m.tool_calls %}{{ m.tool_calls[0].function.name }}<eos>"
        "{% else %}<|done|>\n{% endif %}{% endfor %}"
    )
    tokenizer.add_tokens(["<|done|>"])
    chat = chat_format(tokenizer, "tokenizer", "", "", "")
    assert chat.stop_ids == (tokenizer.convert_tokens_to_ids("<|done|>"), 0)
    assert shown(chat, chat.conversation((U, A)).rows) == ["hi<|done|>\n«yo<|done|>»"]


def test_arguments_are_given_as_text_to_a_template_that_joins_them():
    joins = CLOSES.replace(
        "{{ m.content }}",
        "{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.name + c.function.arguments }}{% endfor %}",
    )
    assert told(joins, U, CALLS)[0].endswith('«weather{"city": "Rome"}<|im_end|>»')


def test_calls_in_a_prompt_that_a_template_leaves_out_are_refused():
    with pytest.raises(DataError, match="drops the tool calls"):
        make(CLOSES).prompt_ids((U, CALLS, GAVE))
    with pytest.raises(DataError, match="drops the tool calls"):
        make(CLOSES).answered((U, CALLS, GAVE), "sure")
