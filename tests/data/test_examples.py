"""Limits on length, and rows with nothing to learn from."""

import numpy as np
import pytest

from jaxalign.data import (
    Comparison,
    Demonstration,
    Message,
    PromptRecord,
    Ranking,
    Rating,
    Stepwise,
    Text,
    chat_format,
    make_example,
)
from jaxalign.data.encoding import Piece, RowPlan
from jaxalign.data.examples import Draft, Filtered, Limits, finished


@pytest.fixture
def chat(plain_bytes):
    return chat_format(plain_bytes, "plain", "", "\n\nHuman:", "\n\nAssistant:")


def limits(length=100, prompt=0, truncation="filter"):
    return Limits(length, prompt, truncation)


LONG = Demonstration("abcdefgh", "klmn")  # 8 + 4 + the end: 13 tokens
CUTS = [
    (limits(13), "abcdefgh", "klmn<eos>"),
    (limits(10, truncation="cut_completion"), "abcdefgh", "kl"),
    (limits(10, truncation="cut_prompt_start"), "defgh", "klmn<eos>"),
    (limits(13, 3, "cut_prompt_start"), "fgh", "klmn<eos>"),
    (limits(7, 3, "cut_prompt_start"), "gh", "klmn<eos>"),
]


@pytest.mark.parametrize(("rule", "prompt", "completion"), CUTS)
def test_rows_are_cut_by_the_stated_rule(chat, plain_bytes, rule, prompt, completion):
    example = make_example(LONG, "demonstration", chat, rule)
    mask = np.array(example.masks[0])
    assert plain_bytes.decode(np.array(example.rows[0])[~mask]) == prompt
    assert plain_bytes.decode(np.array(example.rows[0])[mask]) == completion
    assert example.prompt_tokens == tuple(plain_bytes(prompt)["input_ids"])


LEFT_OUT = [
    (limits(12), "too long"),
    (limits(8, truncation="cut_completion"), "prompt too long"),
    (limits(5, truncation="cut_prompt_start"), "completion too long"),
    (limits(100, 7), "prompt too long"),
    (limits(100, 7, "cut_completion"), "prompt too long"),
]


@pytest.mark.parametrize(("rule", "reason"), LEFT_OUT)
def test_rows_beyond_the_rule_are_left_out_with_a_reason(chat, rule, reason):
    with pytest.raises(Filtered, match=f"^{reason}$"):
        make_example(LONG, "demonstration", chat, rule)


EMPTY = [
    (Demonstration("abc", ""), "demonstration"),
    (Demonstration("abc", " \n"), "demonstration"),
    (Demonstration((Message("user", "a"), Message("assistant", "")), None), "demonstration"),
    (Comparison("a", "b", ""), "comparison"),
    (Ranking("a", ("b", ""), 0), "ranking"),
]


@pytest.mark.parametrize(("record", "kind"), EMPTY)
def test_row_without_completion_is_left_out(chat, record, kind):
    with pytest.raises(Filtered, match="no completion token"):
        make_example(record, kind, chat, limits())


def test_the_first_column_never_counts(chat):
    # This tokenizer puts nothing before a text, so the first token of plain text has no token before it.
    example = make_example(Demonstration("", "abc"), "demonstration", chat, limits())
    assert example.masks[0] == (False, True, True, True)


def test_both_sides_of_a_pair_keep_the_same_prompt(chat, plain_bytes):
    pair = Comparison("abcdefgh", "k", "klmn")
    example = make_example(pair, "comparison", chat, limits(10, truncation="cut_prompt_start"))
    assert [plain_bytes.decode(list(row)) for row in example.rows] == ["defghk<eos>", "defghklmn<eos>"]
    assert plain_bytes.decode(list(example.prompt_tokens)) == "defgh"


def test_a_candidate_that_the_cut_of_another_prompt_takes_away_is_left_out_with_a_reason(chat):
    # The second row begins to count six tokens earlier, and has fewer than are cut off.
    plans = [RowPlan([Piece(said), Piece("k", 1.0, answer=True)]) for said in ("abcdefgh", "ab")]
    draft = Draft(tuple(plans), "ranking", limits(100, 2, "cut_prompt_start"), {"best": 0})
    [found] = finished([draft], chat)
    assert isinstance(found, Filtered)
    assert str(found) == "no completion token"


def test_candidates_share_a_row_and_keep_the_best(chat):
    example = make_example(Ranking("q", ("a", "b", "c"), 2), "ranking", chat, limits())
    assert len(example.rows) == 3
    assert example.best == 2
    assert example.rows[2] == tuple(chat.example("q", "c")[0])


def test_a_text_and_the_same_text_as_a_user_turn_are_one_prompt(chat):
    records = [
        Comparison("hi", "a", "b"),
        Comparison((Message("user", "hi"),), "c", "d"),
        Demonstration("hi", "x"),
        PromptRecord("hi"),
        Demonstration((Message("user", "hi"), Message("assistant", "x")), None),
    ]
    kinds = ["comparison", "comparison", "demonstration", "prompt", "prompt"]
    groups = {make_example(r, k, chat, limits()).group for r, k in zip(records, kinds, strict=True)}
    assert len(groups) == 1


