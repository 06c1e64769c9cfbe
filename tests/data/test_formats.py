"""Each published layout is found, read and told of; what no format reads whole is refused."""

import json

import pytest

from jaxalign.data import Demonstration, Message, Options, PromptRecord, Ranking, Rating, detect, read_records
from jaxalign.data.formats import FORMATS, BadRow, Unusable
from jaxalign.data.readers import Reading, reader_for
from jaxalign.errors import DataError
from tests.data.layout_parts import GO, HI, A, S, T, U
from tests.data.layouts import LAYOUTS, PAGE, with_table

READ = [layout for layout in LAYOUTS if not isinstance(layout.becomes, str)]
REFUSED = [layout for layout in LAYOUTS if isinstance(layout.becomes, str)]


def by_name(layouts):
    return pytest.mark.parametrize("layout", layouts, ids=[layout.name for layout in layouts])


def content(record):
    fields = {name: value for name, value in vars(record).items() if name not in ("source", "columns")}
    return type(record), fields


def row_of(format_name):
    return next(layout.row for layout in READ if layout.format == format_name)


@by_name(READ)
def test_layout_is_found_and_read_and_what_it_leaves_is_counted(write, layout):
    path = write([layout.row, *layout.more])
    given = {"columns": layout.columns, "ignore_columns": layout.ignore, **layout.options}
    (found,), counts = read_records(path, reading=Reading(**given), kind=layout.kind)
    (named,), _ = read_records(path, reading=Reading(format=layout.format, **given), kind=layout.kind)
    assert content(found) == content(named) == content(layout.becomes)
    assert found.source == f"{path}:1"
    assert counts.unread == dict.fromkeys(layout.unread, 1)


@by_name(REFUSED)
def test_layout_without_a_reader_is_refused_by_name(write, layout):
    with pytest.raises(DataError, match=r"rows.jsonl:1: ") as caught:
        read_records(write([layout.row]))
    assert layout.becomes in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_page_has_the_table_of_layouts():
    page = PAGE.read_text(encoding="utf-8")
    assert with_table(page) == page, "run: python -m tests.data.layouts --write"


def test_every_format_is_found_in_a_row_of_its_own():
    # The pairs of a question and an answer are made alike; one of each is in the table.
    shown = {layout.format for layout in READ}
    for name, form in FORMATS.items():
        if name not in shown:
            row = {field.split("|")[0]: True if "label" in field else "text" for field in form.fields}
            if {"chosen", "rejected"} <= row.keys():
                row |= {"chosen": "c", "rejected": "r"}
            assert detect(row) == name


def test_layout_that_arrow_keeps_as_an_object_of_lists_is_read(write):
    sides = {"role": ["user", "assistant"], "content": ["Hi", "Hello"]}
    answers = {"answer": ["a", "b"], "model": ["m", "n"], "rank": [2.0, 1.0]}
    (chat,), _ = read_records(write([{"messages": sides}]))
    (nectar,), _ = read_records(write([{"prompt": "P", "answers": answers}], "nectar.jsonl"))
    assert content(chat) == content(Demonstration((U("Hi"), A("Hello")), None))
    assert content(nectar) == content(Ranking("P", ("a", "b"), 1, (-2.0, -1.0)))


def test_turns_as_json_in_a_csv_file_are_read(tmp_path):
    path = tmp_path / "rows.csv"
    quoted = json.dumps(HI).replace('"', '""')
    path.write_text(f'messages,id\n"{quoted}",1\n', encoding="utf-8")
    (record,), counts = read_records(str(path))
    assert record.prompt == (U("Hi"), A("Hello"))
    assert counts.unread == {"id": 1}


def test_pku_dimension_chooses_the_label(write):
    (record,), counts = read_records(write([row_of("pku_saferlhf")]), options=Options(dimension="safer"))
    assert (record.chosen, record.rejected) == ("Ask a smith.", "With pins.")
    assert "better_response_id" in counts.unread


@pytest.mark.parametrize(("field", "score"), [("verbosity", 1.0), ("score", 3.0)])
def test_score_field_chooses_among_helpsteers_scores(write, field, score):
    (record,), _ = read_records(
        write([row_of("helpsteer")]), reading=Reading(options=Options(score_field=field))
    )
    assert record.score == score


