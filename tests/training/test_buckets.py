"""Training from and to a bucket, which a host that has nothing goes on from."""

import json

import fsspec
import pytest

from jaxalign import remote
from jaxalign.cli.main import main


@pytest.mark.long
def test_a_run_in_a_bucket_is_resumed_by_a_host_that_has_nothing(
    tiny_model_folder, pairs_file, tmp_path, monkeypatch, capsys
):
    store = fsspec.filesystem("memory")
    store.store.clear()
    store.put(str(tiny_model_folder), "/bucket/model", recursive=True)
    store.put_file(str(pairs_file), "/bucket/pairs.jsonl")
    url, read = (
        "memory://bucket/runs/a",
        ["--model.path=memory://bucket/model", "--data=memory://bucket/pairs.jsonl"],
    )

    def train(host, steps, *more):
        monkeypatch.setenv("JAXALIGN_CACHE", str(tmp_path / host))
        flags = [*read, f"--output={url}", f"--train.steps={steps}", "--train.batch_size=2", *more]
        return main(["dpo", *flags, "--run.log_every=1", "--data.max_length=48", "--run.progress=false"])

    assert train("first", 1) == 0
    assert f"results: {url} (on this host: " in capsys.readouterr().out
    assert train("second", 2) == 2
    assert f"{url} already holds a run" in capsys.readouterr().err
    assert train("second", 2, "--resume") == 0
    rows = [json.loads(row) for row in (remote.read_bytes(f"{url}/metrics.jsonl") or b"").splitlines()]
    assert [row["step"] for row in rows if "train/loss" in row] == [1, 2]
    metadata = json.loads(remote.read_bytes(f"{url}/metadata.json") or b"")
    assert metadata["models"]["model"]["path"] == "memory://bucket/model"
    assert set(metadata["data"]["files"]) == {"memory://bucket/pairs.jsonl"}
    there = remote.listing(url)
    assert {"export/model.safetensors", "checkpoints/2/_CHECKPOINT_METADATA"} <= there.keys()
    store.store.clear()
