import dataclasses
import errno
import os
import signal
import subprocess
import sys
import time
import types
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import pytest

from jaxalign import config as configs
from jaxalign.cli import main as cli
from jaxalign.cli.failures import MEMORY_KNOBS
from jaxalign.errors import ConfigError, DataError


@dataclass(frozen=True, kw_only=True)
class Run:
    """The run.

    Attributes:
      output: folder.
      seed: seed.
      device: where.
      resume: go on.
    """

    output: str = ""
    seed: int = 0
    device: Literal["auto", "cpu", "gpu", "tpu"] = "auto"
    resume: bool = False


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to sample.

    Attributes:
      max_new_tokens: length.
    """

    max_new_tokens: int = 1


@dataclass(frozen=True, kw_only=True)
class Config:
    """What the fake trainer is told.

    Attributes:
      run: the run.
      rate: a rate.
      rows: what to do with bad rows.
      texts: some texts.
      sampling: how to sample.
    """

    run: Run = field(default_factory=Run)
    rate: float = 1.0
    rows: str = "stop"
    texts: tuple[str, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)

    def __post_init__(self):
        if self.rate < 0:
            raise ValueError(f"rate must not be negative, got {self.rate}")


@dataclass(frozen=True, kw_only=True)
class Flat:
    """A command without a run.

    Attributes:
      output: file.
    """

    output: str = ""


REAL = dict(cli.COMMANDS)


class Stopped(BaseException):
    """As jaxalign.training.core.loop.Interrupted."""

    signal = signal.SIGTERM


@pytest.fixture
def fake(monkeypatch):
    """A command `train` whose function the test sets; it records the configuration it got."""
    module = types.ModuleType("fake_command")
    module.Config, module.Flat, module.seen, module.act = Config, Flat, [], lambda config: None

    def train(config):
        """Trains nothing."""
        module.seen.append(config)
        return module.act(config)

    module.train = train
    monkeypatch.setitem(sys.modules, "fake_command", module)
    commands = {
        "train": cli.Command("trains", "fake_command:Config", "fake_command:train", {"on_bad_row": "rows"}),
        "write": cli.Command("writes", "fake_command:Flat", "fake_command:train"),
    }
    monkeypatch.setattr(cli, "COMMANDS", commands)
    return module


def raises(error):
    def act(config):
        raise error

    return act


def test_plain_flags_reach_the_run(fake):
    arguments = ["train", "--output", "here", "--seed=7", "--device", "cpu", "--resume", "--rate=0.5"]
    assert cli.main(arguments) == 0
    assert fake.seen == [Config(run=Run(output="here", seed=7, device="cpu", resume=True), rate=0.5)]


@pytest.mark.parametrize(
    ("arguments", "resume"),
    [
        (["--resume"], True),
        (["--resume", "false"], False),
        (["--resume=true"], True),
        (["--run.resume=true"], True),
    ],
)
def test_resume_may_stand_alone_or_have_a_value(fake, arguments, resume):
    assert cli.main(["train", *arguments]) == 0
    assert fake.seen[0].run.resume is resume


def test_alias_with_dashes_sets_its_key(fake):
    assert cli.main(["train", "--on-bad-row=skip"]) == 0
    assert fake.seen[0].rows == "skip"


@pytest.mark.parametrize(
    ("typed", "texts"),
    [
        (["--texts=one"], ("one",)),
        (["--texts=one", "--texts", "two, three"], ("one", "two, three")),
        (["--texts=[007, no]", "--texts=1e5", "--texts='"], ("007", "no", "1e5", "'")),
        (["--texts=", "--texts=one"], ("one",)),
    ],
)
def test_a_flag_of_a_list_may_be_repeated_and_each_adds(fake, typed, texts):
    assert cli.main(["train", *typed]) == 0
    assert fake.seen[0].texts == texts


def test_common_keys_have_short_flags_where_the_command_has_the_key(fake, capsys):
    assert cli.main(["train", "--max-new-tokens=7"]) == 0
    assert fake.seen[0].sampling.max_new_tokens == 7
    assert cli.main(["train", "--help"]) == 0
    assert "--max-new-tokens, --sampling.max_new_tokens  (int;" in capsys.readouterr().out
    assert cli.main(["write", "--max-new-tokens=7"]) == 2


def test_short_flags_name_keys_that_some_command_has():
    keys = {key.name for c in REAL.values() for key in configs.describe(cli.load(c.config))}
    assert set(cli.SHORT_FLAGS.values()) <= keys
    settings = cli.read_settings(REAL["grpo"], ["--profile.steps=10:15"])
    assert settings.run.profile_steps == "10:15"


def test_a_group_of_keys_is_still_one_where_its_name_is_a_short_flag(fake):
    command = cli.Command("", "fake_command:Config", "", {"sampling": "sampling.max_new_tokens"})
    for typed in ("--sampling=7", "--sampling={max_new_tokens: 7}"):
        assert cli.read_settings(command, [typed]).sampling.max_new_tokens == 7


def test_file_is_read_and_flags_win_over_it(fake, tmp_path):
    (tmp_path / "c.yaml").write_text("rate: 0.25\nrun: {seed: 3, output: there}\n")
    assert cli.main(["train", "--config", str(tmp_path / "c.yaml"), "--seed", "4"]) == 0
    assert fake.seen == [Config(run=Run(output="there", seed=4), rate=0.25)]


def test_flag_of_a_command_without_run_is_its_own_key(fake):
    assert cli.main(["write", "--output=x.jsonl"]) == 0
    assert fake.seen == [Flat(output="x.jsonl")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "jaxalign: error: trian: unknown command; did you mean train?"),
        (["zzz"], "jaxalign: error: zzz: unknown command; commands: train, write"),
        (["--rate=1", "train"], "jaxalign: error: --rate=1: expected a command first"),
        (["train", "--rte=1"], "jaxalign train: error: --rte: unknown key; did you mean rate?"),
        (["train", "--ra=1"], "jaxalign train: error: --ra: unknown key; did you mean rate?"),
        (["train", "--rate=fast"], "jaxalign train: error: --rate: expected float, got 'fast'"),
        (["train", "--rate=-1"], "jaxalign train: error: rate must not be negative, got -1.0"),
        (["train", "--rate"], "jaxalign train: error: --rate: expected a value"),
        (["train", "stray"], "jaxalign train: error: 'stray': expected --dotted.key=value"),
        (["train", "--config=none.yaml"], "jaxalign train: error: --config none.yaml: no such file"),
        (["train", "--config=a", "--config=b"], "jaxalign train: error: --config is given twice: a and b"),
        (["train", "--rate=1", "--rate=2"], "jaxalign train: error: --rate is given twice: 1 and 2"),
        (["train", "--seed=1", "--run.seed=2"], "jaxalign train: error: --seed is given twice: 1 and 2"),
        (["train", "--texts=[a", "--texts=[{]"], "jaxalign train: error: [{]: not valid YAML"),
        (["write", "--seed=1"], "jaxalign write: error: --seed: this command has no such flag"),
        (
            ["train", "--device=gpu"],
            "jaxalign train: error: --device gpu: no gpu found; available: cpu",
        ),
        (["train", "--device=npu"], "--run.device: expected auto | cpu | gpu | tpu, got 'npu'"),
    ],
)
def test_users_mistake_gives_one_line_and_status_2(fake, capfd, arguments, message):
    assert cli.main(arguments) == 2
    shown = capfd.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1
    assert fake.seen == []


def test_users_error_in_a_command_gives_one_line_and_status_2(fake, capfd):
    fake.act = raises(DataError("rows.jsonl:3: expected\n  a prompt"))
    assert cli.main(["train"]) == 2
    assert capfd.readouterr().err == "jaxalign train: error: rows.jsonl:3: expected a prompt\n"


def test_bug_keeps_its_traceback_and_gives_status_1(fake, capfd):
    fake.act = raises(KeyError("lost"))
    assert cli.main(["train"]) == 1
    shown = capfd.readouterr().err
    assert "Traceback" in shown
    assert "KeyError: 'lost'" in shown
    assert "this is a bug" in shown


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (Stopped("stopped by signal 15; continue from"), 143, "stopped by signal 15; continue from"),
        (
            jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes.\nmore"),
            2,
            MEMORY_KNOBS,
        ),
        (MemoryError(), 2, MEMORY_KNOBS),
        (OSError(errno.ENOSPC, "No space left on device", "run/x"), 2, "no space left on the disk (run/x)"),
        (ValueError("UNKNOWN: write failed: No space left on device [28]"), 2, "no space left on the disk"),
    ],
)
def test_stops_and_full_resources_give_one_line_and_their_status(fake, capfd, error, status, message):
    fake.act = raises(error)
    assert cli.main(["train"]) == status
    shown = capfd.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1


def test_full_disk_is_seen_through_the_error_that_wraps_it(fake, capfd):
    def act(config):
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise RuntimeError("saving failed") from error

    fake.act = act
    assert cli.main(["train"]) == 2
    assert "no space left" in capfd.readouterr().err


def test_out_of_memory_text_in_another_error_stays_a_bug(fake, capfd):
    fake.act = raises(RuntimeError("RESOURCE_EXHAUSTED is only a word here"))
    assert cli.main(["train"]) == 1


def test_result_of_training_is_printed(fake, capsys):
    fake.act = lambda config: types.SimpleNamespace(folder="runs/x", metrics={"eval/loss": 1.25})
    assert cli.main(["train"]) == 0
    shown = capsys.readouterr().out
    assert "eval/loss" in shown
    assert "1.25" in shown
    assert shown.endswith("results: runs/x\n")


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_help_lists_every_command(fake, capsys, arguments):
    assert cli.main(arguments) == 0
    shown = capsys.readouterr().out
    assert "train" in shown
    assert "writes" in shown


def test_help_of_a_command_prints_every_key_with_type_default_and_meaning(fake, capsys):
    assert cli.main(["train", "--help-all"]) == 0
    shown = capsys.readouterr().out
    assert "--device, --run.device  (auto | cpu | gpu | tpu; default auto)\n      where." in shown
    assert "--rate  (float; default 1.0)\n      a rate." in shown
    assert "--on-bad-row, --rows  (" in shown
    assert "Trains nothing." in shown
    assert fake.seen == []


def test_version_is_printed(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("jaxalign 0.")


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_command_loads_and_every_key_of_it_has_a_meaning(name):
    command = cli.COMMANDS[name]
    cls: Any = cli.load(command.config)
    assert callable(cli.load(command.function))
    assert dataclasses.is_dataclass(cls)
    assert [key.name for key in cli.configs.describe(cls) if not key.meaning] == []
    known = {key.name for key in cli.configs.describe(cls)}
    assert set(command.aliases.values()) <= known
    assert set(cli.plain_flags(cls).values()) <= known
    assert f"usage: jaxalign {name}" in cli.command_help(name)


def test_default_configuration_of_every_command_survives_its_file(tmp_path):
    for name, command in cli.COMMANDS.items():
        cls = cli.load(command.config)
        try:
            default = cls()
        except (TypeError, ValueError):
            continue  # a key without a default (of a sweep), or without a usable one, such as a reward
        cli.configs.save_yaml(default, tmp_path / f"{name}.yaml")
        assert cli.configs.parse(cls, tmp_path / f"{name}.yaml") == default


def test_every_shipped_configuration_fits_a_command_or_the_pipeline():
    targets = [command.config for command in cli.COMMANDS.values()]
    targets.append("jaxalign.pipelines.pipeline:PipelineConfig")
    for name, path in cli.configs.shipped_configs().items():
        refusals = []
        for target in targets:
            try:
                cli.configs.parse(cli.load(target), path)
                break
            except ConfigError as error:
                refusals.append(str(error))
        else:
            pytest.fail(f"{name}: nothing takes it: {refusals}")


def child(*arguments, **settings):
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    return subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        **settings,
    )


def test_module_runs_as_a_command_and_its_status_is_the_shells():
    done = child("-m", "jaxalign", "sfx")
    out, err = done.communicate(timeout=60)
    assert done.returncode == 2
    assert out == ""
    assert err == "jaxalign: error: sfx: unknown command; did you mean sft?\n"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_before_training_ends_the_command_without_traceback(number, status):
    code = (
        "import signal, sys, time, types\n"
        # A parent that ignores SIGINT (a job of a script, in the background) hands that down.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from jaxalign.cli import main as cli\n"
        "def slow(config):\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(60)\n"
        "cli.read_settings = lambda *a: None\n"
        "cli.load = lambda target: slow\n"
        "sys.argv = ['jaxalign', 'sft']\n"
        "cli.run()\n"
    )
    process = child("-c", code)
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.05)
    process.send_signal(number)
    try:
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == status
    assert "Traceback" not in err


ENDLESS = """
import gc, os, signal, sys, time
from dataclasses import dataclass
import jax
from jaxalign.cli import main as cli