def test_score_field_chooses_among_ultrafeedbacks_scores(write):
    reading = Reading(options=Options(score_field="overall_score"))
    (record,), _ = read_records(write([row_of("ultrafeedback")]), reading=reading)
    assert (record.best, record.scores) == (1, (7.0, 8.0))


def test_score_that_ultrafeedback_does_not_have_is_refused(write):
    path = write([row_of("ultrafeedback")])
    message = (
        "rows.jsonl:1: data.score_field: there is no 'nothere' in 'completions', which have annotations, "
    )
    for name in ("auto", "ultrafeedback"):
        reading = Reading(options=Options(score_field="nothere"), format=name)
        with pytest.raises(DataError, match=message):
            read_records(path, reading=reading, on_bad_row="skip")


def test_ultrafeedback_without_scores_is_ranked_by_its_mean_rating(write):
    def completion(*ratings):
        return {
            "response": str(ratings),
            "annotations": {str(i): {"Rating": r} for i, r in enumerate(ratings)},
        }

    row = {"instruction": "Do", "completions": [completion("1", "4", "N/A"), completion("3", "3", "3")]}
    (record,), _ = read_records(write([row]))
    assert (record.best, record.scores) == (1, (2.5, 3.0))


def test_token_id_labels_are_decoded(write):
    row = {"query": [1, 2], "sample0": [3], "sample1": [4], "sample2": [5], "sample3": [6, 6], "best": 3}
    path = write([row])
    (record,), _ = read_records(path, options=Options(decode=lambda ids: "-".join(map(str, ids))))
    assert record.prompt == "1-2"
    assert record.candidates == ("3", "4", "5", "6-6")
    with pytest.raises(DataError, match=r"rows.jsonl:1: field .* token ids: set data.label_tokenizer"):
        read_records(path)


def test_hh_transcript_without_leading_blank_lines(write):
    row = {name: value.lstrip() for name, value in row_of("hh_rlhf").items()}
    (record,), _ = read_records(write([row]))
    assert record.prompt == (U("Hi"), A("Hello"), U("Name?"))


def test_answers_of_several_turns_are_kept_as_turns(write):
    call = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"function": {"name": "f", "arguments": {}}}],
    }
    used = [HI[0], call, {"role": "tool", "content": "x"}, {"role": "assistant", "content": "y"}]
    (record,), _ = read_records(write([{"chosen": used, "rejected": GO}]))
    made = {"type": "function", "function": {"name": "f", "arguments": {}}}
    assert record.prompt == (U("Hi"),)
    assert record.chosen == (A("", tool_calls=[made]), T("x"), A("y"))
    assert record.rejected == "Go"


def test_prompt_that_the_dialogues_repeat_with_other_spaces_is_not_doubled(write):
    chosen = [{"role": "user", "content": "What  is\ngout? "}, HI[1]]
    rejected = [chosen[0], GO[1]]
    (record,), _ = read_records(write([{"prompt": "What is gout?", "chosen": chosen, "rejected": rejected}]))
    assert record.prompt == (U("What  is\ngout? "),)


def test_prompt_that_the_dialogues_do_not_repeat_is_a_bad_row(write):
    with pytest.raises(
        DataError, match="field 'prompt': expected the prompt that the turns of 'chosen' repeat"
    ):
        read_records(write([{"prompt": "Other", "chosen": HI, "rejected": GO}]))


def test_context_stays_before_a_question_and_after_an_instruction(write):
    question = {"context": "C", "question": "Q", "answer": "A"}
    instruction = {"instruction": "I", "context": "C", "response": "R"}
    assert read_records(write([question]))[0][0].prompt == "C\n\nQ"
    assert read_records(write([instruction]))[0][0].prompt == "I\n\nC"


def test_blank_parts_of_the_prompt_add_nothing(write):
    row = {"instruction": "Do", "input": " ", "output": "ok", "system": "", "history": [], "tools": None}
    (record,), counts = read_records(write([row]))
    assert content(record) == content(Demonstration("Do", "ok"))
    assert not counts.unread


