"""A run whose folder is a URL is there what it is here, and whole or not at all."""

import contextlib
import shutil
from dataclasses import dataclass, field

import fsspec
import pytest

from jaxalign import remote
from jaxalign.errors import ConfigError, RemoteError
from jaxalign.runs import Run, RunConfig, mirror
from jaxalign.runs.mirror import Mirror

URL = "memory://bucket/runs/a"


@dataclass(frozen=True, kw_only=True)
class Config:
    """A configuration.

    Attributes:
      run: the run.
    """

    run: RunConfig = field(default_factory=RunConfig)


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """fsspec's store in memory, empty; two hosts have caches of their own (`host`)."""
    store = fsspec.filesystem("memory")
    store.store.clear()
    store.pseudo_dirs[:] = [""]
    monkeypatch.setenv("JAXALIGN_CACHE", str(tmp_path / "first"))
    yield store
    store.store.clear()


def opened(**changes) -> Run:
    settings = Config(run=RunConfig(output=URL, progress=False, **changes))
    return Run.open(settings.run, settings, "sft")


def there() -> set[str]:
    return {name for name in remote.listing(URL) if name != mirror.WRITER}


def save(folder, step: int, content: str = "arrays") -> None:
    """Something of the form of a checkpoint."""
    place = folder / "checkpoints" / str(step)
    (place / "arrays").mkdir(parents=True)
    (place / "arrays" / "a").write_text(content)
    (place / "_CHECKPOINT_METADATA").write_text("{}")


def test_a_run_is_copied_and_continued_by_a_host_that_has_nothing(bucket, tmp_path, monkeypatch):
    with opened() as run:
        run.log_metrics(1, {"train/loss": 2.0})
        save(run.folder, 1)
    assert {"metadata.json", "config.yaml", "metrics.jsonl", "run.log", "checkpoints/1/arrays/a"} <= there()
    monkeypatch.setenv("JAXALIGN_CACHE", str(tmp_path / "second"))
    with pytest.raises(ConfigError, match=f"{URL} already holds a run; .*--resume"):
        opened()
    with opened(resume=True) as run:
        assert run.resumed
        assert (run.folder / "checkpoints" / "1" / "arrays" / "a").read_text() == "arrays"
        shutil.rmtree(run.folder / "checkpoints" / "1")
        save(run.folder, 2)
    assert {name for name in there() if name.startswith("checkpoints")} == {
        "checkpoints/2/arrays/a", "checkpoints/2/_CHECKPOINT_METADATA",
    }  # fmt: skip


def test_an_error_copies_what_there_is_and_a_failed_start_leaves_nothing(bucket):
    with pytest.raises(ZeroDivisionError), opened():
        raise ZeroDivisionError
    assert remote.listing(URL) == {}
    run = opened()
    run.log_metrics(1, {"train/loss": 2.0})
    error = ZeroDivisionError()
    run.__exit__(type(error), error, None)
    assert b"ZeroDivisionError" in remote.read_bytes(f"{URL}/run.log")


def test_a_copy_that_is_cut_off_at_any_file_leaves_whole_checkpoints_and_their_logs(
    bucket, tmp_path, monkeypatch
):
    """The host dies at each of its writes in turn; another one goes on from what is there."""
    upload, remove = remote.upload, remote.remove
    for allowed in range(20):
        bucket.store.clear()
        monkeypatch.setenv("JAXALIGN_CACHE", str(tmp_path / f"dies-{allowed}"))
        run = opened()
        run.log_metrics(1, {"train/loss": 2.0})
        save(run.folder, 1)
        run._mirror.push()
        run.log_metrics(2, {"train/loss": 1.0})
        save(run.folder, 2)
        shutil.rmtree(run.folder / "checkpoints" / "1")
        left = [allowed]

        def counted(function, left=left):
            def call(*arguments):
                left[0] -= 1
                if left[0] < 0:
                    raise RemoteError("dead")
                function(*arguments)

            return call

        with monkeypatch.context() as dying:
            dying.setattr(remote, "upload", counted(upload))
            dying.setattr(remote, "remove", counted(remove))
            with contextlib.suppress(RemoteError):
                run._mirror.push()
        run._mirror.release()
        monkeypatch.setenv("JAXALIGN_CACHE", str(tmp_path / f"goes-on-{allowed}"))
        found, said = Mirror(URL), []
        found.begin(resume=True, caches=(), warn=said.append)
        found.release()
        steps = sorted(
            int(file.parent.name) for file in found.folder.glob("checkpoints/*/_CHECKPOINT_METADATA")
        )
        assert steps == sorted(int(place.name) for place in found.folder.glob("checkpoints/*"))
        logged = (found.folder / "metrics.jsonl").read_text().count("\n")
        for step in steps:
            assert (found.folder / "checkpoints" / str(step) / "arrays" / "a").is_file()
            assert logged >= step
        if left[0] > 0:
            assert steps == [2]
            return
    raise AssertionError("the copy never ended")


