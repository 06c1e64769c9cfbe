"""Settings of reading, labels that demonstrations would ignore, and the reader of a file."""

import pickle

import pytest

from jaxalign.data.config import DataConfig
from jaxalign.data.fields import BadRow, Unusable
from jaxalign.data.formats import FORMATS
from jaxalign.data.readers import Counts, Reading, read_records, reader_for, reading_of
from jaxalign.data.records import Comparison, Ranking
from jaxalign.errors import DataError, ModelError
from tests.data.layout_parts import HI, RATED, A, U


def read(path, kind=None, on_bad_row="stop", **settings):
    return read_records(path, reading=reading_of(DataConfig(**settings)), kind=kind, on_bad_row=on_bad_row)


def prompts(records):
    return [record.prompt for record in records]


def test_several_files_are_read_in_order(write):
    one, two = write([{"prompt": "a", "completion": "x"}], "1.jsonl"), write([{"messages": HI}], "2.json")
    records, counts = read_records([one, two])
    assert prompts(records) == ["a", (U("Hi"), A("Hello"))]
    assert counts.read == 2


def test_columns_map_any_file_to_any_kind(write):
    row = {"question": "Q", "better": "c", "answers": [{"text": "r"}], "id": 1}
    columns = {"prompt": "question", "chosen": "better", "rejected": "answers.0.text"}
    ((record,), counts) = read(write([row]), columns=columns, kind="comparison")
    assert (record.prompt, record.chosen, record.rejected) == ("Q", "c", "r")
    assert counts.unread == {"id": 1}
    steps = {"q": "Q", "parts": ["a", "b"], "good": [1, 0]}
    mapped = {"prompt": "q", "completions": "parts", "labels": "good"}
    ((record,), _) = read(write([steps], "steps.jsonl"), columns=mapped, kind="stepwise")
    assert (record.steps, record.labels) == (("a", "b"), (1.0, 0.0))


INSIDE = {"question": "Q", "system": "Be a pirate.", "label": False, "lang": "en"}


@pytest.mark.parametrize("name", ["meta.system", "meta.label"])
def test_what_stands_beside_a_mapped_part_is_judged_by_its_name(write, name):
    path = write([{"meta": INSIDE, "completion": "C"}])
    others = {"meta.system", "meta.label"} - {name}
    with pytest.raises(DataError, match=f"would leave unread '{name}'"):
        read(path, columns={"prompt": "meta.question"}, ignore_columns=tuple(others))
    ((record,), counts) = read(path, columns={"prompt": "meta.question"}, ignore_columns=(name, *others))
    assert record.prompt == "Q"
    assert record.columns == {"meta.lang": "en", "meta.system": "Be a pirate.", "meta.label": False}
    assert counts.unread == {"meta.lang": 1}


def test_whole_column_may_be_ignored_beside_its_mapped_part(write):
    path = write([{"meta": INSIDE, "completion": "C"}])
    ((record,), counts) = read(path, columns={"prompt": "meta.question"}, ignore_columns=("meta",))
    assert (record.prompt, record.columns, counts.unread) == ("Q", {"meta": INSIDE}, {})


def test_what_stands_beside_mapped_items_of_a_list_is_judged_and_counted(write):
    answers = [{"text": "a", "is_correct": False, "by": "m"}, {"text": "b"}, {"text": "c"}]
    columns = {"prompt": "q", "chosen": "answers.0.text", "rejected": "answers.1.text"}
    path = write([{"q": "Q", "answers": answers}])
    with pytest.raises(DataError, match=r"would leave unread 'answers.0.is_correct' .a label or a score"):
        read(path, columns=columns)
    for ignored in ("answers.0.is_correct", "answers.0"):
        ((record,), counts) = read(path, columns=columns, ignore_columns=(ignored,))
        assert (record.chosen, record.rejected) == ("a", "b")
        assert counts.unread["answers.2"] == 1


def test_rows_are_kept_by_what_stands_beside_a_mapped_part(write):
    rows = [{"meta": INSIDE | {"label": good, "system": None}, "completion": "C"} for good in (True, False)]
    records, counts = read(write(rows), columns={"prompt": "meta.question"}, keep={"meta.label": True})
    assert (len(records), counts.unread) == (1, {"meta.lang": 1})


