"""Reading, filtering, splitting and mixing, with every row accounted for."""

import copy
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from jaxalign.data import DataConfig, blocks, columns, examples, load_dataset
from jaxalign.data.readers import score_in
from jaxalign.errors import DataError


def rows(count, start=0, **columns):
    return [
        {"prompt": f"prompt {i}", "completion": f"answer {i}", **columns} for i in range(start, start + count)
    ]


def load(tokenizer, *train, kind="demonstration", seed=0, **settings):
    return load_dataset(DataConfig(train=train, template="plain", **settings), kind, tokenizer, seed=seed)


def prompts(examples):
    return {e.prompt_text for e in examples}


def test_every_row_is_used_or_counted(plain_bytes, write):
    body = rows(20) + rows(3) + [{"prompt": "x", "completion": ""}, {"prompt": "x" * 90, "completion": "y"}]
    data = load(plain_bytes, write(body), max_length=64, validation_fraction=0.3)
    assert data.counts.summary() == {
        "read": 25,
        "used": 20,
        "filtered": {"duplicate": 3, "no completion token": 1, "prompt too long": 1},
    }
    assert len(data.train) + len(data.validation) == 20
    assert data.validation


def test_rows_cut_to_length_are_counted(plain_bytes, write):
    body = rows(6) + [{"prompt": "x", "completion": "y" * 90}]
    data = load(plain_bytes, write(body), max_length=64, truncation="cut_completion", validation_fraction=0.0)
    assert data.summary()["truncated"] == 1
    assert data.summary()["used"] == 7


def test_split_goes_by_the_prompt_alone(plain_bytes, write):
    twice = [{**row, "completion": row["completion"] + end} for row in rows(60) for end in (" a", " b")]
    whole = load(plain_bytes, write(twice), validation_fraction=0.25)
    assert not prompts(whole.train) & prompts(whole.validation)
    assert len(whole.validation) == 2 * len(prompts(whole.validation))
    assert 5 <= len(prompts(whole.validation)) <= 25
    # Other rows, another order and another seed move no prompt.
    part = load(plain_bytes, write(rows(40, start=20)[::-1], "part.jsonl"), validation_fraction=0.25, seed=9)
    assert prompts(part.validation) == {p for p in prompts(whole.validation) if int(p.split()[1]) >= 20}


def test_training_rows_that_repeat_a_validation_row_are_left_out(plain_bytes, write):
    held = write(rows(3), "held.jsonl")
    data = load(plain_bytes, write(rows(10)), validation=(held,))
    assert len(data.validation) == 3
    assert prompts(data.train) == {f"prompt {i}" for i in range(3, 10)}
    assert data.counts.filtered == {"duplicate": 3}
    assert data.counts.read == 13


def test_weights_repeat_and_thin_out_files(plain_bytes, write):
    a, b = write(rows(50), "a.jsonl"), write(rows(200, start=100), "b.jsonl")
    data = load(plain_bytes, a, b, weights=(2.0, 0.25), validation_fraction=0.0)
    copies = Counter(e.source.split(":")[0] for e in data.train)
    assert copies[a] == 100
    assert 25 <= copies[b] <= 80
    assert data.counts.read == 250
    assert data.counts.filtered["left out by weight"] == 200 - copies[b]
    again = load(plain_bytes, a, b, weights=(2.0, 0.25), validation_fraction=0.0)
    assert again.fingerprint == data.fingerprint


def test_limit_keeps_so_many_rows_and_counts_the_rest(plain_bytes, write):
    data = load(plain_bytes, write(rows(30)), limit=12, validation_fraction=0.0)
    assert len(data.train) == 12
    assert data.counts.filtered == {"over data.limit": 18}
    assert data.counts.read == 30
    assert len(load(plain_bytes, write(rows(30)), limit=30, validation_fraction=0.0).train) == 30


def test_blank_lines_do_not_count_for_the_limit(plain_bytes, tmp_path):
    path = tmp_path / "blank.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n \n" for row in rows(100)))
    for limit in (1, 10):
        data = load(plain_bytes, str(path), limit=limit, validation_fraction=0.0)
        assert len(data.train) == data.counts.used == limit
        assert data.counts.read == 100
        assert all(int(example.source.rpartition(":")[2]) % 2 for example in data.train)


def test_a_file_that_is_named_twice_is_known_by_all_that_it_gives(plain_bytes, write):
    path = write(rows(20))
    data = load(plain_bytes, path, path, limit=15, validation_fraction=0.0)
    prints = [store.fingerprint for store in data.train.table.stores]
    assert len(set(prints)) == 2
    assert data.files[path] not in prints
    twice = load(plain_bytes, path, path, validation_fraction=0.0)
    assert twice.files == load(plain_bytes, path, validation_fraction=0.0).files


