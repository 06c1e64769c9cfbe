"""IFEval's checks."""

import json

import pytest

from jaxalign.errors import UserError
from jaxalign.rewards import load_function
from jaxalign.rewards.instructions import CHECKS, every_instruction, followed_instructions

# Instruction, arguments, texts that follow it, texts that do not.
CASES = [
    ("change_case:english_capital", {}, ["YES, 3 OF THEM."], ["YES, three", "3"]),
    ("change_case:english_lowercase", {}, ["yes, 3 of them."], ["Yes", "3"]),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "at least"},
        ["THE end IS near", "A-B c. D"],
        ["THE end", "The End Is"],
    ),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say hi."}, ["say hi. Hello"], ["Hello. Say hi."]),
    (
        "combination:two_responses",
        {},
        ["one\n******\ntwo", "******one******two"],
        ["one", "one ****** one", "a ****** b ****** c", "a ****** ****** b"],
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, ["[name] at [place]"], ["[name]"]),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.S."},
        ["Bye.\nP.S. more", "Bye. p. s. more"],
        ["Bye. PS more", "oops."],
    ),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, ["P.P.S more", "p.p.s. x"], ["P.S. x"]),
    ("detectable_format:constrained_response", {}, ["My answer is no."], ["no.", "My answer is no"]),
    (
        "detectable_format:json_format",
        {},
        ['{"a": [1, 2]}', '```json\n{"a": 1}\n```', "```\n3\n```", "```JSON\n[]"],
        ["{'a': 1}", 'Here: {"a": 1}', "```json\n```"],
    ),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Section", "num_sections": 2},
        ["Section 1\na\nSection 2\nb", "Section1 a Section2"],
        ["Section 1", "Sections a, b"],
    ),
    (
        "detectable_format:number_bullet_lists",
        {"num_bullets": 3},
        ["* a\n* b\n* c", "So:\n- a\n  - b\n* c\nDone."],
        ["* a\n* b", "**a**\n**b**\n**c**", "- a\n- b\n- c\n- d"],
    ),
    (
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        ["*a* and *b c*", "**a** and **b**"],
        ["*a*", "* a\n* b", "** **"],
    ),
    ("detectable_format:title", {}, ["<<A day>>\nOnce"], ["<A day>", "<< >>", "<<A\nday>>"]),
    ("keywords:existence", {"keywords": ["sun", "Moon"]}, ["The moon and the SUN"], ["The sun"]),
    (
        "keywords:forbidden_words",
        {"forbidden_words": ["art"]},
        ["A party starts"],
        ["Art for all", "an art."],
    ),
    (
        "keywords:frequency",
        {"keyword": "sun", "frequency": 2, "relation": "less than"},
        ["no", "Sun"],
        ["sun, SUN"],
    ),
    (
        "keywords:letter_frequency",
        {"letter": "e", "let_frequency": 2, "let_relation": "at least"},
        ["EvEr"],
        ["a bed"],
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "later"},
        ["First.\n\nLater, more", '\n\na\n\n"Later" b\n'],
        ["Later", "a\n\nb", "a\n\nb\n\nlater", "Later\n\na"],
    ),
    (
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 2},
        ["one *** two", "one\n***\ntwo\n***\n"],
        ["one", "one *** *** two", "a *** b *** c"],
    ),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 2, "relation": "exactly"},
        ["One. Two!", 'He said "go." Then 3.5 came', "One?\n\nTwo"],
        ["One", "a. b. c."],
    ),
    (
        "length_constraints:number_words",
        {"num_words": 3, "relation": "at most"},
        ["one, two three!", "a"],
        ["one two three four"],
    ),
    (
        "length_constraints:number_words",
        {"num_words": 3.0, "relation": "less than"},
        ["one two"],
        ["one two three"],
    ),
    ("punctuation:no_comma", {}, ["a; b"], ["a, b"]),
    ("startend:end_checker", {"end_phrase": "That is ALL."}, ['So. that is all."'], ["That is all. Bye"]),
    ("startend:quotation", {}, [' "all of it" '], ['"', '"begun', "said"]),
]