def test_columns_may_be_exchanged(write):
    row = {"prompt": "P", "chosen": "worse", "rejected": "better"}
    ((record,), _) = read(write([row]), columns={"chosen": "rejected", "rejected": "chosen"})
    assert (record.chosen, record.rejected) == ("better", "worse")


def test_column_that_is_mapped_but_not_there_is_named(write):
    message = r"rows.jsonl:1: data.columns: prompt: there is no 'qestion' \(no 'qestion'\); the columns are question"
    with pytest.raises(DataError, match=message):
        read(write([{"question": "Q", "answer": "A"}]), columns={"prompt": "qestion"})
    with pytest.raises(DataError, match=r"there is no 'answers.1' \(no '1'\)"):
        read(write([{"question": "Q", "answers": ["A"]}]), columns={"answer": "answers.1"})


def test_column_that_is_mapped_but_not_read_is_refused(write):
    path = write([{"question": "Q", "answer": "A", "note": "n"}])
    with pytest.raises(DataError, match=r"would leave unread 'hint' .mapped to it by data.columns"):
        read(path, columns={"hint": "note"})


def test_column_that_a_mapped_one_would_hide_is_refused(write):
    path = write([{"prompt": "old", "question": "Q", "completion": "C"}])
    with pytest.raises(DataError, match=r"data.columns: prompt: the file also has a column of that name"):
        read(path, columns={"prompt": "question"})
    ((record,), _) = read(path, columns={"prompt": "question"}, ignore_columns=("prompt",))
    assert record.prompt == "Q"
    assert record.columns == {"prompt": "old"}


def test_ignored_column_makes_a_labelled_file_a_plain_one_and_stays_a_column(write):
    row = {"prompt": "P", "completion": "C", "label": False}
    ((record,), counts) = read(write([row]), ignore_columns=("label",), kind="demonstration")
    assert (record.completion, record.columns) == ("C", {"label": False})
    assert not counts.unread


KEPT = [
    ({"is_safe": True}, [True, False, "true", "True", "false", 1, None], [0, 2, 3]),
    ({"is_safe": 3}, [3, 3.0, "3", "3.0", 4, "x", True], [0, 1, 2, 3]),
    ({"is_safe": "yes"}, ["yes", "Yes", True], [0]),
    ({"is_safe": ["a", 1]}, ["a", "b", 1, "1", True], [0, 2, 3]),
    ({"is_safe": None}, [None, "", "x"], [0, 1]),
]


@pytest.mark.parametrize(("keep", "values", "kept"), KEPT)
def test_keep_compares_values_as_json_and_as_csv_write_them(write, keep, values, kept):
    rows = [{"prompt": str(i), "completion": "C", "is_safe": value} for i, value in enumerate(values)]
    records, counts = read(write(rows), keep=keep, kind="demonstration")
    assert prompts(records) == [str(i) for i in kept]
    assert counts.filtered == {"left out by data.keep: is_safe": len(values) - len(kept)}
    assert not counts.unread


def test_kept_column_that_the_file_lacks_is_named(write):
    with pytest.raises(
        DataError, match=r"rows.jsonl:1: data.keep: there is no column 'safe'; the columns are prompt"
    ):
        read(write([{"prompt": "P", "completion": "C"}]), keep={"safe": True})


def test_column_is_used_where_rows_are_kept_by_what_it_holds(write):
    row = {"prompt": "P", "completion": "C", "score": {"help": 3}}
    ((record,), counts) = read(write([row]), keep={"score.help": 3}, kind="demonstration")
    assert record.columns == {"score": {"help": 3}}
    assert not counts.unread


def test_rows_are_kept_by_type_and_by_a_score_inside_a_column(write):
    rows = [
        {"prompt": str(i), "completion": "C", "type": "ab"[i % 2], "meta": {"score": s}}
        for i, s in enumerate((5, 5, "4.5 points", 1, "nothing", float("nan")))
    ]
    records, counts = read(write(rows), types=("a",), min_score=4.0, score_field="meta.score")
    assert prompts(records) == ["0", "2"]
    assert counts.filtered == {"other type": 3, "unscored": 1}