def test_prompts_of_plain_text_are_its_first_tokens(chat, plain_bytes):
    example = make_example(Demonstration("", "abcdef"), "prompt", chat, limits(), prompt_tokens=4)
    assert plain_bytes.decode(list(example.prompt_tokens)) == example.prompt_text == "abcd"
    with pytest.raises(Filtered, match=r"shorter than data.prompt_tokens"):
        make_example(Demonstration("", "abc"), "prompt", chat, limits(), prompt_tokens=4)


def test_prompt_longer_than_the_context_is_left_out_or_cut(chat, plain_bytes):
    with pytest.raises(Filtered, match="prompt too long"):
        make_example(PromptRecord("abcdef"), "prompt", chat, limits(5))
    example = make_example(PromptRecord("abcdef"), "prompt", chat, limits(5, 3, "cut_prompt_start"))
    assert plain_bytes.decode(list(example.prompt_tokens)) == "def"
    assert example.truncated


def test_answers_labelled_bad_are_not_imitated(chat):
    with pytest.raises(Filtered, match="labeled undesirable"):
        make_example(Rating("a", "b", None, False), "demonstration", chat, limits())
    assert make_example(Rating("a", "b", None, True), "demonstration", chat, limits()).rows


@pytest.mark.parametrize("kind", ["comparison", "ranking", "demonstration"])
def test_a_record_of_another_kind_is_left_out_with_a_reason(chat, kind):
    with pytest.raises(Filtered, match=f"not a {kind} but a prompt"):
        make_example(PromptRecord("abc"), kind, chat, limits())


SOLUTION = Stepwise("abc", ("de", "f", "gh"), (1.0, 0.0, 0.5))  # abc de. f. gh. are 3 + 3 + 2 + 3 tokens


def ends_of(example):
    return [i for i, ends in enumerate(example.masks[0]) if ends]


def stepwise(record, chat, rule, separator="."):
    return make_example(record, "stepwise", chat, rule, separator=separator)


def test_a_label_sits_at_the_last_token_of_its_steps_separator(chat, plain_bytes):
    example = stepwise(SOLUTION, chat, limits())
    assert plain_bytes.decode(list(example.rows[0])) == "abcde.f.gh."
    assert ends_of(example) == [5, 7, 10]
    assert example.labels == (1.0, 0.0, 0.5)
    assert plain_bytes.decode(list(example.prompt_tokens)) == "abc"
    assert not example.truncated
    two = stepwise(SOLUTION, chat, limits(), separator="; ")
    assert plain_bytes.decode(list(two.rows[0])) == "abcde; f; gh; "
    assert ends_of(two) == [6, 9, 13]


@pytest.mark.parametrize(
    ("rule", "text", "ends", "labels"),
    [
        (limits(10, truncation="cut_completion"), "abcde.f.", [5, 7], (1.0, 0.0)),
        (limits(6, truncation="cut_completion"), "abcde.", [5], (1.0,)),
        (limits(9, truncation="cut_prompt_start"), "cde.f.gh.", [3, 5, 8], (1.0, 0.0, 0.5)),
    ],
)
def test_steps_that_fall_off_go_with_their_labels(chat, plain_bytes, rule, text, ends, labels):
    example = stepwise(SOLUTION, chat, rule)
    assert plain_bytes.decode(list(example.rows[0])) == text
    assert (ends_of(example), example.labels, example.truncated) == (ends, labels, True)


@pytest.mark.parametrize(
    ("record", "rule", "reason"),
    [
        (SOLUTION, limits(10), "too long"),
        (SOLUTION, limits(5, truncation="cut_completion"), "no whole step"),
        (Stepwise("a", ("b", " "), (1.0, 1.0)), limits(), "a step without text"),
        (Stepwise("a", ("b.c",), (1.0,)), limits(), "the separator inside a step"),
        (Rating("a", "b", None, True), limits(), "not a solution in steps but a rating"),
    ],
)
def test_steps_that_cannot_be_used_are_left_out_with_a_reason(chat, record, rule, reason):
    with pytest.raises(Filtered, match=f"^{reason}$"):
        stepwise(record, chat, rule)


def test_a_separator_that_a_step_brings_along_is_not_doubled(chat):
    assert stepwise(Stepwise("abc", ("de.", "f", "gh."), SOLUTION.labels), chat, limits()) == stepwise(
        SOLUTION, chat, limits()
    )