def test_system_and_history_come_before_any_prompt(write):
    shared = {"system": "Be kind.", "history": [["a", "b"]]}
    before = (S("Be kind."), U("a"), A("b"))
    pair = {"prompt": "P", "chosen": "c", "rejected": "r"} | shared
    good = {"prompt": "P", "completion": "c", "label": True} | shared
    asks = {"prompt": "P"} | shared
    for name, row in (("pair", pair), ("good", good), ("asks", asks)):
        (record,), _ = read_records(write([row], f"{name}.jsonl"))
        assert record.prompt == (*before, U("P"))


def test_system_column_stands_before_a_marked_transcript(write):
    row = {"system": "Be kind.", "prompt": "\n\nHuman: Hi\n\nAssistant:", "chosen": "c", "rejected": "r"}
    (record,), _ = read_records(write([row]))
    assert record.prompt == (S("Be kind."), U("Hi"))


def test_system_column_that_repeats_the_system_turn_is_not_doubled(write):
    turns = [{"role": "system", "content": "Be kind."}, *HI]
    (record,), _ = read_records(write([{"messages": turns, "system": "Be kind."}]))
    assert record.prompt == (S("Be kind."), U("Hi"), A("Hello"))
    with pytest.raises(DataError, match="two different system prompts"):
        read_records(write([{"messages": turns, "system": "Be brief."}]))


def test_functions_are_wrapped_as_tools(write):
    (record,), _ = read_records(write([{"messages": HI, "functions": [{"name": "f"}]}]))
    assert record.prompt[0] == Message("tools", '[{"type": "function", "function": {"name": "f"}}]')
    with pytest.raises(DataError, match="field 'tools': expected JSON, got 'one'"):
        read_records(write([{"messages": HI, "tools": "one"}]))


PART = [
    ({"prompt": "P", "completion": "C", "context": "x"}, "context", "a part of the prompt"),
    ({"prompt": "P", "chosen": "c", "rejected": "r", "question": "x"}, "question", "a part of the prompt"),
    ({"prompt": "P", "completion": "C", "is_safe": False}, "is_safe", "a label or a score"),
    ({"instruction": "P", "output": "C", "Rating": 0}, "Rating", "a label or a score"),
    ({"prompt": "P", "response": "C", "response_2": "x"}, "response_2", "an answer"),
    ({"prompt": "P", "chosen": "c"}, "chosen", "an answer"),
    ({"prompt": "P", "model_outputs": ["x"]}, "model_outputs", "an answer"),
    ({"text": "P", "images": ["x.png"]}, "images", "a part of the prompt"),
    ({"prompt": "P", "corrects": ["x"]}, "corrects", "an answer"),
    ({"messages": HI, "image_path": "x.png"}, "image_path", "a part of the prompt"),
    ({"messages": HI, "videos": ["x"]}, "videos", "a part of the prompt"),
    ({"messages": [HI[0] | {"images": ["x.png"]}, HI[1]]}, "messages.images", "a part of the prompt"),
    ({"conversations": [HI[0], HI[1] | {"label": "q:4"}]}, "conversations.label", "a label or a score"),
]


@pytest.mark.parametrize(("row", "name", "held"), PART, ids=[name for _, name, _ in PART])
def test_column_with_meaning_is_refused_until_it_is_ignored(write, row, name, held):
    path = write([row])
    with pytest.raises(DataError, match="would leave unread") as caught:
        read_records(path)
    assert f"{name!r} ({held})" in str(caught.value)
    assert "\n" not in str(caught.value)
    _, counts = read_records(path, reading=Reading(ignore_columns=(name,)))
    assert counts.used == 1


def test_column_with_meaning_that_comes_later_is_a_bad_row(write):
    rows = [{"prompt": "P", "completion": "C"}, {"prompt": "P", "completion": "C", "context": "x"}]
    with pytest.raises(DataError, match=r"rows.jsonl:2: .* would leave unread 'context'"):
        read_records(write(rows))
    _, counts = read_records(write(rows), on_bad_row="skip")
    assert counts.filtered == {"bad row": 1}