def test_scores_that_are_no_numbers_are_unscored(write):
    scores = [float("nan"), float("inf"), -float("inf"), "NaN", "1e400", 10**400, True, None, "7 or 8", 3]
    rows = [{"prompt": str(i), "completion": "C", "score": score} for i, score in enumerate(scores)]
    records, counts = read(write(rows), min_score=4.0, kind="demonstration")
    assert records == []
    assert counts.filtered == {"unscored": 9, "score below data.min_score": 1}


LABELLED = [
    ({"prompt": "P", "completion": "C", "is_safe": False}, ("is_safe",)),
    ({"prompt": "P", "response": "C"} | RATED, ("helpfulness", "correctness")),
    ({"prompt": "P", "response": "C"} | RATED, ("helpfulness",)),
    ({"conversation": HI, "meta_eval_score": 0.0}, ("meta_eval_score",)),
    ({"instruction": "P", "output": "C", "quality": "bad"}, ("quality",)),
    ({"messages": HI, "score": 0}, ("score",)),
]


@pytest.mark.parametrize(("row", "names"), LABELLED)
def test_labelled_answers_are_not_imitated_without_a_yes(write, row, names):
    path = write([row])
    with pytest.raises(DataError, match=names[0]):
        read(path, kind="demonstration")
    ((record,), _) = read(path, kind="demonstration", ignore_columns=names)
    assert record.columns[names[0]] == row[names[0]]
    ((record,), _) = read(
        path, kind="demonstration", keep={names[0]: row[names[0]]}, ignore_columns=names[1:]
    )
    assert record.source.endswith(":1")


RATES = [
    ("helpsteer", {"prompt": "P", "response": "C"} | RATED | {"helpfulness": 0}, "helpfulness"),
    ("scored_conversation", {"conversation": HI, "meta_eval_score": 0.0}, "meta_eval_score"),
]


@pytest.mark.parametrize(("layout", "row", "name"), RATES)
def test_all_rated_answers_are_taken_where_their_score_is_ignored(write, layout, row, name):
    path = write([row])
    for given in ("auto", layout):
        with pytest.raises(DataError, match=f"column '{name}' says how good the answer is.*to take all"):
            read(path, kind="demonstration", format=given)
        ((record,), _) = read(path, kind="demonstration", format=given, ignore_columns=(name,))
        assert record.score == 0
        assert record.columns[name] == 0


def test_every_format_that_says_how_good_an_answer_is_takes_all_on_request():
    assert {name for name, form in FORMATS.items() if form.says} == {name for name, _, _ in RATES}


OTHER_SCORE = [
    ({"conversation": HI, "meta_eval_score": 9}, "my_score", 1, 5),
    ({"prompt": "P", "response": "C"} | RATED, "quality", 0, 3),
    ({"prompt": "P", "response": "C"} | RATED, "verbosity", 1, 3),
]


@pytest.mark.parametrize(("row", "name", "score", "least"), OTHER_SCORE)
def test_named_score_counts_before_the_one_of_the_layout(write, row, name, score, least):
    rows = [row | {name: score}, row | {name: least}]
    records, counts = read(write(rows), kind="demonstration", min_score=least, score_field=name)
    assert [record.source[-1] for record in records] == ["2"]
    assert counts.filtered == {"score below data.min_score": 1}


@pytest.mark.parametrize("row", [row for row, *_ in OTHER_SCORE] + [{"prompt": "P", "completion": "C"}])
def test_score_that_is_not_there_is_refused(write, row):
    with pytest.raises(DataError, match=r"rows.jsonl:1: data.score_field: there is no column 'nothere'; the"):
        read(write([row]), kind="demonstration", min_score=3, score_field="nothere")


def test_score_that_a_later_row_lacks_is_unscored(write):
    rows = [{"prompt": "P", "completion": "C", "score": 5}, {"prompt": "Q", "completion": "C"}]
    _, counts = read(write(rows), min_score=3)
    assert counts.filtered == {"unscored": 1}


def test_minimal_score_is_a_yes_for_rated_answers(write):
    rows = [
        {"prompt": "P", "response": "C"} | RATED,
        {"prompt": "Q", "response": "C"} | RATED | {"helpfulness": 1},
    ]
    records, counts = read(write(rows), kind="demonstration", min_score=2.0)
    assert prompts(records) == ["P"]
    assert counts.filtered == {"score below data.min_score": 1}