@dataclass(frozen=True, kw_only=True)
class Config:
    "Nothing."

def lost(config):
    def callback(*_):
        gc.callbacks.remove(callback)
        os.kill(os.getpid(), getattr(signal, sys.argv[2]))
        time.sleep(0.01)
    gc.callbacks.append(callback)
    gc.collect()
    time.sleep(1000)

def endless(config):
    # Large enough not to run in the thread that asks for it.
    x = jax.numpy.ones((1500, 1500))
    jax.jit(lambda x: jax.lax.while_loop(lambda x: x[0, 0] < 2, lambda x: jax.numpy.tanh(x @ x), x))(x)
    os.kill(os.getpid(), getattr(signal, sys.argv[2]))

sys.modules["endless"] = sys.modules["__main__"]
for name in ("endless", "lost"):
    cli.COMMANDS[name] = cli.Command("", "endless:Config", f"endless:{name}")
cli.set_cpu_memory = lambda: None
cli.read_settings = lambda command, arguments: Config()
cli.run()
"""


@pytest.mark.parametrize("while_", ["endless", "lost"])
@pytest.mark.parametrize(("kind", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_ends_the_process_while_xla_runs_a_program_or_python_a_callback(while_, kind, status):
    ended = subprocess.run(
        [sys.executable, "-c", ENDLESS, while_, kind],
        timeout=60,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == status
    assert "Traceback" not in ended.stderr


def test_a_data_file_that_is_not_there_is_named_before_the_model_is_looked_for(tmp_path, capsys):
    arguments = [
        "--model.path=nowhere",
        f"--data.train={tmp_path / 'none.jsonl'}",
        f"--output={tmp_path / 'run'}",
    ]
    assert cli.main(["sft", *arguments]) == 2
    assert capsys.readouterr().err == f"jaxalign sft: error: {tmp_path / 'none.jsonl'}: no such file\n"
