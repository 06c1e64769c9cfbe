"""Tokenized files on the disk: what is kept, when it is made anew, and by whom."""

import copy
import dataclasses
import errno
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jaxalign.data import (
    BatchIterator,
    DataConfig,
    Demonstration,
    Example,
    Message,
    TokenBatches,
    blocks,
    collate_comparisons,
    collate_demonstrations,
    columns,
    eval_batches,
    files,
    load_dataset,
    sources,
    store,
    usual_width,
    workers,
)
from jaxalign.data.columns import Columns, Fingerprint, batch_of
from jaxalign.data.table import Examples, counted_of, lengths_of, most_rows_of, row_lengths_of
from jaxalign.data.workers import Workers
from jaxalign.errors import ConfigError, DataError

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def changed(tokenizer, **attributes):
    """A tokenizer with other attributes."""
    found = copy.deepcopy(tokenizer)
    for name, value in attributes.items():
        setattr(found, name, value)
    return found


def rows(count, start=0, **columns):
    return [
        {"prompt": f"prompt {i}", "completion": f"answer {i}" + "!" * (i % 7), **columns}
        for i in range(start, start + count)
    ]


@pytest.fixture
def load(plain_bytes, tmp_path):
    """Loads files with a cache of the test's own."""

    def loaded(*train, tokenizer=plain_bytes, kind="demonstration", seed=0, **settings):
        settings = {"template": "plain", "cache": str(tmp_path / "cache")} | settings
        return load_dataset(DataConfig(train=train, **settings), kind, tokenizer, seed=seed, say=said.append)

    said = loaded.said = []
    return loaded


@pytest.fixture
def tokenized(monkeypatch):
    """The chunks that are tokenized, by the numbers of their first rows."""
    seen = []
    block = blocks.Recipe.block
    monkeypatch.setattr(
        blocks.Recipe, "block", lambda self, chunk: seen.append(chunk.start) or block(self, chunk)
    )
    return seen


def kept(folder):
    return sorted(path.name for path in (folder / "cache" / "data").iterdir())


FULL = [
    Example(
        rows=((1, 2, 3), (1, 2, 4, 5)),
        masks=((False, False, True), (False, False, True, True)),
        prompt_tokens=(1, 2),
        prompt_text="é?",
        best=1,
        margin=-0.3,
        labels=(1.0, 0.0),
        group="00ff00ff00ff00ff",
        columns={"answer": ["x", 1.5, None], "level": {"a": True}},
        source="some.jsonl:12",
        truncated=True,
        prompt=(Message("system", "s"), Message("user", "é?", 0.5, {"name": "me"})),
        weights=((0.0, 0.0, 0.5), (0.0, 0.0, 1.0, 2.0)),
        note="a remark",
    ),
    Example(((7, 8),), ((False, True),), (7,), "", source="some.jsonl:13", group="0" * 15 + "1"),
    Example((), (), (3, 4, 5), "p", source="some.jsonl:14", group="f" * 16, prompt="p"),
    Example(
        ((1, 2),), ((False, True),), (9,), "u", source="some.jsonl:15", group="a" * 16,
        prompt=(Message("user", "u"),),
    ),
]  # fmt: skip


def test_every_field_of_an_example_is_kept():
    assert all(
        getattr(FULL[0], field.name) not in (field.default, "", 0, (), {})
        for field in dataclasses.fields(Example)
    )
    batch = batch_of(FULL, [0, 1, 1, 5], "some.jsonl")
    read = Columns(batch, "some.jsonl")
    assert [read.example(i) for i in range(4)] == FULL
    assert read.numbers("length").tolist() == [4, 2, 3, 2]
    assert read.numbers("counted").tolist() == [3, 1, 0, 1]


