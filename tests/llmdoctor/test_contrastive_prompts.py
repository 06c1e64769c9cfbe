"""A prompt under two instructions: where the instruction stands, and that the completions keep their ids."""

from dataclasses import replace

import pytest

from jaxalign.data import Comparison, Message, chat_format
from jaxalign.data.examples import Limits, make_example
from jaxalign.errors import ConfigError, DataError
from jaxalign.llmdoctor import INSTRUCTION_PAIRS, ContrastiveFormat, ContrastiveRows, InstructionPair
from tests.data.conftest import byte_tokenizer

PAIR = InstructionPair("be good", "be bad at it")
TURNS = (Message("user", "hi there"), Message("assistant", "yes"), Message("user", "more"))
REFUSES = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "[{{ m['role'] }}]{{ m['content'] }}<eos>{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
DROPS = (
    "{% for m in messages %}{% if m['role'] != 'system' %}[{{ m['role'] }}]{{ m['content'] }}<eos>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


def faces(tokenizer, template="auto", pair=PAIR):
    return ContrastiveFormat(chat_format(tokenizer, template, "", "\n\nHuman:", "\n\nAssistant:"), pair)


def text(form, prompt, instruction="be good"):
    return form.chat.tokenizer.decode(form.chat.prompt_ids(form.prompt(prompt, instruction)))


def comparison(form, prompt, *, limits=None, chosen="a good answer", rejected="no"):
    record = Comparison(prompt, chosen, rejected, source="rows.jsonl:1")
    return make_example(record, "comparison", form.chat, limits or Limits(10_000, 0, "filter"))


@pytest.mark.parametrize(("positive", "negative"), [("", "b"), ("a", " \n"), ("be  good", "be good\n")])
def test_empty_or_identical_instructions_are_refused(positive, negative):
    with pytest.raises(ConfigError, match=r"instruction"):
        InstructionPair(positive, negative)


def test_instructions_are_shipped_for_three_dimensions():
    assert set(INSTRUCTION_PAIRS) == {"helpfulness", "safety", "truthfulness"}


def test_the_instruction_is_a_system_turn_of_the_template(chatml):
    assert text(faces(chatml), "hi") == (
        "<|im_start|>system\nbe good<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("template", ["auto", "markers"])
def test_a_system_turn_of_the_prompt_stays_behind_the_instruction_in_one_turn(chatml, template):
    written = text(faces(chatml, template), (Message("system", "be short"), *TURNS))
    assert "be good\n\nbe short" in written
    assert written.count("system") == (1 if template == "auto" else 0)


@pytest.mark.parametrize("template", [REFUSES, DROPS])
def test_without_system_turns_the_instruction_opens_the_users_first_turn(template):
    form = faces(byte_tokenizer(template))
    assert text(form, TURNS) == (
        "[user]be good\n\nhi there<eos>[assistant]yes<eos>[user]more<eos>[assistant]"
    )
    with pytest.raises(DataError, match="the prompt no user turn"):
        form.prompt((Message("assistant", "yes"),), "be good")


def test_markers_have_the_instruction_before_the_first_one(plain_bytes):
    form = faces(plain_bytes)
    assert text(form, "hi") == "be good\n\nHuman: hi\n\nAssistant:"
    assert text(form, "\n\nHuman: hi\n\nAssistant:") == text(form, "hi")


def test_plain_text_has_an_empty_line_unless_the_instruction_ends_in_white_space(plain_bytes):
    form = faces(plain_bytes, "plain")
    assert text(form, "Once") == "be good\n\nOnce"
    assert text(form, "Once", "[good] ") == "[good] Once"
    assert text(form, "", "[good] ") == "[good] "


@pytest.mark.parametrize("truncation", ["filter", "cut_completion", "cut_prompt_start"])
@pytest.mark.parametrize(
    ("kind", "template"),
    [
        ("chatml", "tokenizer"),
        ("chatml", "markers"),
        ("chatml", "plain"),
        ("spaced", "markers"),
        ("spaced", "plain"),
    ],
)
def test_faces_count_the_same_ids_as_the_plain_row(request, kind, template, truncation):
    form = faces(request.getfixturevalue(kind), template)
    whole = comparison(form, TURNS)
    short = len(whole.rows[0]) - (3 if truncation != "filter" else 0)
    example = comparison(form, TURNS, limits=Limits(short, 0, truncation))
    assert example.truncated == (truncation != "filter")
    [under] = ContrastiveRows([example], form, 10_000)[:]
    start = example.masks[0].index(True)
    for number, (row, mask) in enumerate(zip(under.rows, under.masks, strict=True)):
        side, instruction = divmod(number, 2)
        plain, plain_mask = example.rows[side], example.masks[side]
        assert row[mask.index(True) :] == plain[start:]
        assert mask[mask.index(True) :] == plain_mask[start:]
        said = form.chat.tokenizer.decode(row[: mask.index(True)])
        assert ("be good", "be bad at it")[instruction] in said
    # The faces lack of the prompt what the plain row lacks, but for what opens a row (<s> and a space mark).
    prompts = [form.chat.prompt_ids(form.prompt(TURNS, i)) for i in ("be good", "be bad at it")]
    lacks = len(form.chat.prompt_ids(TURNS)) - start
    assert [len(row) - len(example.rows[0]) + start for row in under.rows[:2]] == [
        len(ids) - max(lacks - (2 if kind == "spaced" else 0), 0) for ids in prompts
    ]
    assert (lacks > 0) == (truncation == "cut_prompt_start")


def test_a_face_too_long_for_the_context_loses_the_prompts_beginning_alone(plain_bytes):
    form = faces(plain_bytes, "plain")
    example = comparison(form, "0123456789", chosen="abc", rejected="x")
    # "be bad at it" (" a" is one token), an empty line (one too), the prompt, "abc" and the end.
    longest = 11 + 1 + 10 + 4
    fits, cut = ContrastiveRows([example], form, longest), ContrastiveRows([example], form, longest - 6)
    assert not fits.cut[0]
    assert cut.cut[0]
    assert [plain_bytes.decode(row) for row in cut[0].rows] == [
        "be good\n\n6789abc<eos>",
        "be bad at it\n\n6789abc<eos>",
        "be good\n\n6789x<eos>",
        "be bad at it\n\n6789x<eos>",
    ]
    none = ContrastiveRows([example], form, longest - 10)
    assert plain_bytes.decode(none[0].rows[0]) == "be good\n\nabc<eos>"
    with pytest.raises(DataError, match=r"^rows.jsonl:1: the completion has 4 tokens and the instruction 12"):
        ContrastiveRows([example], form, longest - 11)


def test_a_completion_without_a_prompt_keeps_its_first_token_uncounted(plain_bytes):
    form = faces(plain_bytes, "plain", InstructionPair("+ ", "- "))
    example = comparison(form, "", chosen="abc", rejected="x")
    [under] = ContrastiveRows([example], form, 100)[:]
    assert [plain_bytes.decode(row) for row in under.rows[:2]] == ["+ abc<eos>", "- abc<eos>"]
    assert sum(under.masks[0]) == sum(example.masks[0]) == 3


def test_an_instruction_like_the_prompts_end_is_not_taken_for_it(plain_bytes):
    form = faces(plain_bytes, "plain", InstructionPair("a same same", "b same same"))
    example = comparison(form, "same same", chosen="y", rejected="n")
    [under] = ContrastiveRows([example], form, 100)[:]
    assert plain_bytes.decode(under.rows[0]) == "a same same\n\nsame samey<eos>"


def test_examples_without_their_prompt_are_refused(plain_bytes):
    form = faces(plain_bytes)
    with pytest.raises(ValueError, match="do not begin with its prompt"):
        ContrastiveRows([replace(comparison(form, "hi"), prompt="ho")], form, 100)