def test_limit_is_of_the_rows_of_all_files_evenly_and_mostly_the_same_where_one_grows(plain_bytes, write):
    a, b, held = (
        write(rows(300), "a.jsonl"),
        write(rows(900, start=1000), "b.jsonl"),
        write(rows(9, 5000), "h.jsonl"),
    )
    data = load(plain_bytes, a, b, limit=400, validation=(held,))
    assert len(data.train) == 400
    assert len(data.validation) == 9
    files = Counter(e.source.split(":")[0] for e in data.train)
    assert 70 < files[a] < 130
    numbers = [int(e.source.split(":")[1]) for e in data.train if e.source.startswith(b)]
    assert sum(number <= 450 for number in numbers) == pytest.approx(150, abs=30)
    b = write([*rows(900, start=1000), *rows(60, start=3000)], "b.jsonl")
    grown = load(plain_bytes, a, b, limit=400, validation=(held,))
    assert len(prompts(grown.train) & prompts(data.train)) > 370


def test_limit_applies_before_anything_is_parsed_or_tokenized(plain_bytes, write, monkeypatch):
    body = "".join(json.dumps(row) + "\n" for row in rows(30)) + "no JSON\n" * 30
    path = write([])
    Path(path).write_text(body)
    asked = []
    monkeypatch.setattr(
        blocks, "drafts_of", lambda r, *a, **o: asked.append(r) or examples.drafts_of(r, *a, **o)
    )
    data = load(plain_bytes, path, limit=12, validation_fraction=0.0, on_bad_row="skip")
    malformed = data.counts.filtered["malformed line"]
    assert len(asked) == 12 - malformed == len(data.train)
    assert data.counts.filtered["over data.limit"] == 48


def test_what_a_weight_keeps_follows_the_rows_and_not_the_path(plain_bytes, write, tmp_path, monkeypatch):
    body = rows(200)
    path = write(body)
    kept = prompts(load(plain_bytes, path, weights=(0.5,), validation_fraction=0.0).train)
    assert 70 < len(kept) < 130
    monkeypatch.chdir(tmp_path)
    for name in ("rows.jsonl", "./rows.jsonl", write(body[::-1], "other.jsonl")):
        assert prompts(load(plain_bytes, name, weights=(0.5,), validation_fraction=0.0).train) == kept
    other = load(plain_bytes, path, weights=(0.5,), validation_fraction=0.0, seed=1)
    assert prompts(other.train) != kept
    # Equal rows are drawn for one by one.
    same = load(plain_bytes, write(rows(1) * 200), weights=(0.5,), validation_fraction=0.0, deduplicate=False)
    assert 70 < len(same.train) < 130


def test_a_row_that_two_files_share_stays_in_the_first(plain_bytes, write):
    a, b = write(rows(6), "a.jsonl"), write([*rows(4, start=4), *rows(1, start=7)], "b.jsonl")
    data = load(plain_bytes, a, b, validation_fraction=0.0)
    assert [e.source.split("/")[-1] for e in data.train][-2:] == ["b.jsonl:3", "b.jsonl:4"]
    assert data.counts.filtered == {"duplicate": 3}
    everything = load(plain_bytes, a, b, validation_fraction=0.0, deduplicate=False)
    assert len(everything.train) == 11


def test_equal_digests_are_told_apart_by_the_other_half(plain_bytes, write, monkeypatch):
    digests = columns._digests

    def half(*parts):
        found = digests(*parts).copy()
        found[:, 0] = 7
        return found

    monkeypatch.setattr(columns, "_digests", half)
    data = load(plain_bytes, write([*rows(9), *rows(4)]), validation_fraction=0.0, max_length=40)
    assert len(data.train) == 9
    assert data.counts.filtered == {"duplicate": 4}


def test_a_row_of_several_examples_is_counted_once(plain_bytes, write):
    rewriting = copy.deepcopy(plain_bytes)
    mark = "{{ '!' if loop.last and m['role'] == 'assistant' else '' }}"
    rewriting.chat_template = (
        "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}" + mark + "{% endfor %}"
    )

    def chat(*said):
        turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]
        return {"messages": turns}

    path = write([chat("q1", "aa", "more", "bb"), chat("q1", "aa", "again", "cc"), chat("q2", "dd")])
    config = DataConfig(train=(path,), validation_fraction=0.0)
    data = load_dataset(config, "demonstration", rewriting, seed=0)
    assert [e.source.split(":")[-1] for e in data.train] == ["1", "1", "2", "3"]
    assert (data.counts.read, data.counts.used, dict(data.counts.filtered)) == (3, 3, {})
    assert data.counts.notes["part of a row left out: duplicate"] == 1
    weighed = load_dataset(replace(config, weights=(2.0,)), "demonstration", rewriting, seed=0)
    assert len(weighed.train) == 8
    assert weighed.counts.used == 3


def test_prompts_that_training_shares_with_the_validation_files_are_counted(plain_bytes, write):
    held = write([{"prompt": f"prompt {i}", "completion": "other"} for i in (1, 2, 70)], "held.jsonl")
    data = load(plain_bytes, write(rows(10)), validation=(held,))
    assert data.shared_prompts == 2
    assert data.summary()["shared_prompts"] == 2
    assert "shared_prompts" not in load(plain_bytes, write(rows(10))).summary()


