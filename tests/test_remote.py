"""Files behind URLs are fetched once, anew where they have changed, and never half."""

import gzip
import json
import threading
import time
from pathlib import Path

import fsspec
import pytest

from jaxalign import remote
from jaxalign.data.files import check_there, rows_of
from jaxalign.errors import DataError, ModelError, RemoteError
from jaxalign.models import load_config, load_pretrained, load_tokenizer
from jaxalign.models.folders import model_folder


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """fsspec's store in memory, empty, and a cache of our own; gives the store."""
    monkeypatch.setenv("JAXALIGN_CACHE", str(tmp_path / "cache"))
    store = fsspec.filesystem("memory")
    store.store.clear()
    store.pseudo_dirs[:] = [""]
    yield store
    store.store.clear()


def downloads(monkeypatch) -> list[str]:
    """The URLs that are downloaded from now on."""
    seen, download = [], remote.download

    def noting(url, *others):
        seen.append(url)
        download(url, *others)

    monkeypatch.setattr(remote, "download", noting)
    return seen


def test_a_file_is_fetched_once_and_anew_when_it_has_changed(bucket, monkeypatch):
    seen = downloads(monkeypatch)
    bucket.pipe_file("/b/x.txt", b"one")
    first = remote.local("memory://b/x.txt")
    assert remote.local("memory://b/x.txt") == first
    assert seen == ["memory://b/x.txt"]
    bucket.pipe_file("/b/x.txt", b"two")
    second = remote.local("memory://b/x.txt")
    assert [Path(path).read_bytes() for path in (first, second)] == [b"one", b"two"]


def test_processes_that_ask_at_once_fetch_once(bucket, monkeypatch):
    seen, get = downloads(monkeypatch), type(bucket).get_file

    def slow(*arguments, **options):
        time.sleep(0.05)
        get(*arguments, **options)

    monkeypatch.setattr(type(bucket), "get_file", slow)
    for number in range(5):
        bucket.pipe_file(f"/b/m/{number}", bytes(1000))
    asking = [threading.Thread(target=remote.local, args=["memory://b/m"]) for _ in range(4)]
    [each.start() for each in asking]
    [each.join() for each in asking]
    assert sorted(seen) == [f"memory://b/m/{number}" for number in range(5)]


@pytest.mark.parametrize("how", ["raises", "half"])
def test_a_download_that_is_cut_off_leaves_no_file_and_is_made_again(bucket, tmp_path, monkeypatch, how):
    bucket.pipe_file("/b/x.txt", b"whole")

    def cut(self, path, place, **options):
        with open(place, "wb") as file:
            file.write(b"wh")
        if how == "raises":
            raise ConnectionError("the line is gone")

    with monkeypatch.context() as patched:
        patched.setattr(type(bucket), "get_file", cut)
        with pytest.raises(
            RemoteError, match=r"memory://b/x\.txt: .*(the line is gone|changed while it was)"
        ):
            remote.local("memory://b/x.txt")
    assert not list((tmp_path / "cache").rglob("*x.txt*"))
    assert Path(remote.local("memory://b/x.txt")).read_text() == "whole"


def test_a_file_that_is_replaced_by_one_of_its_size_while_it_is_read_is_refused(bucket, monkeypatch):
    bucket.pipe_file("/b/x.txt", b"old")
    get = type(bucket).get_file

    def replaced(*arguments, **options):
        get(*arguments, **options)
        bucket.pipe_file("/b/x.txt", b"new")

    monkeypatch.setattr(type(bucket), "get_file", replaced)
    with pytest.raises(RemoteError, match=r"memory://b/x\.txt: the file changed while it was read"):
        remote.local("memory://b/x.txt")