def share(instructions, completion, prompt="p", score=followed_instructions):
    columns = {
        "instruction_id_list": [[name for name, _ in instructions]],
        "kwargs": [[arguments for _, arguments in instructions]],
    }
    return score([prompt], [completion], completion_ids=[[]], columns=columns)[0]


@pytest.mark.parametrize(("name", "arguments", "good", "bad"), CASES)
def test_an_instruction_is_checked_as_its_name_says(name, arguments, good, bad):
    for text in good:
        assert share([(name, arguments)], text) == 1.0, text
    for text in [*bad, "", " \n"]:
        assert share([(name, arguments)], text) == 0.0, text


def test_every_instruction_has_a_case():
    assert {name for name, *_ in CASES} == set(CHECKS)


def test_the_score_is_the_share_of_a_rows_instructions_or_whether_all_are_followed():
    both = [("punctuation:no_comma", {}), ("change_case:english_capital", {})]
    assert share(both, "NO COMMA") == 1.0
    assert share(both, "no comma") == 0.5
    assert share(both, "no, comma") == 0.0
    assert share(both, "NO COMMA", score=every_instruction) == 1.0
    assert share(both, "no comma", score=every_instruction) == 0.0
    assert share([], "text") is None and share([], "text", score=every_instruction) is None
    assert load_function("jaxalign.rewards.instructions:followed_instructions") is followed_instructions


def test_arguments_that_are_null_were_not_given():
    given = {"num_words": 3, "relation": "less than", "keyword": None, "num_bullets": None}
    assert share([("length_constraints:number_words", given)], "one two") == 1.0


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        (
            "language:response_language",
            {"language": "de"},
            "'language:response_language' is unknown; known: change",
        ),
        (
            "length_constraints:number_words",
            {"num_words": 3},
            r"expected \['num_words', 'relation'\].*got \['num_w",
        ),
        ("punctuation:no_comma", {"n": 1}, r"expected no arguments in 'kwargs', got \['n'\]"),
        (
            "detectable_format:number_bullet_lists",
            {"num_bullets": "3"},
            "num_bullets must be a whole number, got '3'",
        ),
        ("detectable_format:number_bullet_lists", {"num_bullets": 2.5}, "num_bullets must be a whole number"),
        ("keywords:existence", {"keywords": "sun"}, "keywords must be a list of strings, got 'sun'"),
        ("startend:end_checker", {"end_phrase": 3}, "end_phrase must be a string, got 3"),
        (
            "length_constraints:number_words",
            {"num_words": 3, "relation": "about"},
            r"relation must be one of \['less than', 'at least', 'at most', 'exactly'\], got 'about'",
        ),
    ],
)
def test_an_unknown_instruction_or_argument_is_refused_by_name(name, arguments, message):
    with pytest.raises(UserError, match=message):
        share([(name, arguments)], "text")


def test_columns_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match=r"no column 'instruction_id_list'; columns: \['kwargs'\]"):
        followed_instructions(["p"], ["t"], completion_ids=[[]], columns={"kwargs": [[]]})
    columns = {"instruction_id_list": [["punctuation:no_comma"]], "kwargs": [[{}, {}]]}
    with pytest.raises(UserError, match="1 in 'instruction_id_list', 2 in 'kwargs'"):
        followed_instructions(["p"], ["t"], completion_ids=[[]], columns=columns)
    with pytest.raises(UserError, match="expected lists"):
        followed_instructions(["p"], ["t"], completion_ids=[[]], columns={"instruction_id_list": ["no"]})


def test_the_columns_come_from_a_file(tmp_path, byte_tokenizer):
    """Through the reader that the trainers use."""
    from jaxalign.data import DataConfig, load_dataset

    row = {
        "key": 1000,
        "prompt": "Write two lines without a comma.",
        "instruction_id_list": ["punctuation:no_comma"],
        "kwargs": [{}],
    }
    file = tmp_path / "ifeval.jsonl"
    file.write_text(json.dumps(row) + "\n")
    data = DataConfig(train=(str(file),), template="plain", validation_fraction=0.0)
    records = load_dataset(data, "prompt", byte_tokenizer, seed=0).train
    columns = {name: [value] for name, value in records[0].columns.items()}
    assert followed_instructions(["p"], ["a b"], completion_ids=[[]], columns=columns) == [1.0]
