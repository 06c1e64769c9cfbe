"""What a run says as it begins: on standard error, in run.log, in metadata.json and in the report."""

import contextlib
import io
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from jaxalign.data import DataConfig
from jaxalign.errors import ConfigError
from jaxalign.models.lora import LoraConfig
from jaxalign.runs import Run
from jaxalign.training.core.opening import tell_rows
from jaxalign.training.sft import SFTConfig, train_sft
from tests.training.conftest import Configs

# Of 20 rows two have a prompt that leaves no room, and five are cut.
ROWS = [{"prompt": f"row {i} ", "completion": "a" * 5} for i in range(13)]
ROWS += [{"prompt": f"cut {i} ", "completion": "b" * 90} for i in range(5)]
ROWS += [{"prompt": "p" * 80 + str(i), "completion": "c"} for i in range(2)]


@pytest.fixture(scope="module")
def begun(tiny_model_folder, pairs_file, steps_file, tmp_path_factory):
    """A run that trains an adapter on one of 8 devices: its folder, configuration and standard error."""
    folder = tmp_path_factory.mktemp("opening")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    made = Configs(tiny_model_folder, pairs_file, steps_file)
    # No max_length: the tiny model reads 64 tokens.
    data = DataConfig(train=(str(folder / "rows.jsonl"),), template="plain", validation_fraction=0.0)
    config = made.sft(folder / "run", data=data, lora=LoraConfig(enabled=True, rank=2))
    config = replace(
        config, run=made.run(folder / "run", progress=True), train=replace(made.train, batch_size=6, steps=2)
    )
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        train_sft(config)
    return folder / "run", config, said.getvalue()


@pytest.mark.long
def test_a_run_says_what_it_begins_with(begun, tiny_model_folder):
    folder, _, said = begun
    meta = json.loads((folder / "metadata.json").read_text())
    trained = meta["training"]["trained_parameters"]
    whole = meta["models"]["model"]["parameters"]
    assert meta["models"]["model"] == {
        "path": str(tiny_model_folder.resolve()), "revision": "", "tokenizer": "", "random_init": False,
        "dtype": "float32", "family": "llama", "parameters": whole, "param_dtype": "float32",
        "compute_dtype": "float32", "compute_dtype_reason": "a cpu",
    }  # fmt: skip
    assert 0 < trained < whole
    assert (meta["training"]["steps"], meta["training"]["batches_per_epoch"]) == (2, 3.0)
    lines = [
        f"model: {tiny_model_folder} (llama, {whole:,} parameters, {4 * whole / 1024:.1f} KiB in float32)",
        "data: 20 rows read; 18 used; 2 filtered (prompt too long: 2); 5 cut to 64 tokens; 18 for training, 0 held",
        "devices: 1 of 8 cpu",
        f"train: 2 steps, 3.0 per epoch; {meta['training']['first_batch_tokens']} tokens in the first batch; "
        f"{trained} trainable parameters ({trained / whole:.2%} of the model)",
        "compiling the training step ...",
        "training step compiled in ",
    ]
    log, page = (folder / "run.log").read_text(), (folder / "report.html").read_text()
    for line in lines:
        assert line in said, line
        assert line in log, line
    assert said.index("compiling") < said.index("sft 1/2")
    for part, what in meta["opening"].items():
        assert f">{part}<" in page and what in page


def test_a_loss_of_rows_and_devices_without_work_are_warnings_with_their_keys(begun):
    _, _, said = begun
    assert (
        "warning: data: 2 of 20 rows (10%) were dropped: prompt too long: 2 ("
        "data.truncation=cut_prompt_start)\n" in said
    )
    assert (
        "warning: data: 5 of 20 rows (25%) were cut by data.truncation=cut_completion to data.max_length=64\n"
        in said
    )
    assert "warning: 7 of 8 devices are unused (cpu 1 to 7; the mesh has cpu 0): set mesh.data=-1 " in said
    # The run was to be evaluated, and holds nothing out.
    assert "warning: data: no held-out rows, so nothing is evaluated: set data.validation" in said


def test_the_report_has_the_command_as_it_can_be_typed(begun):
    from jaxalign.runs.report import write_report

    folder, _, _ = begun
    meta = json.loads((folder / "metadata.json").read_text())
    meta |= {"program": "jaxalign", "arguments": ["sft", "--data.train=two words.jsonl"]}
    (folder / "metadata.json").write_text(json.dumps(meta))
    assert (
        "<pre class=command>jaxalign sft &#x27;--data.train=two words.jsonl&#x27;</pre>"
        in write_report(folder).read_text()
    )


def test_a_run_that_began_with_an_older_default_says_how_to_go_on(begun):
    folder, config, _ = begun
    meta = json.loads((folder / "metadata.json").read_text())
    meta["config"]["data"] |= {"max_length": 512, "truncation": "filter"}
    (folder / "metadata.json").write_text(json.dumps(meta))
    again = replace(config, run=replace(config.run, resume=True))
    with pytest.raises(
        ConfigError, match=r"must keep its configuration: --data\.max_length=512 --data\.truncation=filter$"
    ):
        train_sft(again)


def test_rows_that_were_asked_to_be_left_out_are_no_loss(tmp_path):
    """Nor are few."""
    config = SFTConfig()
    config = replace(config, run=replace(config.run, output=str(tmp_path / "run"), progress=False))
    few = {"duplicate": 40, "left out by data.keep: safe": 20, "score below data.min_score": 10, "tie": 5}
    counts, shape = SimpleNamespace(read=165, used=95), SimpleNamespace(family="llama", max_positions=64)
    from collections import Counter

    with Run.open(config.run, config, "sft") as run:
        run.add_metadata(data={"truncated": 5})
        for filtered in (few, few | {"tie": 6}):
            counts.filtered = Counter(filtered)
            example = SimpleNamespace(rows=[(1, 2)], prompt_tokens=(1,))
            found = SimpleNamespace(train=[example], validation=[], counts=counts)
            tell_rows(run, DataConfig().within(64), found, shape)
        log = (tmp_path / "run" / "run.log").read_text()
    assert "model: passed live (llama)" in log
    assert log.count("WARNING") == 1 and "6 of 101 rows (6%) were dropped: tie: 6\n" in log


def test_8_bit_moments_without_effect_are_warned_of(tiny_model_folder, pairs_file, steps_file, tmp_path):
    config = Configs(tiny_model_folder, pairs_file, steps_file).sft(tmp_path / "run")
    train_sft(replace(config, optimizer=replace(config.optimizer, moment_dtype="8bit")))
    log = (tmp_path / "run" / "run.log").read_text()
    assert (
        "optimizer.moment_dtype=8bit has no effect: no trained matrix has 4,096 numbers and a last axis of 256"
        in log
    )