def test_what_cannot_be_read_is_refused_by_its_url(bucket, monkeypatch):
    with pytest.raises(RemoteError, match="memory://b/none: no such file"):
        remote.local("memory://b/none")
    with pytest.raises(RemoteError, match="ftp://b/x: unknown scheme ftp://; expected gs://, s3://"):
        remote.local("ftp://b/x")
    with pytest.raises(RemoteError, match="gs://: expected gs://BUCKET/PATH"):
        remote.local("gs://")

    def missing(url):
        raise ImportError("Please install it")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(RemoteError, match=r"gs://b/x: .* not installed; pip install 'jaxalign\[gcs\]'"):
        remote.local("gs://b/x")


def test_a_name_that_leads_out_of_the_cache_is_refused(bucket, monkeypatch):
    monkeypatch.setattr(remote, "listing", lambda url: {"../../x": [1, "a"]})
    with pytest.raises(RemoteError, match="leads out of its folder"):
        remote.local("memory://b/m")


def test_other_paths_and_names_stay_as_they_are(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXALIGN_CACHE", str(tmp_path / "cache"))
    assert [remote.local(path) for path in ("owner/name", "/a/b", "x.jsonl", "")] == [
        "owner/name", "/a/b", "x.jsonl", "",
    ]  # fmt: skip
    assert remote.local("file:///a/b%20c") == "/a/b c"
    with pytest.raises(RemoteError, match="expected file:///"):
        remote.local("file://host/a")


def test_rows_of_a_url_are_those_of_the_file_and_errors_name_the_url(bucket):
    lines = '{"text": "one"}\n{"text": \n'
    bucket.pipe_file("/b/x.jsonl.gz", gzip.compress(lines.encode()))
    (place, row), (_, bad) = rows_of("memory://b/x.jsonl.gz")
    assert (place, row) == ("memory://b/x.jsonl.gz:1", {"text": "one"})
    assert isinstance(bad, DataError)
    assert str(bad).startswith("memory://b/x.jsonl.gz:2:")
    bucket.pipe_file("/b/parts/a.jsonl", lines.splitlines()[0].encode())
    assert [row for _, row in rows_of("memory://b/parts")] == [row]
    with pytest.raises(RemoteError, match=r"memory://b/none\.jsonl: no such file"):
        check_there(["memory://b/none.jsonl"])


def test_a_model_behind_a_url_loads_and_weights_are_fetched_only_to_be_read(
    bucket, tiny_model_folder, tmp_path
):
    bucket.put(str(tiny_model_folder), "/b/run/export", recursive=True)
    bucket.pipe(
        {"/b/run/metadata.json": b"{}", "/b/run/checkpoints/1/x": b"large", "/b/run/export/x.bin": b""}
    )
    folder = model_folder("memory://b/run")
    assert load_config(folder).vocab_size == load_config(tiny_model_folder).vocab_size
    load_tokenizer(folder)
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    load_pretrained(folder)
    names = {path.name for path in (tmp_path / "cache").rglob("*")}
    assert "model.safetensors" in names
    assert not names & {"checkpoints", "x.bin"}
    assert remote.as_named(folder) == "memory://b/run/export"
    load_pretrained("memory://b/run/export")
    with pytest.raises((ModelError, RemoteError), match="memory://b/gone"):
        load_pretrained("memory://b/gone")


def test_a_key_that_names_what_is_written_is_refused_but_run_output():
    with pytest.raises(RemoteError, match=r"rewards\.folder: gs://b/x: expected a path here"):
        remote.refuse({"rewards": {"folder": "gs://b/x"}})
    with pytest.raises(RemoteError, match="output: s3://b/x: expected a path here"):
        remote.refuse({"output": "s3://b/x"})
    remote.refuse({"run": {"output": "gs://b/x"}, "data": {"train": ["gs://b/x"]}, "prompt": "s3://x"})


def test_the_listing_of_the_cache_names_the_url(bucket, tmp_path):
    bucket.pipe_file("/b/m/a", b"1")
    remote.local("memory://b/m")
    (file,) = (tmp_path / "cache").rglob(remote.LISTING)
    assert json.loads(file.read_text())["url"] == "memory://b/m"
