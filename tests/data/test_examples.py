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
    chat_format,
    make_example,
)
from jaxalign.data.examples import Filtered, Limits


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
    with pytest.raises(Filtered, match="not to be imitated"):
        make_example(Rating("a", "b", None, False), "demonstration", chat, limits())
    assert make_example(Rating("a", "b", None, True), "demonstration", chat, limits()).rows


@pytest.mark.parametrize("kind", ["comparison", "ranking", "demonstration"])
def test_a_record_of_another_kind_is_left_out_with_a_reason(chat, kind):
    with pytest.raises(Filtered, match=f"not a {kind} but a prompt"):
        make_example(PromptRecord("abc"), kind, chat, limits())