def test_there_is_always_a_whole_checkpoint_there_while_another_takes_its_place(bucket, monkeypatch):
    run = opened()
    save(run.folder, 1)
    run._mirror.push()
    save(run.folder, 2)
    shutil.rmtree(run.folder / "checkpoints" / "1")
    upload, seen = remote.upload, []

    def watched(*arguments):
        seen.append("checkpoints/1/_CHECKPOINT_METADATA" in there())
        upload(*arguments)

    monkeypatch.setattr(remote, "upload", watched)
    run._mirror.push()
    assert seen
    assert all(seen)
    run._mirror.release()


def test_a_run_that_another_host_took_over_stops_and_writes_nothing_more(bucket, tmp_path, monkeypatch):
    old = opened()
    old.log_metrics(1, {"train/loss": 2.0})
    old._mirror.push()
    monkeypatch.setenv("JAXALIGN_CACHE", str(tmp_path / "second"))
    with opened(resume=True) as new:
        new.log_metrics(2, {"train/loss": 1.0})
    before = remote.listing(URL)
    save(old.folder, 5)
    with pytest.raises(RemoteError, match="has taken this run over"):
        old._mirror.push()
    with pytest.raises(RemoteError, match="has taken this run over"):
        old.log_metrics(3, {"train/loss": 0.0})
    with pytest.raises(RemoteError, match="has taken this run over"):
        old.__exit__(None, None, None)
    assert remote.listing(URL) == before
    # What it had not copied is set aside when its host goes on.
    monkeypatch.setenv("JAXALIGN_CACHE", str(tmp_path / "first"))
    with opened(resume=True) as again:
        assert not (again.folder / "checkpoints" / "5").exists()
        assert (again.folder.with_name("a.before") / "checkpoints" / "5").is_dir()
        assert "what was not copied is in" in (again.folder / "run.log").read_text()


def test_what_could_not_be_copied_is_kept_and_copied_by_the_next_try(bucket, monkeypatch):
    run = opened()
    run.log_metrics(1, {"train/loss": 2.0})
    save(run.folder, 1)
    with monkeypatch.context() as broken:

        def refuse(*_):
            raise RemoteError(f"{URL}: cannot be written (no route)")

        broken.setattr(remote, "upload", refuse)
        with pytest.raises(RemoteError, match=r"no route.*--resume on this host"):
            run.__exit__(None, None, None)
    assert not any(name.startswith("checkpoints") for name in there())
    with opened(resume=True) as run:
        assert (run.folder / "checkpoints" / "1").is_dir()
    assert "checkpoints/1/_CHECKPOINT_METADATA" in there()


def test_one_host_writes_a_run_once_at_a_time(bucket):
    with opened() as run, pytest.raises(ConfigError, match="another process of this host writes this run"):
        opened(resume=True)
    assert run.folder.is_dir()


def test_half_an_export_and_temporary_files_stay_away(bucket, tmp_path, monkeypatch):
    with opened() as run:
        run.log_metrics(1, {"train/loss": 2.0})
        for name in ("export/config.json", "export/model.safetensors", ".export.x/config.json"):
            (run.folder / name).parent.mkdir(exist_ok=True)
            (run.folder / name).write_text("{}")
        (run.folder / "checkpoints" / "3.orbax-checkpoint-tmp").mkdir(parents=True)
        (run.folder / "checkpoints" / "3.orbax-checkpoint-tmp" / "x").write_text("half")
    assert {name for name in there() if "export" in name or "tmp" in name} == {
        "export/config.json", "export/model.safetensors",
    }  # fmt: skip
    remote.remove(f"{URL}/export/config.json")
    monkeypatch.setenv("JAXALIGN_CACHE", str(tmp_path / "second"))
    with opened(resume=True) as run:
        assert not (run.folder / "export").exists()
        assert f"{URL}/export: this copy was cut off" in (run.folder / "run.log").read_text()
    assert "export/model.safetensors" not in there()


def test_a_url_that_cannot_be_written_makes_no_folder_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAXALIGN_CACHE", str(tmp_path / "cache"))
    settings = Config(run=RunConfig(output="ftp://bucket/a", progress=False))
    with pytest.raises(RemoteError, match="ftp://bucket/a: unknown scheme"):
        Run.open(settings.run, settings, "sft")
    assert list(tmp_path.iterdir()) == []
    settings = Config(run=RunConfig(output=f"file://{tmp_path}/here", progress=False))
    with Run.open(settings.run, settings, "sft") as run:
        assert run.folder == tmp_path / "here"
