"""Chats as ids: what counts, and that generation starts where training did."""

import pytest

from jaxalign.data import Message, chat_format
from jaxalign.data.chat import Template
from jaxalign.errors import DataError

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
CHAT = tuple(
    Message(role, text)
    for role, text in (
        ("system", "Be kind."),
        ("user", "hi a"),
        ("assistant", "hihi"),
        ("user", " b"),
        ("assistant", "c a"),
    )
)


def make(tokenizer, template: Template = "auto", end_token=""):
    return chat_format(tokenizer, template, end_token, HUMAN, ASSISTANT)


def told(chat, turns):
    """Ids and weights of a chat that is one row."""
    [row] = chat.encoder.rows(chat.conversation(turns).rows)
    return row.ids, row.weights


def counted(tokenizer, ids, mask):
    """The runs of counted tokens, as text."""
    runs, previous = [], False
    for token, counts in zip(ids, mask, strict=True):
        if counts:
            runs = runs if previous else [*runs, []]
            runs[-1].append(token)
        previous = counts
    return [tokenizer.decode(run) for run in runs]


def test_template_counts_every_answer_with_its_end_of_turn(chatml):
    ids, mask = told(make(chatml), CHAT)
    assert counted(chatml, ids, mask) == ["hihi<|im_end|>", "c a<|im_end|>"]
    rows = [{"role": m.role, "content": m.content} for m in CHAT]
    whole = chatml.apply_chat_template(rows, tokenize=False, return_dict=False)
    assert chatml.decode(ids) + "\n" == whole


def test_markers_count_every_answer_with_its_end_token(plain_bytes):
    ids, mask = told(make(plain_bytes), CHAT)
    assert counted(plain_bytes, ids, mask) == [" hihi<eos>", " c a<eos>"]
    assert plain_bytes.decode(ids) == (
        "Be kind.\n\nHuman: hi a\n\nAssistant: hihi<eos>\n\nHuman: b\n\nAssistant: c a<eos>"
    )


def test_plain_joins_prompt_and_completion_as_they_are(spaced):
    chat = make(spaced, "plain", "<s>")
    row = chat.example("Once upon", " a time.")
    ids, mask = row.ids, row.mask
    assert ids == spaced("Once upon a time.")["input_ids"] + [1]
    assert counted(spaced, ids, mask) == ["a time.<s>"]
    assert ids[: mask.index(True)] == chat.prompt_ids("Once upon") == spaced("Once upon")["input_ids"]


def test_space_marks_do_not_enter_in_the_middle_of_a_row(spaced):
    ids = make(spaced, "plain", "none").example("One.", "\nTwo").ids
    assert "".join(spaced.convert_ids_to_tokens(ids)) == "<s>▁One.\nTwo"


@pytest.mark.parametrize("template", ["tokenizer", "markers", "plain"])
@pytest.mark.parametrize("answer", ["\n\nyes", " a", "hi", "a\n"])
def test_prompt_ids_begin_the_row_whatever_the_answer_merges_with(chatml, template, answer):
    # "\n\n" and " a" are single tokens of this tokenizer, so a border can be merged away.
    chat = make(chatml, template)
    for turns in (CHAT[:2], CHAT[:4], "hi\n"):
        prompt = chat.prompt_ids(turns)
        row = chat.example(turns, answer)
        assert row.ids[: len(prompt)] == prompt
        assert row.mask == (False,) * len(prompt) + (True,) * (len(row.ids) - len(prompt))


def test_earlier_answers_are_written_alike_in_chats_and_prompts(plain_bytes):
    for template in ("markers", "plain"):
        chat = make(plain_bytes, template)
        whole, _ = told(chat, CHAT)
        prompt = chat.prompt_ids(CHAT[:4])
        assert whole[: len(prompt)] == prompt


def test_only_the_last_answer_counts_in_an_example(chatml):
    row = make(chatml).example(CHAT[:4], "c a")
    assert counted(chatml, row.ids, row.mask) == ["c a<|im_end|>"]
    assert row.ids == told(make(chatml), CHAT)[0]


def test_turns_after_the_last_answer_are_left_out(chatml):
    for template in ("tokenizer", "markers"):
        chat = make(chatml, template)
        assert told(chat, (*CHAT, Message("user", "bye"))) == told(chat, CHAT)


def test_prompt_that_is_a_transcript_is_not_marked_twice(plain_bytes):
    text = "\n\nHuman: hi\n\nAssistant:"
    chat = make(plain_bytes)
    assert plain_bytes.decode(chat.prompt_ids(text)) == chat.prompt_text(text) == text
    assert chat.prompt_ids(text) == chat.prompt_ids("hi")


def test_end_token_by_text_id_or_none(spaced):
    for name, expected in (("", 2), ("<s>", 1), ("1", 1)):
        assert make(spaced, "plain", name).example("a", "b")[0][-1] == expected
    assert make(spaced, "plain", "none").example("a", "b")[0][-1] == spaced.get_vocab()["b"]
    with pytest.raises(DataError, match=r"data\.end_token: the tokenizer has no token '<end>'"):
        make(spaced, "plain", "<end>")


def test_end_token_is_added_to_a_template_without_one(chatml):
    bare = type(chatml)(tokenizer_object=chatml.backend_tokenizer, eos_token="<eos>")
    bare.chat_template = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
    ids, mask = told(make(bare, "tokenizer", "<eos>"), CHAT[1:3])
    assert bare.decode(ids) == "[hi a][hihi]<eos>"
    assert mask[-1]


def test_tokenizer_without_end_token_asks_for_one(no_eos):
    with pytest.raises(DataError, match=r"no end-of-sequence token: set data.end_token"):
        make(no_eos)
    assert make(no_eos, end_token="<|im_end|>").example("a", "b")[0][-1] == 2


def test_template_asked_for_but_not_there_is_an_error(plain_bytes):
    with pytest.raises(DataError, match="the tokenizer has no chat template"):
        make(plain_bytes, "tokenizer")