def test_answer_that_the_first_row_lacks_does_not_make_a_file_one_of_prompts(write):
    rows = [
        {"prompt": "P", "chosen": None, "rejected": None},
        {"prompt": "P", "chosen": "c", "rejected": "r"},
    ]
    with pytest.raises(
        DataError, match=r"rows.jsonl:1: field 'chosen': expected a list of messages, got nothing"
    ):
        read_records(write(rows))
    records, counts = read_records(write(rows), on_bad_row="skip")
    assert (len(records), counts.filtered) == (1, {"bad row": 1})


def test_empty_columns_are_neither_refused_nor_counted(write):
    row = {"prompt": "P", "completion": "C", "context": None, "options": [], "score": "", "id": ""}
    _, counts = read_records(write([row]))
    assert counts.summary() == {"read": 1, "used": 1, "filtered": {}}


def test_prompts_leave_labels_and_answers_to_the_reward(write):
    row = {"prompt": "P", "response_1": "a", "score": 3, "label": "x"}
    (record,), _ = read_records(write([row]), kind="prompt")
    assert content(record) == content(PromptRecord("P"))
    assert record.columns == {"response_1": "a", "score": 3, "label": "x"}
    with pytest.raises(DataError, match="'context'"):
        read_records(write([row | {"context": "x"}]), kind="prompt")


def test_prompts_of_questions_keep_the_answer_for_the_reward(write):
    row = {"question": "2+2", "answer": "#### 4", "level": 1}
    (record,), _ = read_records(write([row]), kind="prompt")
    assert record.columns == row
    (record,), _ = read_records(write([row]), kind="demonstration")
    assert record.columns == {"level": 1}


@pytest.mark.parametrize(
    ("row", "kept"),
    [
        ({"prompt": "P", "solution": "4", "task": "math"}, ("solution", "task")),
        ({"prompt": "P", "completion": "C", "label": True}, ("completion", "label")),
        ({"prompt": "P", "chosen": "a", "rejected": "b"}, ("chosen", "rejected")),
        ({"instruction": "P", "input": "", "output": "o"}, ("instruction", "input", "output")),
        ({"messages": [*HI, {"role": "user", "content": "more"}]}, ("messages",)),
    ],
)
def test_prompts_keep_every_column_but_their_own_for_the_reward(row, kept, write):
    (record,), counts = read_records(write([row]), kind="prompt")
    assert record.columns == {name: row[name] for name in kept}
    assert set(counts.unread) <= set(kept)


def test_prompts_of_mapped_columns_keep_them_by_both_names(write):
    row = {"question": "2+2", "answer": "#### 4", "meta": {"level": 1, "text": "x"}}
    columns = {"prompt": "question", "completion": "answer", "hint": "meta.text"}
    (record,), _ = read_records(write([row]), kind="prompt", reading=Reading(columns=columns))
    answers = {"answer": "#### 4", "completion": "#### 4"}
    assert record.columns == answers | {"hint": "x", "meta.level": 1}


