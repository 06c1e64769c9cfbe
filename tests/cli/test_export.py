"""`jaxalign export RUN`, and names of checkpoints wherever a model is named."""

import json
from typing import ClassVar

import pytest

from jaxalign.cli import export as exporting
from jaxalign.cli.main import main
from jaxalign.models.tensor_dtypes import folder_dtype


@pytest.fixture(scope="module")
def run(tiny_model_folder, tmp_path_factory):
    """A tiny SFT run with LoRA; checkpoints of steps 1 and 2."""
    folder = tmp_path_factory.mktemp("runs")
    rows = [{"prompt": f"say {i}", "completion": f" {i * 7}"} for i in range(12)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    status = main(
        [
            "sft",
            f"--model={tiny_model_folder}",
            f"--data={folder / 'rows.jsonl'}",
            "--data.validation_fraction=0.2",
            "--max-length=48",
            "--steps=2",
            "--batch-size=4",
            "--lora.enabled=true",
            "--run.save_every=1",
            "--run.eval_every=1",
            "--run.progress=false",
            "--run.best_metric=eval/loss",
            "--sampling.max_new_tokens=2",
            f"--output={folder / 'run'}",
        ]
    )
    assert status == 0
    return folder / "run"


@pytest.mark.long
def test_the_run_is_the_first_argument(run, tmp_path, capsys):
    assert (
        main(["export", str(run), "--checkpoint=1", f"--output={tmp_path / 'one'}", "--dtype=bfloat16"]) == 0
    )
    assert capsys.readouterr().out == f"step 1: {tmp_path / 'one'}\n"
    assert folder_dtype(tmp_path / "one") == "bfloat16"
    for flags in ([f"--run={run}", "--checkpoint=1"], [f"{run}@1"]):
        assert main(["export", *flags]) == 0
    assert capsys.readouterr().out.splitlines()[1].endswith("exports/step-1 (exported before)")


def test_a_flag_alone_is_true_and_false_writes_the_adapter(run, capsys):
    assert main(["export", str(run), "--checkpoint=2", "--merge=false"]) == 0
    assert (run / "exports" / "step-2-adapter" / "adapter_config.json").is_file()
    assert main(["export", str(run), "--merge", "--checkpoint=1"]) == 0
    assert "step-1" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["best", "latest", "1"])
def test_generate_and_chat_take_a_checkpoint(name, run, capsys):
    assert main(["generate", f"{run}@{name}", "--prompt=hi", "--max-new-tokens=2"]) == 0
    once = capsys.readouterr().out
    # As `--model`, and written as in training: from an export elsewhere too, by its chat template.
    assert main(["generate", f"--model={run}@{name}", "--prompt=hi", "--max-new-tokens=2"]) == 0
    assert capsys.readouterr().out == once and once.startswith("> hi")


def test_an_export_elsewhere_is_asked_as_in_training(run, tmp_path):
    from jaxalign.inference.loading import load_speaker

    main(["export", str(run), f"--output={tmp_path / 'out'}", "--checkpoint=2"])
    here, there = load_speaker(f"{run}@2"), load_speaker(str(tmp_path / "out"))
    assert here.format.template == there.format.template == "markers"
    assert here.encode("hi", "be kind") == there.encode("hi", "be kind")
    assert here.format.end_ids == there.format.end_ids == (257,)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "expected the run: jaxalign export RUN"),
        (["nowhere"], "nowhere: expected a run folder"),
        (["RUN@7"], "no checkpoint at step 7; saved steps: 1, 2"),
        (["RUN@1", "--checkpoint=2"], "name different checkpoints"),
        (["RUN", "--dtype=int8"], "--dtype: expected"),
        (["RUN", "--push-to-hub=me"], "--push-to-hub=me: expected OWNER/NAME"),
        (["RUN", "more"], "'more': expected --dotted.key=value"),
    ],
)
def test_a_mistake_is_one_line(arguments, said, run, capsys):
    assert main(["export", *(a.replace("RUN", str(run)) for a in arguments)]) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.splitlines()) == 1


# --- the hub --------------------------------------------------------------------------------------


class Hub:
    """Stands for `HfApi`, with the arguments of its real methods."""

    calls: ClassVar[list[tuple[str, dict]]] = []
    broken = ""

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> None:
        self.calls.append(("create", {"repo_id": repo_id, "private": private, "exist_ok": exist_ok}))

    def upload_folder(self, *, repo_id, folder_path, commit_message, ignore_patterns) -> str:
        if self.broken:
            raise RuntimeError(self.broken)
        given = {"repo_id": repo_id, "folder_path": folder_path, "commit_message": commit_message}
        self.calls.append(("upload", given | {"ignore_patterns": ignore_patterns}))
        return f"https://hub/{repo_id}/commit/1"


@pytest.fixture
def hub(monkeypatch):
    """Every upload goes to a stand-in; its calls are given."""
    import huggingface_hub

    monkeypatch.setattr(Hub, "calls", [])
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    return Hub


def test_nothing_is_uploaded_unless_it_is_asked_for(run, hub):
    assert main(["export", str(run), "--checkpoint=1"]) == 0
    assert hub.calls == []


@pytest.mark.parametrize(("flags", "private"), [([], True), (["--private=false"], False)])
def test_an_export_is_uploaded_private_by_default(flags, private, run, hub, capsys):
    assert main(["export", str(run), "--checkpoint=1", "--push-to-hub=me/mine", *flags]) == 0
    (first, made), (second, sent) = hub.calls
    assert (first, made) == ("create", {"repo_id": "me/mine", "private": private, "exist_ok": True})
    assert second == "upload" and sent["folder_path"] == run / "exports" / "step-1"
    # Where it lay on this machine is nobody's business.
    assert "jaxalign_export.json" in sent["ignore_patterns"]
    assert "uploaded: https://hub/me/mine/commit/1" in capsys.readouterr().out


def test_the_stand_in_has_the_arguments_of_the_hub():
    import inspect

    from huggingface_hub import HfApi

    for name in ("create_repo", "upload_folder"):
        ours = set(inspect.signature(getattr(Hub, name)).parameters)
        assert ours <= set(inspect.signature(getattr(HfApi, name)).parameters)


def test_what_the_hub_refuses_is_one_line(run, hub, capsys, monkeypatch):
    monkeypatch.setattr(Hub, "broken", "401 Client Error\nInvalid token")
    assert main(["export", str(run), "--checkpoint=1", "--push-to-hub=me/mine"]) == 2
    error = capsys.readouterr().err
    assert "--push-to-hub=me/mine: the hub rejected the upload (401 Client Error Invalid token)" in error
    assert len(error.splitlines()) == 1
    assert exporting.check_repository("a/b") is None
