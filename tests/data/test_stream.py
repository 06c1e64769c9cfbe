"""Rows that are tokenized as they are drawn: order, position, what is refused."""

import json
import shutil
from collections import Counter

import numpy as np
import pytest

from jaxalign.data import DataConfig, chunks, collate_demonstrations, files, load_dataset
from jaxalign.data.stream import StreamBatches
from jaxalign.errors import ConfigError, DataError


def rows(count, start=0):
    return [{"prompt": f"prompt {i}", "completion": f"answer {i}"} for i in range(start, start + count)]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(files, "CHUNK_BYTES", 256)


@pytest.fixture
def stream(plain_bytes):
    """The training rows of files as a stream."""

    def made(*train, window=20, **settings):
        settings = {"template": "plain", "validation_fraction": 0.0, "workers": 1} | settings
        config = DataConfig(train=train, streaming=True, window=window, **settings)
        return load_dataset(config, "demonstration", plain_bytes, seed=0, say=said.append).train

    said = made.said = []
    return made


def batches(stream, size=6, seed=3):
    return StreamBatches(stream, batch_size=size, seed=seed, collate=collate_demonstrations)


def drawn(found, count):
    """The rows of batches as text."""
    return [
        bytes(int(t) for t in row[:length] if t).hex()
        for batch in (found.next() for _ in range(count))
        for row, length in zip(batch["tokens"] % 251, batch["lengths"], strict=True)
    ]


def test_each_epoch_has_every_row_once_in_an_order_of_its_own_window_by_window(stream, write):
    found = drawn(batches(stream(write(rows(60)))), 20)
    first, second = found[:60], found[60:]
    assert Counter(first) == Counter(second) == Counter(set(first))
    assert first != second
    whole = drawn(batches(stream(write(rows(60)), window=1000)), 10)
    assert Counter(whole) == Counter(first)
    windows = [number for number, _, _ in stream(write(rows(60))).windows()]
    assert windows == [0, 1, 2]
    # A window of 20 rows is whole chunks, so it may have a few more; no row moves further.
    sizes = [len(examples) for _, examples, _ in stream(write(rows(60))).windows()]
    assert max(sizes) < 30
    begin = {e.source for _, examples, _ in list(stream(write(rows(60))).windows())[:1] for e in examples}
    assert len(begin) == sizes[0]
    assert drawn(batches(stream(write(rows(60))), seed=4), 20)[:60] != first


@pytest.mark.parametrize("before", [0, 1, 3, 7, 10, 13, 31])
def test_a_restored_stream_goes_on_as_if_never_stopped(stream, write, before):
    path = write(rows(60))
    whole, stopped = batches(stream(path)), batches(stream(path))
    for found in (whole, stopped):
        drawn(found, before)
    state = json.loads(json.dumps(stopped.state()))
    fresh = batches(stream(path))
    drawn(fresh, 2)
    fresh.restore(state)
    for _ in range(25):
        ours, theirs = fresh.next(), whole.next()
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_what_lies_before_the_position_is_not_parsed(stream, write, monkeypatch):
    path = write(rows(60))
    stopped = batches(stream(path), size=5)
    drawn(stopped, 10)
    state = stopped.state()
    assert state["window"] == 2
    fresh = batches(stream(path), size=5)
    parsed = []
    line = chunks.parsed_line
    monkeypatch.setattr(chunks, "parsed_line", lambda text: parsed.append(text) or line(text))
    fresh.restore(state)
    drawn(fresh, 1)
    # One more for the format of the file.
    assert len(parsed) < 25


def test_a_position_in_other_data_is_refused(stream, write):
    path = write(rows(60))
    found = batches(stream(path), size=5)
    drawn(found, 6)
    state = found.state()
    for other in (
        batches(stream(path), seed=9),
        batches(stream(path, max_length=100)),
        batches(stream(path, window=9)),
    ):
        with pytest.raises(DataError, match="saved with other data or another seed"):
            other.restore(state)
    body = rows(60)
    body[1]["completion"] = "ANSWER 1"  # of the same length
    with pytest.raises(DataError, match="saved with other data"):
        batches(stream(write(body))).restore(state)


def test_a_row_that_changed_between_the_ends_of_a_large_file_is_found_at_the_position(
    stream, write, monkeypatch
):
    monkeypatch.setattr("jaxalign.data.stream.ENDS", 64)
    body = rows(60)
    found = batches(stream(write(body)), size=5)
    drawn(found, 6)
    state = found.state()
    body[30]["completion"] = "ANSWER 30"
    fresh = batches(stream(write(body)), size=5)
    fresh.restore(state)
    with pytest.raises(DataError, match="the rows at the checkpoint have changed"):
        fresh.next()