# These tokenizers merge "hi", and a full stop with a newline.
@pytest.mark.parametrize(
    ("name", "template", "separator"),
    [("plain_bytes", "plain", "h"), ("chatml", "tokenizer", "h"), ("spaced", "markers", "\n")],
)
def test_no_token_holds_the_end_of_a_step_and_the_beginning_of_the_next(name, template, separator, request):
    chat = chat_format(request.getfixturevalue(name), template, "", "Human:", "Assistant:")
    steps = ("so.", "i is", " a.")
    example = stepwise(Stepwise("Q", steps, (1.0, 1.0, 1.0)), chat, limits(), separator)
    row, start = list(example.rows[0]), len(example.prompt_tokens)
    assert row[:start] == chat.prompt_ids("Q")
    lead = " " if template == "markers" else ""
    for step, end in zip((lead + steps[0], *steps[1:]), ends_of(example), strict=True):
        assert row[start : end + 1] == chat.continuation_ids(step) + chat.continuation_ids(separator)
        start = end + 1
    assert start == len(row)
    # As one text they are fewer tokens.
    whole = chat.continuation_ids(lead + "".join(step + separator for step in steps))
    assert len(whole) < len(row) - len(example.prompt_tokens)


def test_a_template_that_changes_the_answer_is_refused(plain_bytes):
    from jaxalign.errors import DataError
    from tests.data.conftest import byte_tokenizer

    upper = byte_tokenizer(
        "{% for m in messages %}[{{ m.content | upper if m.role == 'assistant' else m.content }}]{% endfor %}"
    )
    with pytest.raises(DataError, match="the chat template drops part of an answer"):
        chat_format(upper, "tokenizer", "", "", "").steps("q", ["abc"], ";")
    spaced = byte_tokenizer("{% for m in messages %}[{{ m.content | replace('b', ' b') }}]{% endfor %}")
    with pytest.raises(DataError, match="the chat template changes the completion"):
        chat_format(spaced, "tokenizer", "", "", "").steps("q", ["abc"], ";")


ASKS = (Message("user", "q"),)
CHAT = (*ASKS, Message("assistant", "a"))


@pytest.mark.parametrize(
    ("record", "kind", "prompt"),
    [
        (Comparison("long ago", "a", "b"), "comparison", "long ago"),
        (Demonstration("ask", "a"), "demonstration", "ask"),
        (Demonstration(CHAT, None), "demonstration", ASKS),
        (PromptRecord(CHAT), "prompt", ASKS),
    ],
)
def test_an_example_keeps_its_whole_prompt(chat, record, kind, prompt):
    assert make_example(record, kind, chat, limits(12, 3, "cut_prompt_start")).prompt == prompt


def test_candidates_that_are_alike_once_cut_and_weights_that_no_pair_has_are_left_out(chat):
    twice = Ranking("q", ("abcdef", "abcdxx", "z"), 0)
    with pytest.raises(Filtered, match="the best candidate equals another once trimmed or cut"):
        make_example(twice, "ranking", chat, limits(5, truncation="cut_completion"))
    with pytest.raises(Filtered, match="chosen equals rejected once trimmed or cut"):
        make_example(
            Comparison("q", "abcdef", "abcdxx"), "comparison", chat, limits(5, truncation="cut_completion")
        )
    half = (Message("assistant", "a", weight=0.5),)
    with pytest.raises(Filtered, match="weights of turns other than 0 and 1"):
        make_example(Comparison("q", half, "b"), "comparison", chat, limits())


def test_chats_are_grouped_by_what_the_user_says_first(chat):
    system, greeting = Message("system", "Be kind."), Message("assistant", "Hello!")
    asked = [
        (*begin, Message("user", text), Message("assistant", "a"))
        for text in ("x", "y")
        for begin in ((), (greeting,), (system,), (system, greeting))
    ]
    groups = [
        make_example(Demonstration(turns, None), "demonstration", chat, limits()).group for turns in asked
    ]
    assert len(set(groups[:4])) == len(set(groups[4:])) == 1
    assert groups[0] != groups[4]


def test_text_is_continued_without_a_template_and_all_of_it_counts(chatml):
    """A tokenizer with a chat template would make it an answer to an empty turn."""
    form = chat_format(chatml, "auto", "", "\n\nHuman:", "\n\nAssistant:")
    example = make_example(Text("once a hi"), "demonstration", form, limits())
    ids = chatml("once a hi")["input_ids"]
    assert example.rows == ((*ids, chatml.eos_token_id),)
    # Nothing stands before the first token, so nothing predicts it.
    assert example.masks == ((False, *[True] * len(ids)),)
    with pytest.raises(Filtered, match="not a comparison but a text"):
        make_example(Text("once"), "comparison", form, limits())
    prompt = make_example(Text("once a hi"), "prompt", form, limits(), prompt_tokens=3)
    assert prompt.prompt_tokens == tuple(ids[:3])


def test_one_question_is_one_group_in_every_layout(chat):
    asks, more = Message("user", "Who is\n it?"), (Message("assistant", "Me."), Message("user", "And you?"))
    prompts = [
        "Who is it?",
        "\n\nHuman: Who is it?\n\nAssistant:",
        "\n\nHuman: Who is it?\n\nAssistant: Me.\n\nHuman: And you?\n\nAssistant:",
        (asks,),
        (Message("system", "Be kind."), asks, *more),
    ]
    groups = {make_example(Comparison(p, "a", "b"), "comparison", chat, limits(200)).group for p in prompts}
    assert len(groups) == 1
    assert make_example(Comparison("Who?", "a", "b"), "comparison", chat, limits()).group not in groups
