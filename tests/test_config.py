import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from jaxalign import config
from jaxalign.errors import ConfigError, UserError


@dataclass(frozen=True, kw_only=True)
class Inner:
    """A group.

    Attributes:
      rate: learning rate: peak value,
        in its own unit.
      names: files.
      weights: weight of each file.
      shape: two sizes.
      note: free text.
      kind: which one.
      count: whole number.
      flag: on or off.
      extra: anything.
      either: a number or a word.
    """

    rate: float = 1e-3
    names: tuple[str, ...] = ()
    weights: tuple[float, ...] | None = None
    shape: tuple[int, int] = (1, 2)
    note: str | None = None
    kind: Literal["left", "right"] = "left"
    count: int = 3
    flag: bool = False
    extra: dict[str, Any] = field(default_factory=dict)
    either: int | str = 0

    def __post_init__(self):
        if self.rate < 0:
            raise ValueError(f"inner.rate must not be negative, got {self.rate}")
        if self.count > 1000:
            raise ValueError("too many")
        if self.note == "user":
            raise UserError("a line of its own")


@dataclass(frozen=True, kw_only=True)
class Outer:
    """All of it.

    Attributes:
      inner: a group.
      other: a group with another default.
      maybe: a group that may be absent.
      path: where.
      steps: how many.
    """

    inner: Inner = field(default_factory=Inner)
    other: Inner = field(default_factory=lambda: Inner(count=7, names=("a",)))
    maybe: Inner | None = None
    path: Path = Path("here")
    steps: int = 1


@dataclass(frozen=True, kw_only=True)
class Needy:
    """One required key.

    Attributes:
      path: where.
    """

    path: str


def error_of(*overrides, cls=Outer, file=None):
    with pytest.raises(ConfigError) as caught:
        config.parse(cls, file, list(overrides))
    message = str(caught.value)
    assert "\n" not in message
    return message


def write(tmp_path, text):
    path = tmp_path / "some.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("override", "read", "expected"),
    [
        ("--inner.rate=1e-4", lambda c: c.inner.rate, 1e-4),
        ("--inner.rate=1", lambda c: c.inner.rate, 1.0),
        ("--inner.count=1e3", lambda c: c.inner.count, 1000),
        ("--inner.count=1_0", lambda c: c.inner.count, 10),
        ("--inner.names=one.jsonl", lambda c: c.inner.names, ("one.jsonl",)),
        ("--inner.names=[one, 2, no]", lambda c: c.inner.names, ("one", "2", "no")),
        ("--inner.names=[INST] hello", lambda c: c.inner.names, ("[INST] hello",)),
        ("--inner.names=", lambda c: c.inner.names, ()),
        ("--inner.weights=[1, 0.5]", lambda c: c.inner.weights, (1.0, 0.5)),
        ("--inner.weights=null", lambda c: c.inner.weights, None),
        ("--inner.shape=[3, 4]", lambda c: c.inner.shape, (3, 4)),
        ("--inner.note=5", lambda c: c.inner.note, "5"),
        ("--inner.note=a=b: c", lambda c: c.inner.note, "a=b: c"),
        ("--inner.note=null", lambda c: c.inner.note, None),
        ("--inner.note=", lambda c: c.inner.note, ""),
        ("--inner.kind=right", lambda c: c.inner.kind, "right"),
        ("--inner.flag=true", lambda c: c.inner.flag, True),
        ("--inner.flag=False", lambda c: c.inner.flag, False),
        ("--inner.extra.depth.size=3", lambda c: c.inner.extra, {"depth": {"size": 3}}),
        ("--inner.extra={a: [1, x]}", lambda c: c.inner.extra, {"a": [1, "x"]}),
        ("--inner={rate: 2, kind: right}", lambda c: (c.inner.rate, c.inner.kind), (2.0, "right")),
        ("--inner.either=5", lambda c: c.inner.either, 5),
        ("--inner.either=all", lambda c: c.inner.either, "all"),
        ("--maybe.count=4", lambda c: c.maybe.count, 4),
        ("--maybe=null", lambda c: c.maybe, None),
        ("--path=there", lambda c: c.path, Path("there")),
        ("steps=9", lambda c: c.steps, 9),
    ],
)
def test_override_is_read_as_the_type_of_its_field(override, read, expected):
    value = read(config.parse(Outer, None, [override]))
    assert value == expected
    assert type(value) is type(expected)