def test_files_are_known_by_what_they_give(plain_bytes, write):
    one, copy, held = write(rows(10)), write(rows(10), "copy.jsonl"), write(rows(2, start=50), "held.jsonl")
    files = load(plain_bytes, one, validation=(held,)).summary()["files"]
    assert set(files) == {one, held}
    assert load(plain_bytes, copy).files == {copy: files[one]}
    # White space in a file changes nothing that it gives.
    Path(copy).write_text(
        "".join(json.dumps(row, indent=None, separators=(" , ", " : ")) + "\n" for row in rows(10))
    )
    assert load(plain_bytes, copy).files == {copy: files[one]}
    assert load(plain_bytes, write([*rows(9), *rows(1, start=99)])).files != {one: files[one]}


SCORES = [5, "4", "The answer earns 4.5 points.", "nothing to say", None, 2, True]


def test_score_in_prose_is_read_and_a_row_without_one_is_counted(plain_bytes, write):
    body = [{**row, "score": score} for row, score in zip(rows(7), SCORES, strict=True)]
    data = load(plain_bytes, write(body), min_score=4.0, validation_fraction=0.0)
    assert prompts(data.train) == {"prompt 0", "prompt 1", "prompt 2"}
    assert data.counts.filtered == {"unscored": 3, "score below data.min_score": 1}


@pytest.mark.parametrize(
    ("said", "score"),
    [
        (7, 7.0),
        ("7", 7.0),
        ("-1.5", -1.5),
        ("This question would be rated a 9. It has 2 parts.", 9.0),
        ("On a scale of 1-10, I would say 6.", 6.0),
        ("On a scale from 1 to 10 this is 8/10", 8.0),
        ("GPT-4 calls it a 3", 3.0),
        ("hard", None),
        ("", None),
        (None, None),
        (True, None),
    ],
)
def test_score_is_the_number_that_the_prose_says(said, score):
    assert score_in(said) == score


def test_types_are_kept_by_name(plain_bytes, write):
    path = write(rows(2, type="Exam") + rows(3, start=5, type="Literature"))
    data = load(plain_bytes, path, types=("Exam",), validation_fraction=0.0)
    assert len(data.train) == 2
    assert data.counts.filtered == {"other type": 3}
    other = write(rows(4, kind="x") + rows(1, start=9, kind="y"), "other.jsonl")
    data = load(plain_bytes, other, types=("y",), type_field="kind", validation_fraction=0.0)
    assert prompts(data.train) == {"prompt 9"}


def test_fingerprint_changes_with_a_token_or_a_setting_only(plain_bytes, write, tmp_path):
    body = rows(10)
    one, same = write(body), write(body, "copy.jsonl")
    first = load(plain_bytes, one)
    assert load(plain_bytes, same).fingerprint == first.fingerprint
    assert load(plain_bytes, one, max_length=300).fingerprint != first.fingerprint
    body[4]["completion"] += "!"
    assert load(plain_bytes, write(body, "changed.jsonl")).fingerprint != first.fingerprint


def test_row_that_the_chat_template_refuses_is_named_or_counted(no_system, write):
    turns = [{"role": r, "content": c} for r, c in (("system", "s"), ("user", "a"), ("assistant", "bb"))]
    path = write([{"messages": turns[1:]}, {"messages": turns}])
    config = DataConfig(train=(path,), validation_fraction=0.0)
    with pytest.raises(DataError, match=r"rows.jsonl:2: the chat template rejects .*: no system turns"):
        load_dataset(config, "demonstration", no_system, seed=0)
    data = load_dataset(replace(config, on_bad_row="skip"), "demonstration", no_system, seed=0)
    assert data.counts.filtered == {"refused by the chat template": 1}


def test_nothing_left_to_train_on_says_why(plain_bytes, write):
    with pytest.raises(
        DataError, match=r'no row left to train on; .*"not a comparison but a demonstration": 4'
    ):
        load(plain_bytes, write(rows(4)), kind="comparison")
    with pytest.raises(DataError, match=r"data\.train: expected at least one file"):
        load(plain_bytes)


WRONG = [
    ({"weights": (1.0,)}, "data.weights: expected one for each"),
    ({"weights": (1.0, 0.0), "train": ("a", "b")}, "data.weights must be positive"),
    ({"validation_fraction": 1.0}, r"data.validation_fraction must lie in \[0, 1\)"),
    ({"max_length": 1}, "data.max_length must be 2 or more"),
    ({"limit": -1}, "data.limit must not be negative"),
]


@pytest.mark.parametrize(("settings", "message"), WRONG)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(**settings)


def test_chats_of_which_other_answers_count_are_no_duplicates(plain_bytes, write):
    def chat(weight):
        turns = [("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", "b")]
        rows = [{"role": role, "content": text} for role, text in turns]
        rows[1]["weight"] = weight
        return {"messages": rows}

    body = [chat(weight) for weight in (0, 0.5, 1, 1)]
    data = load(plain_bytes, write(body), validation_fraction=0.0)
    assert data.counts.summary() == {"read": 4, "used": 3, "filtered": {"duplicate": 1}}