BAD = [
    ("preference", {"prompt": "P", "chosen": "c"}, "expected the field 'rejected'"),
    ("preference", {"prompt": "P", "chosen": 3, "rejected": "r"}, "field 'chosen': expected a list of messages"),
    ("preference", {"prompt": "P", "chosen": "a", "rejected": "b", "margin": "x"}, "field 'margin': expected a number"),
    ("preference", {"prompt": "P", "chosen": "a", "rejected": "b", "margin": float("nan")}, "'margin': .* got 'nan'"),
    ("hh_rlhf", {"chosen": "Hello", "rejected": "Go"}, "field 'chosen': expected turns marked by"),
    ("pku_saferlhf", row_of("pku_saferlhf") | {"better_response_id": 2}, r"expected an index in 0\.\.1, got 2"),
    ("best_of_n", row_of("best_of_n") | {"best": 4}, r"'best': expected an index in 0\.\.3, got 4"),
    ("messages", {"messages": [{"role": "wizard", "content": "x"}]}, "message 0: unknown role 'wizard'"),
    ("messages", {"messages": [{"role": "user"}]}, "message 0: expected role and content"),
    ("messages", {"messages": [HI[0], {"role": "assistant", "content": None}]}, "message 1: expected role and content"),
    ("kto", {"prompt": "P", "completion": "C", "label": "maybe"}, "field 'label': expected true or false"),
    ("scored_conversation", {"conversation": HI, "meta_eval_score": "good"}, "'meta_eval_score': expected a number"),
    ("scored_conversation", {"conversation": HI, "meta_eval_score": float("inf")}, "expected a number, got 'inf'"),
    ("scored_conversation", {"conversation": HI[:1], "meta_eval_score": 1}, "the last message to be the assistant's"),
    ("prompt_completion", {"prompt": "P", "completion": None}, "'completion': expected text, got nothing"),
    ("conversations", {"conversations": HI, "mask": "Assistant"}, "field 'mask': expected 'User'"),
    ("alpaca", {"instruction": "D", "output": "o", "history": [["a"]]}, "'history': expected a list of .* pairs"),
    ("helpsteer3", row_of("helpsteer3") | {"overall_preference": 5}, "expected -3 to 3, got 5"),
    ("arena", row_of("arena") | {"winner": "c"}, "'winner': expected model_a, model_b or tie, got 'c'"),
    ("math_shepherd", {"input": "Q Step 1: a ки", "label": "Q Step 1: a *"}, "with [+] or - for each step tag"),
    ("nectar", {"prompt": "P", "answers": [{"answer": "a", "rank": None}]}, "'answers.rank': expected a number"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "row", "message"), BAD, ids=[f"{i}-{r[0]}" for i, r in enumerate(BAD)])
def test_bad_row_stops_with_its_line_or_is_counted(write, name, row, message):
    path = write([row_of(name), row])
    with pytest.raises(DataError, match=message) as caught:
        read_records(path, format=name)
    assert str(caught.value).startswith(f"{path}:2: ")
    assert "\n" not in str(caught.value)
    records, counts = read_records(path, format=name, on_bad_row="skip")
    assert len(records) == 1
    assert counts.filtered == {"bad row": 1}


HH = row_of("hh_rlhf")
UNUSABLE = [
    ({"prompt": "P", "chosen": "same", "rejected": "same"}, "chosen equals rejected"),
    ({**HH, "rejected": "\n\nHuman: Other\n\nAssistant: No"}, "dialogues differ before the last turn"),
    (
        {**HH, "rejected": HH["rejected"] + "\n\nHuman: Oh\n\nAssistant: So"},
        "dialogues differ before the last turn",
    ),
    ({"instruction": "D", "response1": "a", "response2": "b", "annotator1": 1, "annotator2": 2}, "tie"),
    (row_of("helpsteer2_preference") | {"preference_strength": 0}, "tie"),
    (row_of("webgpt") | {"score_0": 0.5}, "tie"),
    (row_of("arena") | {"winner": "tie (bothbad)"}, "tie"),
    (row_of("arena_columns") | {"winner_model_a": 0, "winner_tie": 1}, "tie"),
    (row_of("auto_j") | {"label": 2}, "tie"),
    (row_of("alpaca_eval") | {"preference": 1.5}, "tie"),
    ({"prompt": "P", "candidates": ["a", "b"], "scores": [1, 1]}, "tie"),
    (row_of("squad") | {"answers": {"text": [], "answer_start": []}}, "no answer"),
    ({"messages": HI[:1]}, "no assistant turn"),
]


@pytest.mark.parametrize(("row", "reason"), UNUSABLE)
def test_row_that_says_nothing_is_counted_not_dropped(write, row, reason):
    records, counts = read_records(write([row]))
    assert records == []
    assert counts.summary() == {"read": 1, "used": 0, "filtered": {reason: 1}}


def test_unknown_layout_is_refused_with_what_comes_near(write):
    with pytest.raises(
        DataError, match=r"rows.jsonl:1: no known format has the fields bar, foo; map columns"
    ):
        read_records(write([{"foo": 1, "bar": 2}]))
    with pytest.raises(DataError, match=r"near are webgpt lacks answer_1; .*map columns by data.columns"):
        read_records(write([{"question": "Q", "answer_0": "a", "score_0": 1, "score_1": 0}]))


