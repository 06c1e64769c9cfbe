"""Pieces as ids: the beginning of a row, borders between pieces, and ends."""

import pytest
from tokenizers import processors

from jaxalign.data import chat_format
from jaxalign.data.encoding import Encoder, Piece, RowPlan
from jaxalign.data.records import Message
from tests.data.conftest import byte_tokenizer, spaced_tokenizer

CHAT = tuple(
    Message(role, text)
    for role, text in (("user", "hi a"), ("assistant", "yes"), ("user", "so"), ("assistant", "no"))
)
# As Mistral's: text follows the end of an answer at once.
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}Q {{ m.content }} R{% else %}"
    " {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)


def eos_only():
    """As BERT-like or T5-like tokenizers: an end after every text, and nothing before it."""
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", 0)]
    )
    return tokenizer


def test_a_tokenizer_that_adds_an_end_alone_puts_nothing_in_front():
    tokenizer = eos_only()
    assert tokenizer("a")["input_ids"][-1] == 0
    assert Encoder(tokenizer).start == ()
    ids = chat_format(tokenizer, "plain", "", "", "").example("a", "b").ids
    assert ids == [*tokenizer("ab", add_special_tokens=False)["input_ids"], 0]


def test_a_beginning_that_the_text_has_already_is_not_doubled(spaced):
    chat = chat_format(spaced, "plain", "", "", "")
    assert chat.example("<s>one", " two").ids == chat.example("one", " two").ids
    assert chat.encoder.rows([chat.continued("<s>one</s>")])[0].ids == spaced("one")["input_ids"] + [2]


@pytest.mark.parametrize("count", [2, 4])
def test_rows_of_a_chat_are_the_ids_of_its_whole_text(count):
    """Tokenizers in the legacy SentencePiece manner put a space mark behind special tokens too."""
    tokenizer = spaced_tokenizer()
    tokenizer.chat_template = INST
    chat = chat_format(tokenizer, "tokenizer", "", "", "")
    [row] = chat.encoder.rows(chat.conversation(CHAT[:count]).rows)
    turns = [{"role": m.role, "content": m.content} for m in CHAT[:count]]
    text = str(tokenizer.apply_chat_template(turns, tokenize=False))
    whole = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert [tokenizer.convert_ids_to_tokens(i) for i in row.ids] == [
        tokenizer.convert_ids_to_tokens(i) for i in whole
    ]


def test_white_space_that_a_special_token_swallows_does_not_come_back():
    """As Phi 3's: `<|end|>` takes the new line behind it."""
    from transformers import AddedToken

    tokenizer = byte_tokenizer(
        "{% for m in messages %}{{ m.content }}<|stop|>\n{% endfor %}{% if add_generation_prompt %}{% endif %}"
    )
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [AddedToken("<|stop|>", rstrip=True, special=True)]}
    )
    chat = chat_format(tokenizer, "tokenizer", "", "", "")
    [row] = chat.encoder.rows(chat.conversation(CHAT).rows)
    turns = [{"role": m.role, "content": m.content} for m in CHAT]
    text = str(tokenizer.apply_chat_template(turns, tokenize=False)).rstrip("\n")
    assert row.ids == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_many_rows_at_once_are_the_same_as_one_by_one(spaced):
    encoder = Encoder(spaced)
    plans = [
        RowPlan([Piece("one "), Piece("two", 1.0, True)], True, (2,)),
        RowPlan([Piece("", 1.0, True)], True, (2,)),
        RowPlan([Piece("a"), Piece("b"), Piece(".", 0.5, True), Piece("\nc")], False, ()),
    ]
    assert encoder.rows(plans) == [encoder.rows([plan])[0] for plan in plans]
    assert encoder.rows(plans)[2].cuts == [len(encoder.ids("ab")) + 1]
