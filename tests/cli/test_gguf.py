"""A `.gguf` file wherever a model is named, and `jaxalign export --format=gguf`."""

import json
import sys
from types import SimpleNamespace

import pytest

from jaxalign import models
from jaxalign.cli.main import main
from jaxalign.errors import ConfigError
from jaxalign.export.checkpoint_export import Checkpoint
from jaxalign.export.gguf_files import save_gguf
from tests.models.gguf.tokenizers import byte_level


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A tiny random Llama in F16, with a chat template."""
    import jax

    tokenizer = byte_level("smollm", 300)
    config = models.ModelConfig(
        vocab_size=len(tokenizer) + 2,
        hidden_size=16,
        intermediate_size=32,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        head_dim=8,
        max_positions=128,
        eos_ids=(tokenizer.eos_token_id,),
    )
    path = tmp_path_factory.mktemp("models") / "tiny.gguf"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "llama_cpp", None)
        return save_gguf(
            models.create(config, key=jax.random.key(0)), path, tokenizer=tokenizer, say=lambda line: None
        )


@pytest.fixture(scope="module")
def run(file, tmp_path_factory):
    """A DPO run of an adapter on the file, which is its reference too."""
    folder = tmp_path_factory.mktemp("runs")
    rows = [{"prompt": f"say {i}", "chosen": f" {i * 7}", "rejected": " no"} for i in range(8)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = [f"--model.path={file}", f"--reference.path={file}", f"--data={folder / 'rows.jsonl'}"]
    flags += ["--max-length=48", "--steps=1", "--batch-size=4", "--lora.enabled=true", "--run.progress=false"]
    assert main(["dpo", *flags, "--sampling.max_new_tokens=2", f"--output={folder / 'run'}"]) == 0
    return folder / "run"


@pytest.fixture(autouse=True)
def no_llama(monkeypatch):
    monkeypatch.setitem(sys.modules, "llama_cpp", None)


@pytest.mark.long
def test_generate_and_check_read_a_file(file, capsys):
    assert main(["generate", f"--model={file}", "--prompt=Once upon", "--max-new-tokens=3"]) == 0
    assert f"model: {file} (llama, " in capsys.readouterr().err
    assert main(["check", f"--model={file}"]) == 0
    said = capsys.readouterr().out
    assert f"model         {file}: llama, 2 layers, width 16" in said
    assert f"weights {file.stat().st_size / 2**20:.1f} MiB" in said


@pytest.mark.long
def test_a_run_that_began_with_a_file_exports_a_folder_in_its_dtype(file, run):
    assert models.load_tokenizer(run / "export").chat_template == models.load_tokenizer(file).chat_template
    assert json.loads((run / "export" / "config.json").read_text())["dtype"] == "float16"
    noted = json.loads((run / "metadata.json").read_text())["models"]["model"]
    assert (noted["path"], noted["dtype"]) == (str(file), "float16")


def test_a_checkpoint_is_exported_as_a_file_in_a_folder(run, capsys):
    assert main(["export", str(run), "--format=gguf"]) == 0
    place = run / "exports" / "step-1-gguf"
    said = capsys.readouterr()
    assert said.out == f"step 1: {place}\n"
    assert (
        said.err.endswith("llama-cpp-python is not installed\n") and f"{place / 'model.gguf'}: " in said.err
    )
    assert {path.name for path in place.iterdir()} == {"model.gguf", "README.md", "jaxalign_export.json"}
    assert "library_name: gguf" in (place / "README.md").read_text()
    folder = models.load_pretrained(run / "export").params
    for name in ("q_proj", "down_proj"):
        assert (models.load_pretrained(place).params["layers"][name] == folder["layers"][name]).all()
    assert main(["export", str(run), "--format=gguf"]) == 0
    assert capsys.readouterr().out.endswith("(exported before)\n")
    assert main(["generate", f"--model={place}", "--prompt=say 1", "--max-new-tokens=2"]) == 0


def test_a_name_that_ends_in_gguf_is_a_file(run, tmp_path, capsys):
    file = tmp_path / "q8.gguf"
    assert main(["export", str(run), "--format=gguf", "--dtype=q8_0", f"--output={file}"]) == 0
    assert capsys.readouterr().out == f"step 1: {file}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["q8.gguf"]
    assert models.load_config(file).num_layers == 2


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--dtype=q8_0"], "--dtype=q8_0: only GGUF has it; add --format=gguf"),
        (["--output=x.gguf"], "--output=x.gguf: the name of a GGUF file; add --format=gguf"),
        (["--format=gguf", "--merge=false"], "GGUF files have whole models; remove the flag"),
        (["--format=gguf", "--output=x.gguf", "--push-to-hub=me/x"], "--push-to-hub uploads a folder"),
    ],
)
def test_flags_that_do_not_go_together_are_one_line(flags, expected, run, capsys):
    assert main(["export", str(run), *flags]) == 2
    said = capsys.readouterr().err
    assert expected in said and len(said.splitlines()) == 1


@pytest.mark.parametrize("command", ["reward", "tfpo"])
def test_a_head_has_no_form(command):
    one = SimpleNamespace(merge=True, run="runs/r", origin=SimpleNamespace(metadata={"command": command}))
    with pytest.raises(ConfigError, match=f"runs/r: a run of `{command}` trained a head, which GGUF has not"):
        Checkpoint.check_gguf(one)


def test_a_file_that_is_none_is_one_line(tmp_path, capsys):
    (tmp_path / "x.gguf").write_text("no model of any kind here")
    assert main(["generate", f"--model={tmp_path / 'x.gguf'}", "--prompt=a"]) == 2
    assert "x.gguf: not a GGUF file" in capsys.readouterr().err