def test_unknown_format_is_named(write):
    with pytest.raises(DataError, match="'hh' is unknown; expected auto or one of"):
        read_records(write([{"foo": 1}]), format="hh")


BAD_STEPS = [
    ({"completions": ["a", "b"], "labels": [True]}, "'labels': expected one for each of the 2 steps, got 1"),
    ({"completions": [], "labels": []}, "'completions': expected at least one step, got an empty list"),
    ({"completions": ["a"], "labels": [1.5]}, r"'labels': step 1: expected true, .* in \[0, 1\], got 1.5"),
    ({"completions": ["a"], "labels": [float("nan")]}, "'labels': step 1: expected true, .* got nan"),
    ({"completions": ["a", "b"], "labels": [1, -1]}, "'labels': step 2: expected true, .* got -1"),
    ({"completions": ["a"], "labels": ["yes"]}, "'labels': step 1: expected true, .* got 'yes'"),
    ({"completions": ["a", 2], "labels": [1, 1]}, "'completions': step 2: expected text, got int"),
    ({"completions": "a", "labels": [1]}, "'completions': expected a list, one for each step, got str"),
]


@pytest.mark.parametrize(("fields", "message"), BAD_STEPS)
def test_wrong_steps_are_named_by_file_and_line(write, fields, message):
    good = {"prompt": "P", "completions": ["a"], "labels": [True]}
    path = write([good, {"prompt": "P"} | fields])
    with pytest.raises(DataError, match=f"rows.jsonl:2: field {message}"):
        read_records(path)


def test_instances_beyond_the_first_are_counted(write):
    row = {"instruction": "Do", "instances": [{"input": "x", "output": "y"}, {"input": "z", "output": "w"}]}
    _, counts = read_records(write([row]))
    assert counts.unread == {"instances.others": 1}


def test_kto_of_trl_keeps_an_answer_with_a_call_as_turns(write):
    call = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}],
    }
    (record,), _ = read_records(write([{"prompt": HI[:1], "completion": [call], "label": True}]))
    made = {"type": "function", "function": {"name": "f", "arguments": {}}}
    assert content(record) == content(Rating((U("Hi"),), (A("", tool_calls=[made]),), None, True))


ODD = [None, 3, float("nan"), "x", [], {}, [None], {"text": 1}, {"role": "user"}, "[1]", 10**400]


def places(value, path=()):
    """Paths to everything inside of a row."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inside:
        yield (*path, key)
        yield from places(part, (*path, key))


def changed(value, path, odd):
    """A copy of a row with something odd at one place."""
    if not path:
        return odd
    copy = value.copy()
    copy[path[0]] = changed(value[path[0]], path[1:], odd)
    return copy


@by_name(READ)
def test_anything_odd_anywhere_in_a_row_is_one_line_and_no_traceback(layout):
    reading, lines = Reading(format=layout.format, columns=layout.columns), []
    for path in places(layout.row):
        for odd in ODD:
            row = changed(layout.row, path, odd)
            for way in (reading, Reading(columns=layout.columns)):
                try:
                    reader_for("f", "f:1", row, way, layout.kind).read("f:1", row)
                except (DataError, BadRow, Unusable) as error:
                    lines.append(str(error))
    assert lines
    assert not any("\n" in line for line in lines)


def test_answers_that_are_json_themselves_stay_text(write):
    answer = '[{"a": 1}]'
    (record,), _ = read_records(write([{"prompt": "P", "chosen": answer, "rejected": "[{"}]))
    assert (record.chosen, record.rejected) == (answer, "[{")
    (record,), _ = read_records(write([{"prompt": "P", "completion": answer}]))
    assert record.completion == answer


def test_what_is_left_names_formats_that_come_nearer(write):
    with pytest.raises(DataError, match=r"'accepted' .*; near are preference lacks chosen"):
        read_records(write([{"prompt": "P", "accepted": "a", "rejected": "r"}]))