def test_each_field_that_matters_changes_the_fingerprint_and_the_cut_into_batches_does_not():
    def fingerprint(*parts):
        found = Fingerprint()
        for examples in parts:
            found.add(batch_of(examples, range(len(examples)), "some.jsonl"))
        return found.hexdigest()

    whole = fingerprint(FULL)
    assert fingerprint(FULL[:1], FULL[1:]) == fingerprint(*([e] for e in FULL)) == whole
    other = {
        "rows": ((1, 2, 3), (1, 2, 4, 6)), "masks": ((False, True, True), (False, False, True, True)),
        "prompt_tokens": (1,), "prompt_text": "e", "best": 0, "margin": 0.0, "labels": (1.0, 1.0), "group": "1",
        "columns": {}, "prompt": "x", "weights": (),
    }  # fmt: skip
    for name, value in other.items():
        assert fingerprint([replace(FULL[0], **{name: value}), *FULL[1:]]) != whole, name
    assert fingerprint([replace(FULL[0], source="some.jsonl:99"), *FULL[1:]]) == whole


def test_rows_that_hold_more_than_offsets_can_say_are_refused_by_place(jobs, monkeypatch):
    def over(*_):
        return columns._offsets(np.asarray([2**30, 2**30]))

    monkeypatch.setattr(columns, "batch_of", over)
    recipe, chunk = list(jobs(Fails()))[1]
    monkeypatch.setattr(blocks.Recipe, "examples", lambda *_: ([], [], blocks.Tally()))
    with pytest.raises(
        DataError, match=r"rows\.jsonl: cannot store the rows from row \d+ on \(.* more than 2 GiB\)"
    ):
        recipe.block(chunk)


def test_a_file_is_tokenized_once(load, write, tokenized, tmp_path):
    path = write(rows(20))
    first = load(path)
    assert tokenized == [0]
    again = load(path)
    assert tokenized == [0]
    assert again.summary() == first.summary()
    assert list(again.train) == list(first.train)
    assert len(kept(tmp_path)) == 1
    # Nor under another name, and by other settings that change no token.
    os.rename(path, tmp_path / "moved.jsonl")
    moved = load(str(tmp_path / "moved.jsonl"), seed=4, validation_fraction=0.5, workers=1, deduplicate=False)
    assert tokenized == [0]
    assert moved.train[0].source.startswith(str(tmp_path / "moved.jsonl:"))