def test_group_keeps_the_defaults_of_its_parent():
    parsed = config.parse(Outer, None, ["--other.rate=2"])
    assert (parsed.other.rate, parsed.other.count, parsed.other.names) == (2.0, 7, ("a",))


def test_later_override_wins_over_earlier_and_over_file(tmp_path):
    file = write(tmp_path, "steps: 5\ninner:\n  rate: 1e-5\n  count: 8\n")
    parsed = config.parse(Outer, file, ["--steps=6", "--steps=7", "--inner.count", "9"])
    assert (parsed.steps, parsed.inner.rate, parsed.inner.count) == (7, 1e-5, 9)


def test_file_words_are_not_taken_for_truth_values_or_dates(tmp_path):
    parsed = config.parse(Outer, write(tmp_path, "inner: {note: off, names: [no, 2024-01-01]}\nmaybe:\n"))
    assert parsed.inner.note == "off"
    assert parsed.inner.names == ("no", "2024-01-01")
    assert parsed.maybe is None


def test_empty_file_gives_the_defaults(tmp_path):
    assert config.parse(Outer, write(tmp_path, "# nothing\n")) == Outer()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--inner.rte=1", "--inner.rte: unknown key; did you mean inner.rate?"),
        ("--rate=1", "--rate: unknown key; did you mean inner.rate?"),
        ("--inner.zzz=1", "--inner.zzz: unknown key; valid keys of inner: rate, names, "),
        ("--inner.rate=fast", "--inner.rate: expected float, got 'fast'"),
        ("--inner.rate=nan", "--inner.rate: expected float, got 'nan'"),
        ("--inner.rate=.nan", "--inner.rate: expected float, got '.nan'"),
        ("--inner.rate=true", "--inner.rate: expected float, got 'true'"),
        ("--inner.rate=-1", "inner.rate must not be negative, got -1.0"),
        ("--inner.count=2000", "inner: too many"),
        ("--inner.count=1.5", "--inner.count: expected int, got '1.5' (a whole number)"),
        ("--inner.count=.inf", "--inner.count: expected int, got '.inf' (a whole number)"),
        ("--inner.count=", "--inner.count: expected int, got ''"),
        ("--inner.shape=[1]", "--inner.shape: expected list of int, int, got '[1]' (2 values, not 1)"),
        ("--inner.kind=rigth", "--inner.kind: expected left | right, got 'rigth' (did you mean right?)"),
        ("--inner.flag=yes", "--inner.flag: expected bool, got 'yes' (true or false)"),
        ("--inner=3", "--inner: expected keys and values, got 3"),
        ("--inner={a", "--inner: expected keys and values, got '{a' (not valid YAML)"),
        ("--steps.deep=3", "steps: expected int, got {deep: '3'}"),
        ("--steps", "--steps: expected a value, as in --steps=VALUE"),
        ("steps", "'steps': expected --dotted.key=value"),
        ("--a b=3", "expected --dotted.key=value"),
    ],
)
def test_wrong_override_gets_one_line_naming_the_key(override, message):
    assert message in error_of(override)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps: 1\ninner:\n  rte: 2\n", "some.yaml:3: inner.rte: unknown key; did you mean inner.rate?"),
        ("steps: 1\ninner:\n  rate: fast\n", "some.yaml:3: inner.rate: expected float, got 'fast'"),
        ("steps: 1\ninner:\n  note: 5\n", "some.yaml:3: inner.note: expected text or null, got 5"),
        ("steps: 1\nsteps: 2\n", "some.yaml:2: key steps is given twice; first on line 1"),
        ("inner:\n  rate: 1\n  rate: 1\n", "some.yaml:3: key inner.rate is given twice; first on line 2"),
        ("inner: [1\n", "some.yaml:2: not valid YAML"),
        ("- 1\n", "some.yaml: expected keys and values"),
        ("inner: {rate: -2}\n", "some.yaml: inner.rate must not be negative"),
        ("1: 2\n", "some.yaml:1: 1: unknown key"),
        ("? [a, b]\n: 2\n", "some.yaml:1: a key must be one word"),
    ],
)
def test_wrong_file_gets_one_line_naming_file_and_line(tmp_path, text, message):
    assert message in error_of(file=write(tmp_path, text))


