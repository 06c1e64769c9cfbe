"""Turn markers as a chat template: the same ids as in training, from a tokenizer alone."""

import copy

import pytest

from jaxalign.data.chat import chat_format
from jaxalign.data.markers import markers_of, rendered, with_marker_template, written

CHATS = {
    "a question": ([("user", "hi there ")], True),
    "an answered one": ([("user", "hi"), ("assistant", " ho ")], False),
    "two answers": ([("user", "1"), ("assistant", "one"), ("user", "2"), ("assistant", "two")], False),
    "a system turn": ([("system", " be kind\n"), ("user", "hi"), ("assistant", "ho"), ("user", "?")], True),
    "quotes and signs": ([("user", "a \"b\" {{c}} {% d %}\\n\n'e'"), ("assistant", "é\t{#f#}")], False),
    "an answer with its end": ([("user", "hi"), ("assistant", "ho</s>")], False),
}


@pytest.fixture
def starting_tokenizer(byte_tokenizer):
    """The tokenizer of bytes, which puts `<s>` before every text."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = copy.deepcopy(byte_tokenizer)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 256)]
    )
    return tokenizer


@pytest.mark.parametrize("end", ["", "none", "<pad>"])
@pytest.mark.parametrize("chat", CHATS)
def test_a_template_writes_the_ids_of_training(chat, end, starting_tokenizer):
    form = chat_format(starting_tokenizer, "markers", end, '\n\n"Q":', "\n\nA\\B:")
    tokenizer, problem = with_marker_template(form)
    assert not problem
    turns, opens = CHATS[chat]
    messages = [{"role": role, "content": content} for role, content in turns]
    ids = rendered(tokenizer, messages, opens)
    assert ids == written(form, messages, opens)
    assert ids[0] == 256 and (end == "none" or opens or ids[-1] in (257, 258))
    assert starting_tokenizer.chat_template is None  # that of the run is not touched


def test_auto_knows_exported_markers_again(byte_tokenizer):
    form = chat_format(byte_tokenizer, "markers", "<pad>", "\n\nQ:", "\n\nA:")
    tokenizer, _ = with_marker_template(form)
    again = chat_format(tokenizer, "auto", "", "\n\nHuman:", "\n\nAssistant:")
    assert (again.template, again.human, again.assistant, again.end_ids) == (
        "markers",
        "\n\nQ:",
        "\n\nA:",
        (258,),
    )
    # What the user names is used.
    named = chat_format(tokenizer, "auto", "</s>", "\n\nHuman:", "\n\nAssistant:")
    assert named.end_ids == (257,)
    assert chat_format(tokenizer, "markers", "", "\n\nHuman:", "\n\nAssistant:").human == "\n\nHuman:"


def test_other_templates_are_not_taken_for_markers(byte_tokenizer):
    tokenizer = copy.deepcopy(byte_tokenizer)
    for template in (None, "{{ messages }}", "{#- turn markers of jaxalign: {broken} -#}"):
        tokenizer.chat_template = template
        assert markers_of(tokenizer) is None


def test_a_tokenizer_that_joins_turns_gets_no_template(byte_tokenizer):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    # A full stop and the next marker would be one token, as no end stands between them.
    letters = {chr(i): i for i in range(32, 127)} | {"\n": 10, ".X": 200}
    joining = Tokenizer(models.BPE(vocab=letters, merges=[(".", "X")]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=joining)
    form = chat_format(tokenizer, "markers", "none", "X", "Y")
    same, problem = with_marker_template(form)
    assert same is tokenizer and tokenizer.chat_template is None
    assert "takes the text of a whole chat apart" in problem