def test_label_of_true_or_false_is_read_and_needs_no_yes(write):
    rows = [{"instruction": "P", "input": "", "output": "C", "kto_tag": tag} for tag in (True, False)]
    records, _ = read(write(rows), kind="demonstration")
    assert [record.label for record in records] == [True, False]


def test_labels_of_a_csv_file_are_read_as_words(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("prompt,completion,label\nP,C,True\nP,D,false\nP,E,0\nP,F,1\n")
    records, _ = read(str(path), kind="label")
    assert [record.label for record in records] == [True, False, False, True]


SCORED = {"prompt": "P", "candidates": ["a", "b", "c"], "scores": [2, 1, 2]}


def test_ranking_with_scores_gives_comparisons_its_best_and_worst(write):
    path = write([SCORED])
    ((record,), _) = read(path, kind="comparison")
    assert record == Comparison("P", "a", "b", 1.0, record.source, record.columns)
    ((record,), _) = read(path)
    assert isinstance(record, Ranking)
    records, counts = read(path, kind="ranking")
    assert records == []
    assert counts.filtered == {"tie for the best": 1}


def test_reader_travels_to_workers_and_counts_for_itself():
    row = {"prompt": "P", "completion": "C", "id": 1}
    reading = reading_of(DataConfig(label_tokenizer="none/such", keep={"id": [1, 2]}))
    reader = pickle.loads(pickle.dumps(reader_for("f", "f:1", row, reading, "demonstration")))
    assert reader.read("f:9", row | {"more": "x"}).source == "f:9"
    assert reader.unread == {"more": 1}
    with pytest.raises(Unusable, match=r"left out by data.keep: id"):
        reader.read("f:10", row | {"id": 3})
    with pytest.raises(BadRow, match=r"expected the field 'completion' of the format prompt_completion"):
        reader.read("f:11", {"prompt": "P", "id": 1})


def test_first_row_that_is_bad_is_counted_when_it_is_read(write):
    rows = [{"prompt": "P", "chosen": 3, "rejected": "r"}, {"prompt": "P", "chosen": "c", "rejected": "r"}]
    records, counts = read(write(rows), on_bad_row="skip")
    assert len(records) == 1
    assert counts.filtered == {"bad row": 1}
    with pytest.raises(DataError, match=r"rows.jsonl:1: field 'chosen'"):
        read(write(rows))


def test_first_row_does_not_count_twice(write):
    _, counts = read(write([{"prompt": "P", "completion": "C", "id": 1}] * 3))
    assert counts.unread == {"id": 3}


def test_label_tokenizer_is_loaded_when_ids_come_and_named_when_it_is_not_there(write, tmp_path):
    ids = {"query": [1], "sample0": [2], "sample1": [3], "best": 0}
    text = {"query": "q", "sample0": "a", "sample1": "b", "best": 0}
    missing = str(tmp_path / "none")
    assert read(write([text]), label_tokenizer=missing)[1].used == 1
    with pytest.raises(ModelError, match=r"data.label_tokenizer: .*none"):
        read(write([ids], "ids.jsonl"), label_tokenizer=missing)


def test_label_tokenizer_decodes_ids(write, tmp_path, plain_bytes):
    plain_bytes.save_pretrained(tmp_path / "tokenizer")
    ids = [plain_bytes(text)["input_ids"] for text in ("hi", "yes", "no")]
    row = {"query": ids[0], "sample0": ids[1], "sample1": ids[2], "best": 1}
    ((record,), _) = read(write([row]), label_tokenizer=str(tmp_path / "tokenizer"))
    assert (record.prompt, record.candidates) == ("hi", ("yes", "no"))


def test_unknown_format_is_refused_by_the_configuration():
    with pytest.raises(DataError, match=r"data.format: 'hh' is unknown; expected auto or one of"):
        Reading(format="hh")


def test_summary_has_unread_columns_and_notes_only_where_there_are_some():
    counts = Counts(2, 2)
    assert counts.summary() == {"read": 2, "used": 2, "filtered": {}}
    counts.unread.update({"b": 1, "a": 2})
    counts.notes.update({"late": 1})
    assert counts.summary()["unread_columns"] == {"a": 2, "b": 1}
    assert counts.summary()["notes"] == {"late": 1}