def test_error_of_an_overridden_key_names_the_flag_not_the_file(tmp_path):
    file = write(tmp_path, "inner: {rate: 1}\n")
    assert error_of("--inner.rate=fast", file=file).startswith("--inner.rate: expected float")


def test_users_error_of_a_dataclass_passes_unchanged():
    with pytest.raises(UserError, match=r"^a line of its own$"):
        config.parse(Outer, None, ["--inner.note=user"])


def test_missing_required_key_is_named():
    assert error_of(cls=Needy) == "path is required (text); set it with --path=VALUE"


def test_missing_file_is_named_and_is_no_default(tmp_path):
    assert f"--config {tmp_path}/none.yaml: no such file" in error_of(file=tmp_path / "none.yaml")
    assert "is a folder" in error_of(file=tmp_path)


def test_shipped_configuration_is_found_by_name_and_near_name_is_offered(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "shipped_configs", lambda: {"tiny": write(tmp_path, "steps: 4\n")})
    assert config.parse(Outer, "tiny").steps == 4
    assert error_of(file="tinny").endswith("did you mean tiny?")


def test_shipped_configurations_are_read_from_the_package():
    assert all(path.is_file() for path in config.shipped_configs().values())


def test_saved_file_reads_back_equal(tmp_path):
    saved = config.parse(
        Outer,
        None,
        ["--inner.rate=1e-05", "--inner.extra={a: {b: [1, x]}}", "--inner.note=no", "--maybe.shape=[5, 6]"],
    )
    config.save_yaml(saved, tmp_path / "saved.yaml")
    assert config.parse(Outer, tmp_path / "saved.yaml") == saved
    assert config.from_dict(Outer, config.to_dict(saved)) == saved
    assert [p.name for p in tmp_path.iterdir()] == ["saved.yaml"]


def test_failed_save_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    config.save_yaml(Outer(), tmp_path / "saved.yaml")
    before = (tmp_path / "saved.yaml").read_text()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space"):
        config.save_yaml(Outer(steps=5), tmp_path / "saved.yaml")
    assert (tmp_path / "saved.yaml").read_text() == before
    assert [p.name for p in tmp_path.iterdir()] == ["saved.yaml"]


def test_description_has_every_key_with_type_default_and_meaning():
    keys = {key.name: key for key in config.describe(Outer)}
    assert list(keys)[:2] == ["inner.rate", "inner.names"]
    assert keys["inner.rate"].meaning == "learning rate: peak value, in its own unit."
    assert keys["inner.rate"].type == "float"
    assert keys["inner.rate"].default == "0.001"
    assert keys["other.count"].default == "7"
    assert keys["inner.kind"].type == "left | right"
    assert keys["inner.names"].type == "list of text"
    assert keys["inner.note"].default == "null"
    assert config.describe(Needy)[0].default == "required"
    assert all(re.search(r"\w", key.meaning) for key in keys.values())


def test_defaults_are_the_values_of_a_configuration_that_nobody_set():
    found = config.defaults(Outer)
    assert (found["inner.rate"], found["inner.note"], found["other.count"]) == (0.001, None, 7)
    assert found["inner.names"] == config.to_dict(Outer())["inner"]["names"]
    assert set(found) == {key.name for key in config.describe(Outer)}
    assert not set(config.defaults(Needy)) & {
        k.name for k in config.describe(Needy) if k.default == "required"
    }


def test_defaults_with_line_breaks_stay_on_one_line():
    @dataclass(frozen=True, kw_only=True)
    class Marked:
        """Has a marker.

        Attributes:
          marker: of turns.
        """

        marker: str = "\n\nHuman:"

    assert config.describe(Marked)[0].default == r'"\n\nHuman:"'


