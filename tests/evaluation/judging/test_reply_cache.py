"""What was paid for is kept, whatever ends the run."""

import json
import os

import pytest

from jaxalign.errors import DataError, UserError
from jaxalign.evaluation.judging.reply_cache import ReplyCache, request_key

ROW = {"text": "a\nb ü", "finish_reason": "stop", "prompt_tokens": 3, "completion_tokens": 1}


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "deep" / "replies.jsonl")


def filled(path, *keys):
    cache = ReplyCache(path)
    for key in keys:
        cache.put(key, ROW)
    cache.close()


def kept(path):
    cache = ReplyCache(path)
    cache.close()
    return cache


def test_a_key_depends_on_all_of_a_request_and_on_no_order():
    body = {"model": "m", "messages": [{"role": "user", "content": "ü"}], "temperature": 0.0}
    assert request_key(body) == request_key(dict(reversed(body.items())))
    others = [
        body | {"model": "n"},
        body | {"temperature": 0.5},
        body | {"messages": [{"role": "user", "content": "u"}]},
        body | {"max_tokens": 5},
    ]
    assert len({request_key(one) for one in [body, *others]}) == 5


def test_replies_are_read_again(path):
    filled(path, "one", "two")
    cache = kept(path)
    assert len(cache) == 2 and cache.get("two") == {"key": "two", **ROW} and cache.get("three") is None
    filled(path, "three")
    assert len(kept(path)) == 3


def test_a_reply_is_in_the_file_when_put_returns(path):
    cache = ReplyCache(path)
    cache.put("one", ROW)
    with open(path) as file:  # not closed yet
        assert json.loads(file.read()) == {"key": "one", **ROW}
    cache.close()


@pytest.mark.parametrize("lost", [1, 5, 40])
def test_a_torn_last_line_is_set_aside(path, lost):
    filled(path, "one", "two")
    whole = os.path.getsize(path)
    os.truncate(path, whole - lost)
    cache = kept(path)
    if lost == 1:  # the newline alone: the reply is whole
        assert len(cache) == 2 and not os.path.exists(f"{path}.torn")
    else:
        assert cache.get("one") and cache.get("two") is None
        with open(f"{path}.torn") as file:
            assert file.read().startswith('{"key": "two"')
    filled(path, "three")
    with open(path) as file:
        assert [json.loads(line)["key"] for line in file] == ["one", *["two"] * (lost == 1), "three"]


def test_a_first_line_that_is_torn_leaves_an_empty_cache(path):
    filled(path, "one")
    os.truncate(path, 7)
    assert len(kept(path)) == 0 and os.path.getsize(path) == 0


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "not valid JSON"),
        ("[]", "an object with named fields, got list"),
        ('{"key": "x"}', "another row"),
    ],
)
def test_a_line_that_is_wrong_is_named(path, line, said):
    filled(path, "one")
    with open(path, "a") as file:
        file.write(line + "\n")
    filled_before = os.path.getsize(path)
    with pytest.raises(DataError, match=rf"replies\.jsonl:2: expected a cached reply .*{said}"):
        ReplyCache(path)
    assert os.path.getsize(path) == filled_before
    # Nothing holds the file after that.
    os.truncate(path, filled_before - len(line) - 1)
    assert len(kept(path)) == 1


def test_one_process_holds_the_file(path):
    cache = ReplyCache(path)
    with pytest.raises(UserError, match=r"replies\.jsonl: another process uses this cache"):
        ReplyCache(path)
    cache.close()
    cache.close()
    assert len(kept(path)) == 0


def test_a_full_disk_leaves_whole_lines(path, monkeypatch):
    cache = ReplyCache(path)
    cache.put("one", ROW)
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:9]))
    with pytest.raises(DataError, match=r"replies\.jsonl: cannot be written \(the disk is full\)"):
        cache.put("two", ROW)
    monkeypatch.undo()
    cache.put("three", ROW)  # someone has made room
    cache.close()
    assert kept(path).get("three") and kept(path).get("two") is None


def test_only_its_owner_reads_the_file(path):
    filled(path, "one")
    assert os.stat(path).st_mode & 0o077 == 0


def test_a_folder_is_no_cache(tmp_path):
    with pytest.raises(DataError, match=r"cannot be read or written"):
        ReplyCache(str(tmp_path))


def test_without_a_path_replies_live_in_memory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cache = ReplyCache()
    cache.put("one", ROW)
    assert cache.get("one") == {"key": "one", **ROW}
    cache.close()
    assert list(tmp_path.iterdir()) == []