def test_a_file_that_was_written_since_is_named_though_its_ends_are_the_same(stream, write, monkeypatch):
    monkeypatch.setattr("jaxalign.data.stream.ENDS", 64)
    body = rows(60)
    path = write(body)
    found = batches(stream(path), size=5)
    drawn(found, 6)
    state = json.loads(json.dumps(found.state()))
    batches(stream(path)).restore(state)
    assert stream.said == []
    body[50]["completion"] = "ANSWER 50"  # behind the position
    write(body)
    batches(stream(path)).restore(state)
    assert f"{path} was modified since the checkpoint" in stream.said[-1]
    del state["written"]  # of an earlier version
    batches(stream(path)).restore(state)
    assert len(stream.said) == 1


@pytest.mark.parametrize("saved", [True, False])
def test_a_position_in_a_folder_with_other_files_is_refused(stream, tmp_path, saved):
    import datasets

    def written(found):
        shutil.rmtree(tmp_path / "folder", ignore_errors=True)
        if saved:
            datasets.Dataset.from_list(found).save_to_disk(str(tmp_path / "folder"))
        else:
            (tmp_path / "folder").mkdir()
            (tmp_path / "folder" / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in found))
        return str(tmp_path / "folder")

    found = batches(stream(written(rows(60))), size=5)
    drawn(found, 5)
    state = json.loads(json.dumps(found.state()))
    batches(stream(str(tmp_path / "folder"))).restore(state)
    with pytest.raises(DataError, match="saved with other data"):
        batches(stream(written([*rows(40), *rows(20, start=900)]))).restore(state)


def test_rows_that_repeat_a_held_out_row_stay_where_duplicates_do(stream, write):
    held = write(rows(5), "held.jsonl")
    found = stream(write(rows(10)), validation=(held,), deduplicate=False)
    assert sum(len(some) for _, some, _ in found.windows()) == 10
    assert found.tally.filtered == {}


def test_workers_give_the_same_stream(stream, write, monkeypatch):
    monkeypatch.setattr("jaxalign.data.workers.FEW_CHUNKS", 1)
    one, two = write(rows(50)), write(rows(30, start=100), "b.jsonl")
    assert drawn(batches(stream(one, two, workers=2)), 30) == drawn(batches(stream(one, two)), 30)


def test_files_are_read_side_by_side(stream, write):
    paths = write(rows(40)), write(rows(40, start=100), "b.jsonl")
    [_, first, *_] = [examples for _, examples, _ in stream(*paths, window=20).windows()]
    assert {example.source.split(":")[0] for example in first} == set(paths)


def test_rows_that_repeat_a_held_out_row_are_left_out_and_all_are_counted(stream, write, plain_bytes):
    held = write(rows(5, start=10), "held.jsonl")
    path = write([*rows(30), {"prompt": "x", "completion": ""}])
    found = stream(path, validation=(held,))
    assert not {e.prompt_text for _, some, _ in found.windows() for e in some} & {
        f"prompt {i}" for i in range(10, 15)
    }
    assert found.tally.read == 31
    assert found.tally.filtered == {"repeats a held-out row": 5, "no completion token": 1}
    drawn(batches(found), 9)
    assert "31 rows read" in stream.said[-1]
    config = DataConfig(
        train=(path,), validation=(held,), streaming=True, window=1000, template="plain", workers=1
    )
    data = load_dataset(config, "demonstration", plain_bytes, seed=0)
    assert len(data.validation) == 5
    assert data.summary()["streaming"] is True
    assert data.summary()["first_window_rows"] == 25
    data.counts.check()


WRONG = [
    ({"validation_fraction": 0.05}, "data.validation_fraction: a stream cannot be split"),
    ({"limit": 5}, "data.limit: not supported for a stream"),
    ({"weights": (0.5,)}, "data.weights: a stream cannot be weighted"),
]


@pytest.mark.parametrize(("settings", "message"), WRONG)
def test_what_needs_all_rows_is_refused_by_name(stream, write, settings, message):
    with pytest.raises(ConfigError, match=message):
        stream(write(rows(9)), **settings)


def test_nothing_to_train_on_says_why(stream, write):
    with pytest.raises(
        DataError, match=r'no row left to train on in the first 20 rows; .*"no completion token": 9'
    ):
        stream(write([{"prompt": "a", "completion": ""}] * 9))


def test_an_example_that_does_not_fit_is_named_when_it_is_drawn(stream, write):
    found = stream(write(rows(9)))

    def fits(example):
        raise DataError(f"{example.source}: too long")

    found.fits = fits
    with pytest.raises(DataError, match=r"rows.jsonl:1: too long"):
        batches(found).next()


def test_a_set_of_the_hub_is_read_without_a_copy(stream, monkeypatch, plain_bytes):
    import datasets

    asked = []

    def load(name, configuration, **options):
        asked.append((name, configuration, options))
        return datasets.Dataset.from_list(rows(30)).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load)
    found = drawn(batches(stream("some/rows:main@v1#train")), 5)
    assert len(set(found)) == 30
    assert asked[0] == ("some/rows", "main", {"split": "train", "revision": "v1", "streaming": True})


def test_a_stream_is_no_list_of_examples(stream, write):
    from jaxalign.data import BatchIterator

    with pytest.raises(TypeError, match="StreamBatches"):
        BatchIterator(stream(write(rows(9))), batch_size=2, seed=0, collate=collate_demonstrations)