def test_a_word_of_another_library_or_command_is_answered_with_the_key_that_it_has_here():
    from jaxalign.training.rl.grpo_config import GRPOConfig
    from jaxalign.training.sft import SFTConfig

    for cls, word, key in (
        (GRPOConfig, "num_generations", "sampling.num_samples"),
        (GRPOConfig, "train.batch_size", "train.prompts"),
        (GRPOConfig, "max_steps", "train.updates"),
        (SFTConfig, "max_steps", "train.steps"),
        (SFTConfig, "lr", "optimizer.learning_rate"),
    ):
        with pytest.raises(ConfigError, match=f"--{word}: unknown key; here it is {key}$"):
            config.parse(cls, overrides=[f"--{word}=1"])
    with pytest.raises(ConfigError, match=r"did you mean optimizer.learning_rate\?"):
        config.parse(SFTConfig, overrides=["--train.learning_rate=1"])


# As third-party configurations of LLMDoctor name them, in sections of their own or where ours are.
DOCTOR_WORDS = {
    "model.patient_model_name": "patient.path",
    "doctor_model": "model.path",
    "preference_dimension": "rewards.dimension",
    "rewards.tau": "rewards.temperature",
    "epsilon": "rewards.epsilon",
    "optimizer.eps": "optimizer.epsilon",
    "theta": "rewards.threshold",
    "sparsity_threshold": "rewards.threshold",
    "loss.lambda_value": "loss.value_weight",
    "lambda_val": "loss.value_weight",
    "gamma": "loss.margin",
    "value_margin": "loss.margin",
    "max_subtrajectory_length": "loss.window",
    "doctor_value_head_hidden_size": "head.hidden_size",
    "num_training_steps": "train.steps",
    "gradient_clip_norm": "optimizer.max_grad_norm",
    "max_sequence_length": "data.max_length",
    "beta": "guidance.beta",
    "alpha": "guidance.alpha",
}


@pytest.mark.parametrize(("word", "key"), DOCTOR_WORDS.items())
def test_a_word_of_other_doctors_is_answered_with_the_key_that_it_has_here(word, key, tmp_path):
    from jaxalign.llmdoctor.tfpo_config import TFPOConfig

    assert error_of(f"--{word}=1", cls=TFPOConfig) == f"--{word}: unknown key; here it is {key}"
    *group, leaf = word.split(".")
    file = write(tmp_path, f"{group[0]}:\n  {leaf}: 1\n" if group else f"{leaf}: 1\n")
    assert error_of(cls=TFPOConfig, file=file) == (
        f"{file}:{len(group) + 1}: {word}: unknown key; here it is {key}"
    )


def test_a_pasted_group_is_answered_key_by_key_in_one_line(tmp_path):
    from jaxalign.llmdoctor.tfpo_config import TFPOConfig

    text = "reward:\n  tau: 1.0\n  temperature: 1.0\n  reward_scale: 1.0\n  smoothing_function: tanh\n"
    file = write(tmp_path, text)
    assert error_of(cls=TFPOConfig, file=file) == (
        f"{file}:1: reward: unknown key; here tau is rewards.temperature, temperature is rewards.temperature, "
        "reward_scale is loss.reward_scale; nothing is like smoothing_function"
    )
    assert error_of("--value_head.hidden_dims=[512, 256]", cls=TFPOConfig).endswith(
        "here hidden_dims is head.hidden_size"
    )
    assert error_of("--guided_generation.alpha=1", cls=TFPOConfig).endswith("here alpha is guidance.alpha")


def test_the_same_words_mean_what_they_mean_in_other_commands():
    from jaxalign.training.preference.dpo import DPOConfig
    from jaxalign.training.rl.ppo_config import PPOConfig

    for cls, word, key in ((PPOConfig, "gamma", "loss.gamma"), (PPOConfig, "lambda", "loss.lam"),
                           (DPOConfig, "tau", "loss.tau"), (DPOConfig, "gamma", "loss.gamma")):  # fmt: skip
        assert key in error_of(f"--{word}=1", cls=cls)


def test_every_word_of_others_leads_to_a_key_that_some_command_has():
    from jaxalign import config_words
    from jaxalign.cli.main import COMMANDS, load

    there = {key.name for command in COMMANDS.values() for key in config.describe(load(command.config))}
    assert {key for keys in config_words.WORDS.values() for key in keys} <= there
