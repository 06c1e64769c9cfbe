"""MT-bench's files are read, and its prompts filled, as published."""

import json
import re
from pathlib import Path

import pytest

from jaxalign.errors import DataError
from jaxalign.evaluation.judging.mt_bench import (
    WITH_REFERENCE,
    BenchQuestion,
    JudgePrompt,
    pair_messages,
    rating_messages,
    read_answers,
    read_judge_prompts,
    read_questions,
)

REAL = Path(__file__).resolve().parents[4] / "shared/data/evaluation"
QUESTION = {"question_id": 1, "category": "writing", "turns": ["One?", "Two?"]}
ANSWER = {"question_id": 1, "choices": [{"index": 0, "turns": ["first", "second"]}]}
PROMPT = {
    "name": "single-v1",
    "system_prompt": "Judge.",
    "prompt_template": "Q {question} A {answer}",
    "output_format": "[[rating]]",
}


def lines(folder, *rows, name="rows.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def prompts(**templates):
    found = {}
    for name, template in templates.items():
        name = name.replace("_", "-")
        verdict = "choice" if name.startswith("pair") else "rating"
        found[name] = JudgePrompt(name=name, system="S", template=template, verdict=verdict, place="p:1")
    return found


def question(category="writing", reference=(), turns=("One?", "Two?")):
    return BenchQuestion(place="q:1", question_id=1, category=category, turns=turns, reference=reference)


def said(messages):
    assert [message["role"] for message in messages] == ["system", "user"]
    return messages[-1]["content"]


def test_questions_take_the_references_of_their_category(tmp_path):
    path = lines(tmp_path, QUESTION, QUESTION | {"question_id": 2, "category": "math"})
    answered = [ANSWER | {"question_id": n} for n in (1, 2)]
    references = lines(tmp_path, *answered, name="references.jsonl")
    one, two = read_questions(path, references)
    assert (one.question_id, one.turns, one.reference) == (1, ("One?", "Two?"), ())
    assert (two.category, two.reference) == ("math", ("first", "second"))
    assert [x.reference for x in read_questions(path)] == [(), ()]
    only_one = lines(tmp_path, ANSWER, name="references.jsonl")
    with pytest.raises(DataError, match=r"references\.jsonl: .* 2 turns of question 2 \(math\), got 0"):
        read_questions(path, only_one)


def test_an_answer_may_be_empty_and_the_first_choice_counts(tmp_path):
    row = ANSWER | {"choices": [{"turns": ["", "b"]}, {"turns": ["c", "d"]}]}
    assert read_answers(lines(tmp_path, row)) == {1: ("", "b")}


@pytest.mark.parametrize(
    ("read", "row", "change", "message"),
    [
        (read_questions, QUESTION, {"question_id": 2, "turns": []}, "expected a list of texts in 'turns'"),
        (
            read_questions,
            QUESTION,
            {"question_id": 2, "turns": ["a"] * 3},
            "expected one or two texts in 'turns', got 3",
        ),
        (read_questions, QUESTION, {"question_id": 2, "category": None}, "expected a text in 'category'"),
        (
            read_questions,
            QUESTION,
            {"question_id": None},
            "expected a number or a text in 'question_id', got None",
        ),
        (read_questions, QUESTION, {}, "question 1 stands at "),
        (read_answers, ANSWER, {}, "question 1 is answered twice"),
        (
            read_answers,
            ANSWER,
            {"question_id": 2, "choices": []},
            "expected a list of texts in 'turns' of the first",
        ),
        (
            read_answers,
            ANSWER,
            {"question_id": 2, "choices": [{"turns": [1]}]},
            "expected a list of texts in 'turns'",
        ),
        (read_judge_prompts, PROMPT, {}, "prompt single-v1 comes twice"),
        (
            read_judge_prompts,
            PROMPT,
            {"name": "x", "output_format": "[[rating_a,rating_b]]"},
            "expected one of [[rating]], [[A]] in 'output_format', got '[[rating_a,rating_b]]'",
        ),
        (
            read_judge_prompts,
            PROMPT,
            {"name": "x", "prompt_template": "{question} {answer_a}"},
            "'prompt_template' has {answer_a}, which there is nothing for",
        ),
        (
            read_judge_prompts,
            PROMPT,
            {"name": "x", "prompt_template": "{question"},
            "'prompt_template' is no template",
        ),
        (
            read_judge_prompts,
            PROMPT,
            {"name": "x", "prompt_template": "a {} b"},
            "'prompt_template' is no template",
        ),
    ],
)
def test_a_wrong_row_is_named(read, row, change, message, tmp_path):
    with pytest.raises(DataError, match=rf"rows\.jsonl:2: {re.escape(message)}"):
        read(lines(tmp_path, row, row | change))


def test_the_first_turn_is_rated_alone_and_the_second_with_the_conversation():
    table = prompts(
        single_v1="{question}|{answer}",
        single_v1_multi_turn="{question_1}|{answer_1}|{question_2}|{answer_2}",
    )
    assert said(rating_messages(question(), ["a", "b"], 1, table)) == "One?|a"
    assert said(rating_messages(question(), ["a", "b"], 2, table)) == "One?|a|Two?|b"


def test_braces_in_an_answer_stay_as_they_are():
    table = prompts(single_v1="{question}|{answer}")
    assert said(rating_messages(question(), ["{question} {x} {", "b"], 1, table)) == "One?|{question} {x} {"


@pytest.mark.parametrize("category", WITH_REFERENCE)
def test_what_can_be_right_or_wrong_is_judged_by_a_reference(category):
    table = prompts(
        single_math_v1="{question}|{ref_answer_1}|{answer}",
        pair_math_v1_multi_turn="{ref_answer_1}|{ref_answer_2}|{answer_a_1}|{answer_a_2}|{answer_b_1}|{answer_b_2}",
    )
    asked = question(category, ("r1", "r2"))
    assert said(rating_messages(asked, ["a", "b"], 1, table)) == "One?|r1|a"
    assert said(pair_messages(asked, ["a", "b"], ["c", "d"], 2, table)) == "r1|r2|a|b|c|d"
    with pytest.raises(DataError, match=rf"q:1: question 1 \({category}\) is judged by a reference answer"):
        rating_messages(question(category), ["a", "b"], 1, table)


def test_the_two_sides_of_a_pair_are_not_exchanged():
    table = prompts(pair_v2="{question}|{answer_a}|{answer_b}")
    assert said(pair_messages(question(), ["a", ""], ["b", ""], 1, table)) == "One?|a|b"


def test_a_prompt_without_a_system_text_has_one_message():
    bare = JudgePrompt(name="single-v1", system=" ", template="{answer}", verdict="rating")
    assert rating_messages(question(), ["a"], 1, {"single-v1": bare}) == [{"role": "user", "content": "a"}]


def test_what_lacks_is_named():
    table = prompts(single_v1="{question}|{answer}|{ref_answer_1}")
    with pytest.raises(DataError, match=r"p:1: prompt single-v1 has \{ref_answer_1\}"):
        rating_messages(question(), ["a", "b"], 1, table)
    with pytest.raises(DataError, match=r"expected a judge prompt single-v1-multi-turn .* got single-v1"):
        rating_messages(question(), ["a", "b"], 2, table)
    with pytest.raises(DataError, match="question 1 has 2 turns and 0 answers; expected 1 of each"):
        rating_messages(question(), [], 1, prompts(single_v1="{answer}"))
    with pytest.raises(DataError, match="question 1 has 1 turns and 2 answers; expected 2 of each"):
        rating_messages(question(turns=("One?",)), ["a", "b"], 2, prompts(single_v1_multi_turn="{answer_2}"))
    with pytest.raises(ValueError, match="turn must be 1 or 2"):
        rating_messages(question(), ["a", "b"], 3, table)


@pytest.mark.skipif(not REAL.is_dir(), reason="needs the real files")
def test_every_turn_of_the_real_questions_can_be_asked():
    questions = read_questions(
        str(REAL / "mt_bench_question.jsonl"), str(REAL / "mt_bench_reference_gpt4.jsonl")
    )
    table = read_judge_prompts(str(REAL / "mt_bench_judge_prompts.jsonl"))
    assert (len(questions), len(table)) == (56, 8)
    assert sum(bool(one.reference) for one in questions) == 21
    used = set()
    for one in questions:
        for turn in (1, 2):
            rated = rating_messages(one, ["mine 1", "mine 2"], turn, table)[-1]["content"]
            paired = pair_messages(one, ["mine 1", "mine 2"], ["hers 1", "hers 2"], turn, table)
            by = one.category in WITH_REFERENCE
            for text in (rated, paired[-1]["content"]):
                assert one.turns[turn - 1] in text and f"mine {turn}" in text
                assert ("Reference Answer" in text) == by
                assert not by or one.reference[turn - 1] in text
                assert ("mine 2" in text) == (turn == 2)
            assert f"hers {turn}" in paired[-1]["content"] and "[[C]]" in paired[0]["content"]
            used |= {name for name, prompt in table.items() if prompt.system == paired[0]["content"]}
    assert used == {name for name in table if name.startswith("pair")}


@pytest.mark.skipif(not REAL.is_dir(), reason="needs the real files")
def test_a_real_prompt_is_filled_as_published():
    table = read_judge_prompts(str(REAL / "mt_bench_judge_prompts.jsonl"))
    (system, user) = pair_messages(question(), ["mine", ""], ["hers", ""], 1, table)
    assert system["content"].startswith("Please act as an impartial judge")
    assert user["content"] == (
        "[User Question]\nOne?\n\n[The Start of Assistant A's Answer]\nmine\n[The End of Assistant A's Answer]\n\n"
        "[The Start of Assistant B's Answer]\nhers\n[The End of Assistant B's Answer]"
    )


@pytest.mark.skipif(not REAL.is_dir(), reason="needs the real files")
def test_questions_of_one_turn_are_read_too():
    questions = read_questions(str(REAL / "vicuna_bench_question.jsonl"))
    assert len(questions) == 80 and {len(one.turns) for one in questions} == {1}