CHANGES = {
    "max_length": {"max_length": 30}, "truncation": {"truncation": "filter"},
    "template": {"template": "markers"}, "end_token": {"end_token": "none"},
    "ignore_columns": {"ignore_columns": ("x",)}, "keep": {"keep": {"x": 1}},
    "columns": {"columns": {"completion": "x"}, "ignore_columns": ("completion",)},
    "on_bad_row": {"on_bad_row": "skip"}, "limit": {"limit": 3},
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_a_setting_that_changes_rows_makes_them_anew(load, write, tokenized, name):
    path = write([{**row, "x": "1"} for row in rows(9)])
    load(path, validation_fraction=0.0)
    load(path, validation_fraction=0.0, **CHANGES[name])
    assert tokenized == [0, 0]


def test_a_changed_file_or_tokenizer_makes_rows_anew(load, write, tokenized, plain_bytes):
    path = write(rows(9))
    load(path)
    size = os.path.getsize(path)
    write([*rows(8), {"prompt": "prompt 8", "completion": "Answer 8!"}])
    assert os.path.getsize(path) == size
    load(path)
    load(path, tokenizer=changed(plain_bytes, eos_token="<|im_end|>"))
    load(path, tokenizer=changed(plain_bytes, chat_template=CHATML))
    load(path, tokenizer=changed(plain_bytes, chat_template=CHATML.replace("\n", " ")))
    load(path, kind="prompt", prompt_tokens=2)
    assert len(tokenized) == 6


def test_rows_that_print_the_day_are_made_anew_on_another(load, write, tokenized, plain_bytes):
    path = write(rows(5))
    dated = changed(plain_bytes, chat_template="{{ strftime_now('%d') }}" + CHATML)
    for date in ("2024-05-01", "2024-05-02", "2024-05-02"):
        data = load(path, tokenizer=dated, template="tokenizer", date=date)
        day = dated.decode(data.train[0].rows[0][:2])
        assert day == date[-2:]
    assert len(tokenized) == 2
    for date in ("2024-05-01", "2024-05-02"):
        load(path, date=date)
    assert len(tokenized) == 3


def test_a_damaged_file_is_made_anew_and_said(load, write, tokenized, tmp_path):
    path = write(rows(9))
    first = load(path)
    [name] = kept(tmp_path)
    file = tmp_path / "cache" / "data" / name
    whole = file.read_bytes()
    for body in (b"", b"nonsense", whole[: len(whole) // 2], whole[:-4], b"\0" * len(whole)):
        # As a new file: pages of the old one are still mapped.
        file.unlink()
        file.write_bytes(body)
        assert list(load(path).train) == list(first.train)
        assert f"{file}: damaged" in load.said[-1]
        assert file.read_bytes() == whole
    assert len(tokenized) == 6


def test_a_byte_that_changed_anywhere_makes_the_file_anew(load, write, tokenized, tmp_path):
    path = write(rows(60))
    first = list(load(path).train)
    [name] = kept(tmp_path)
    file = tmp_path / "cache" / "data" / name
    whole = file.read_bytes()
    places = range(0, len(whole), len(whole) // 12)
    for place in places:
        for body in (bytes([whole[place] ^ 0x10]), bytes(512)):
            file.unlink()
            file.write_bytes((whole[:place] + body + whole[place + len(body) :])[: len(whole)])
            assert list(load(path).train) == first
            assert file.read_bytes() == whole
    assert len(tokenized) == 1 + 2 * len(places)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EACCES])
def test_a_file_that_cannot_be_opened_is_named_and_not_made_anew(load, write, tmp_path, monkeypatch, number):
    path = write(rows(9))
    load(path)

    def refused(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(store.pa, "memory_map", refused)
    with pytest.raises(ConfigError) as caught:
        load(path)
    file = tmp_path / "cache" / "data" / kept(tmp_path)[0]
    assert str(caught.value).startswith(f"data.cache: {file} cannot be read ({os.strerror(number)})")
    assert load.said == []


def test_files_that_are_read_hold_no_descriptor(load, write, tmp_path):
    data = load(*(write(rows(3, start=10 * i), f"{i}.jsonl") for i in range(5)), validation_fraction=0.0)
    opened = [os.readlink(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd") if name.isdigit()
              and os.path.lexists(f"/proc/self/fd/{name}")]  # fmt: skip
    assert not [name for name in opened if name.startswith(str(tmp_path))]
    assert data.train[14].prompt_text == "prompt 42"


def test_temporary_files_that_vanish_or_belong_to_others_stop_nobody(load, write, tmp_path):
    folder = tmp_path / "cache" / "data"
    folder.mkdir(parents=True)
    (folder / ".gone.tmp").symlink_to(
        tmp_path / "nowhere"
    )  # as one that is renamed between the look and the stat
    (folder / ".theirs.tmp").mkdir()  # as one that may not be taken away
    for name in (".theirs.tmp", ".old.tmp"):
        (folder / name).touch()
        os.utime(folder / name, (1e9, 1e9))
    load(write(rows(3)))
    assert ".old.tmp" not in kept(tmp_path)
    assert {".gone.tmp", ".theirs.tmp"} < set(kept(tmp_path))


@pytest.mark.parametrize(("cache", "message"), [
    ("~no-such-user/x", r"^data\.cache: ~no-such-user/x: no such home folder"),
    ("x" * 300, r"^data\.cache: x+/data cannot be read \(File name too long\)"),
], ids=["user", "name"])  # fmt: skip
def test_a_cache_folder_that_cannot_be_is_named(load, write, cache, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load(write(rows(3)), cache=cache)
    assert "\n" not in str(caught.value)


def test_a_file_that_changes_while_it_is_read_is_refused_and_leaves_nothing(
    load, write, tmp_path, monkeypatch
):
    path = write(rows(9))
    identity = sources.identity

    def slow(path):
        found = identity(path)
        write([{"prompt": "another", "completion": "row"}, *rows(8)])
        return found

    with monkeypatch.context() as patch:
        patch.setattr(sources, "identity", slow)
        with pytest.raises(DataError, match=r"rows\.jsonl: the file changed while it was read"):
            load(path)
    assert kept(tmp_path) == []


def test_a_file_that_may_not_be_read_is_one_line(load, write, monkeypatch):
    path = write(rows(3))

    def refused(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(sources, "open", refused, raising=False)
    with pytest.raises(DataError, match=r"rows\.jsonl: cannot be read \(Permission denied\)$"):
        load(path)


@pytest.mark.parametrize("saved", [True, False])
def test_a_folder_is_known_by_the_bytes_of_its_files(load, tmp_path, tokenized, saved):
    import datasets

    def written(found):
        if saved:
            made = datasets.Dataset.from_list(found)
            made._fingerprint = "of how it was made"
            shutil.rmtree(tmp_path / "folder", ignore_errors=True)
            made.save_to_disk(str(tmp_path / "folder"))
        else:
            (tmp_path / "folder").mkdir(exist_ok=True)
            file = tmp_path / "folder" / "rows.jsonl"
            file.write_text("".join(json.dumps(row) + "\n" for row in found))
            os.utime(file, (1e9, 1e9))

    written(rows(9))
    assert load(str(tmp_path / "folder")).train[0].prompt_text == "prompt 0"
    load(str(tmp_path / "folder"))
    assert len(tokenized) == 1
    written([{"prompt": "another", "completion": "answer 0"}, *rows(8, start=1)])
    assert load(str(tmp_path / "folder")).train[0].prompt_text == "another"
    assert len(tokenized) == 2


def test_equal_bytes_of_another_kind_are_another_file(load, tmp_path):
    body = json.dumps(rows(2))
    for name in ("a.json", "a.jsonl"):
        (tmp_path / name).write_text(body)
    assert len(load(str(tmp_path / "a.json"), validation_fraction=0.0).train) == 2
    with pytest.raises(DataError, match=r"a\.jsonl:1: expected an object with named fields, got list"):
        load(str(tmp_path / "a.jsonl"))


def ctrl_tokenizer(folder, merges):
    """A tokenizer without a Rust core, whose merges are in no vocabulary."""
    from transformers import CTRLTokenizer

    words = ["<unk>", "a@@", "b@@", "c@@", "a", "b", "c", "ab", "bc", "ab@@", "bc@@", "abc", "</s>"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}")
    return CTRLTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))


def test_all_that_a_tokenizer_does_is_in_its_digest(tmp_path, plain_bytes):
    one, same, other = (
        ctrl_tokenizer(tmp_path, m) for m in ("a b\nab c</w>\n", "a b\nab c</w>\n", "b c</w>\n")
    )
    assert one.tokenize("abc") != other.tokenize("abc")
    digests = [sources.tokenizer_digest(tokenizer) for tokenizer in (one, same, other)]
    assert digests[0] == digests[1] != digests[2]
    # What cuts and pads is switched off before texts are tokenized, and so it is before the digest.
    cuts = copy.deepcopy(plain_bytes)
    cuts.backend_tokenizer.enable_truncation(5)
    cuts.backend_tokenizer.enable_padding()
    assert sources.tokenizer_digest(cuts) == sources.tokenizer_digest(plain_bytes)


def test_labels_are_made_anew_where_the_label_tokenizer_has_another_vocabulary(
    load, write, tmp_path, plain_bytes
):
    from jaxalign.data import readers

    folder, ids = tmp_path / "labels", plain_bytes("hi a")["input_ids"]
    vocab = plain_bytes.get_vocab()
    folder.mkdir()
    (folder / "merges.txt").write_text("#version: 0.2\nĊ Ċ\nĠ a\nh i\n")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    path = write([{"query": ids, "sample0": ids, "sample1": ids[1:], "best": 0}])
    found = []
    for _ in range(2):
        (folder / "vocab.json").write_text(json.dumps(vocab))
        readers._TOKENIZERS.clear()
        data = load(path, kind="ranking", label_tokenizer=str(folder), validation_fraction=0.0)
        found.append(data.train[0].prompt_text)
        vocab["hi"], vocab["x"] = vocab["x"], vocab["hi"]
    assert found == ["hi a", "x a"]


def test_a_cache_that_cannot_be_written_to_is_named(load, write, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ConfigError, match=r"^data.cache: .*/file/data cannot be written to \(Not a directory\).*$"
    ):
        load(write(rows(3)), cache=str(tmp_path / "file"))


def test_a_full_disk_leaves_nothing_behind(load, write, tmp_path, monkeypatch):
    import pyarrow

    class Full:
        def __init__(self, sink, schema):
            self.writer = pyarrow.RecordBatchFileWriter(sink, schema)

        def write_batch(self, batch, **options):
            self.writer.write_batch(batch, **options)
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(store.pa.ipc, "new_file", Full)
    with pytest.raises(ConfigError, match=r"data.cache: .* cannot be written to \(No space left on device\)"):
        load(write(rows(3)))
    assert kept(tmp_path) == []


def test_a_bad_row_leaves_nothing_behind(load, write, tmp_path):
    with pytest.raises(DataError, match=r"rows.jsonl:4: "):
        load(write([*rows(3), {"prompt": 3}]))
    assert kept(tmp_path) == []


def test_the_folder_is_the_one_that_is_named_first(monkeypatch, tmp_path):
    monkeypatch.setenv("JAXALIGN_CACHE", str(tmp_path / "ours"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "all"))
    assert store.cache_folder(str(tmp_path / "named")) == tmp_path / "named" / "data"
    assert store.cache_folder("") == tmp_path / "ours" / "data"
    monkeypatch.delenv("JAXALIGN_CACHE")
    assert store.cache_folder("") == tmp_path / "all" / "jaxalign" / "data"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert store.cache_folder("") == Path.home() / ".cache" / "jaxalign" / "data"


def test_of_several_that_need_a_file_at_once_one_tokenizes_it(write, plain_bytes, tokenized, tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    config = DataConfig(train=(write(rows(40)),), template="plain", cache=str(tmp_path / "cache"))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: load_dataset(config, "demonstration", plain_bytes, seed=0), range(4)))
    assert all(list(data.train) == list(found[0].train) for data in found)
    assert len(kept(tmp_path)) == len(tokenized) == 1


# --- workers -----------------------------------------------------------------------------------


@pytest.fixture
def many_chunks(monkeypatch):
    """Files are cut into chunks of a few rows, and a few chunks are enough for workers."""
    monkeypatch.setattr(files, "CHUNK_BYTES", 512)
    monkeypatch.setattr(workers, "FEW_CHUNKS", 1)


@pytest.mark.long
def test_workers_write_the_same_file_as_this_process(load, write, tmp_path, many_chunks):
    path = write([*rows(60), *rows(5), {"prompt": "x", "completion": ""}])
    alone = load(path, workers=1, cache=str(tmp_path / "one" / "cache"))
    several = load(path, workers=2, cache=str(tmp_path / "two" / "cache"))
    [name] = kept(tmp_path / "one")
    assert kept(tmp_path / "two") == [name]
    ours, theirs = (tmp_path / n / "cache" / "data" / name for n in ("one", "two"))
    assert ours.read_bytes() == theirs.read_bytes()
    assert several.summary() == alone.summary()


@pytest.mark.long
def test_what_a_worker_finds_wrong_is_said_as_by_this_process(load, write, tmp_path, many_chunks):
    path = write([*rows(50), {"prompt": "a"}, *rows(50, start=50), {"prompt": "b"}])
    with pytest.raises(DataError) as alone:
        load(path, workers=1)
    with pytest.raises(DataError, match=r"rows.jsonl:51: expected the field 'completion'") as several:
        load(path, workers=2)
    assert str(several.value) == str(alone.value)
    assert kept(tmp_path) == []
    data = load(path, workers=2, on_bad_row="skip")
    assert data.counts.filtered == {"bad row": 2}


def test_columns_that_workers_left_unread_are_counted(load, write, many_chunks):
    data = load(write(rows(40, colour="red")), workers=2)
    assert data.counts.unread == {"colour": 40}
    assert data.summary()["unread_columns"] == {"colour": 40}


class Ends:
    """A reader that ends its process."""

    def __init__(self):
        self.unread = {}

    def read(self, place, row):
        os.kill(os.getpid(), signal.SIGKILL)


class Fails:
    """A reader with a bug."""

    def __init__(self):
        self.unread = {}

    def read(self, place, row):
        raise ZeroDivisionError("a bug")


@pytest.fixture
def jobs(plain_bytes, write, many_chunks):
    """Chunks with a recipe whose reader is of this module, which workers must find too."""

    def made(reader):
        from jaxalign.data.examples import Limits
        from jaxalign.data.pipeline import chat_of

        chat = chat_of(DataConfig(template="plain"), plain_bytes)
        recipe = blocks.Recipe(reader, "demonstration", chat, Limits(512, 0, "filter"))
        return ((recipe, chunk) for chunk in files.chunks_of(write(rows(60))))

    return made


def test_a_worker_that_is_killed_gives_one_clear_line(jobs):
    with (
        Workers(2) as found,
        pytest.raises(DataError, match=r"rows.jsonl: .*killed by signal 9.*data.workers") as e,
    ):
        list(found.blocks(jobs(Ends())))
    assert "\n" not in str(e.value)


def test_a_bug_in_a_worker_keeps_its_traceback(jobs):
    with Workers(2) as found, pytest.raises(workers.WorkerError, match=r"(?s)Traceback.*in read.*a bug"):
        list(found.blocks(jobs(Fails())))


def test_workers_do_not_import_from_the_current_folder(load, write, tmp_path, monkeypatch, many_chunks):
    (tmp_path / "random.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    assert load(write(rows(60)), workers=2).counts.used == 60


def test_no_more_workers_are_started_than_there_are_chunks(load, write, monkeypatch, many_chunks):
    started = []
    worker = workers._Worker
    monkeypatch.setattr(workers, "_Worker", lambda: started.append(worker()) or started[-1])
    path = write(rows(20))
    chunks = len(list(files.chunks_of(path)))
    load(path, workers=50)
    assert len(started) == chunks < 10


def test_where_no_process_is_to_be_had_the_setting_is_named(load, write, tmp_path, monkeypatch, many_chunks):
    def refused(*_, **__):
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(workers.subprocess, "Popen", refused)
    with pytest.raises(ConfigError, match=r"^data\.workers: cannot start a process \(Resource temporarily"):
        load(write(rows(60)), workers=2)
    assert kept(tmp_path) == []


def test_what_the_users_script_defines_is_tokenized_without_workers(jobs, monkeypatch):
    class Mine:
        def __init__(self):
            self.unread = {}

        def read(self, place, row):
            return Demonstration(row["prompt"], row["completion"], source=place)

    Mine.__module__, Mine.__qualname__ = "__main__", "Mine"
    monkeypatch.setattr(sys.modules["__main__"], "Mine", Mine, raising=False)
    with Workers(2) as found:
        assert sum(block.tally.read for block in found.blocks(jobs(Mine()))) == 60


@pytest.mark.parametrize("cut", [0, 1, 5, 40])
def test_a_worker_ends_in_silence_where_its_input_does(cut):
    body = pickle.dumps((0, None, "x" * 100), protocol=5)
    done = subprocess.run(
        [sys.executable, "-m", "jaxalign.data.worker"], input=body[:cut], capture_output=True, check=True
    )
    assert b"Traceback" not in done.stderr


def test_a_worker_does_not_load_jax():
    code = "import sys, jaxalign.data.worker, jaxalign.data.workers, jaxalign.data.columns; print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.long
def test_ctrl_c_ends_the_workers_and_leaves_no_file(write, plain_bytes, tmp_path):
    path = write(rows(400))
    plain_bytes.save_pretrained(tmp_path / "tokenizer")
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(f"""
            import sys, time
            from transformers import AutoTokenizer
            from jaxalign.data import DataConfig, files, load_dataset, sources, workers

            files.CHUNK_BYTES, workers.FEW_CHUNKS = 512, 1
            told = sources.Sources._with_progress
            def slow(self, path, blocks):
                for block in told(self, path, blocks):
                    print("block", flush=True)
                    time.sleep(0.5)
                    yield block
            sources.Sources._with_progress = slow
            config = DataConfig(train=({path!r},), template="plain", workers=2, cache={str(tmp_path / "cache")!r})
            tokenizer = AutoTokenizer.from_pretrained({str(tmp_path / "tokenizer")!r})
            load_dataset(config, "demonstration", tokenizer, seed=0)
            """)
    )
    process = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "block\n"
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) == 2
    assert sorted(Path(name).suffix for name in kept(tmp_path)) == [".lock", ".tmp"]
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in error
    assert kept(tmp_path) == []
    end = time.monotonic() + 10
    while time.monotonic() < end and any(Path(f"/proc/{child}").exists() for child in children):
        time.sleep(0.05)
    assert not any(Path(f"/proc/{child}").exists() for child in children)


# --- reading -----------------------------------------------------------------------------------


@pytest.fixture
def pairs(load, write, monkeypatch):
    """Comparisons on the disk, in several blocks."""
    monkeypatch.setattr(files, "CHUNK_BYTES", 512)
    body = [
        {"prompt": f"p{i}", "chosen": "good " * (i % 9 + 1), "rejected": "bad " * (i % 5 + 1)}
        for i in range(60)
    ]
    return load(write(body), kind="comparison", weights=(1.5,), workers=1)


def test_numbers_of_examples_on_the_disk_are_those_of_a_list(pairs):
    assert isinstance(pairs.train, Examples)
    for examples in (pairs.train, pairs.train[5:30:3], pairs.train.select([9, 2, 2]), pairs.validation):
        same = list(examples)
        assert len(examples) == len(same)
        assert lengths_of(examples).tolist() == lengths_of(same).tolist()
        assert counted_of(examples).tolist() == counted_of(same).tolist()
        assert row_lengths_of(examples).tolist() == row_lengths_of(same).tolist()
        assert most_rows_of(examples) == most_rows_of(same) == 2
        assert usual_width(examples) == usual_width(same)
    assert pairs.train[-1] == list(pairs.train)[-1]
    with pytest.raises(IndexError):
        pairs.train[len(pairs.train)]


def same_batches(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        assert all(np.array_equal(a[name], b[name]) for name in a)


def test_batches_from_the_disk_are_those_of_a_list(pairs):
    for make in (
        lambda rows: BatchIterator(rows, batch_size=7, seed=1, collate=collate_comparisons),
        lambda rows: TokenBatches(rows, tokens=600, multiple=1, seed=1, collate=collate_comparisons),
    ):
        ours, theirs = make(pairs.train), make(list(pairs.train))
        same_batches([ours.next() for _ in range(30)], [theirs.next() for _ in range(30)])
    same_batches(
        eval_batches(pairs.train, 8, collate_comparisons),
        eval_batches(list(pairs.train), 8, collate_comparisons),
    )


def test_a_position_in_data_of_equal_length_is_refused(load, write):
    def batches(data):
        return BatchIterator(data.train, batch_size=4, seed=0, collate=collate_demonstrations)

    first = batches(load(write(rows(9)), validation_fraction=0.0))
    first.next()
    state = json.loads(json.dumps(first.state()))
    batches(load(write(rows(9), "copy.jsonl"), validation_fraction=0.0)).restore(state)
    other = batches(
        load(write([*rows(8), {"prompt": "q", "completion": "a"}], "o.jsonl"), validation_fraction=0.0)
    )
    with pytest.raises(DataError, match="saved with other data"):
        other.restore(state)
    del state["data"]  # of an earlier version
    other.restore(state)
