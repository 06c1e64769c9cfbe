"""`run.deterministic`: what XLA is asked for, and when it is too late."""

import os

import pytest

from jaxalign import determinism
from jaxalign.cli import main as cli
from jaxalign.errors import ConfigError


def test_a_command_adds_the_flag_to_those_that_are_there(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    # It stops where its model is not found, which is after the flags are set.
    arguments = ["--model=/nowhere", "--data=/nowhere.jsonl", f"--output={tmp_path / 'run'}"]
    assert cli.main(["sft", *arguments, "--run.deterministic=true"]) == 2
    flags = os.environ["XLA_FLAGS"].split()
    assert flags == ["--xla_force_host_platform_device_count=2", "--xla_gpu_deterministic_ops=true"]
    determinism.request_determinism()
    assert os.environ["XLA_FLAGS"].split() == flags


def test_nothing_is_asked_for_unless_it_is_configured(monkeypatch, tmp_path):
    monkeypatch.setenv("XLA_FLAGS", "")
    cli.main(["sft", "--model=/nowhere", "--data=/nowhere.jsonl", f"--output={tmp_path / 'run'}"])
    assert os.environ["XLA_FLAGS"] == ""


@pytest.mark.parametrize("value", ["false", "0", "False"])
def test_a_flag_that_says_the_opposite_is_refused(value, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", f"--xla_gpu_deterministic_ops={value}")
    with pytest.raises(ConfigError, match=r"run\.deterministic=true, but XLA_FLAGS has"):
        determinism.request_determinism()
    with pytest.raises(ConfigError, match=r"run\.deterministic: in Python, set XLA_FLAGS"):
        determinism.check_determinism("gpu")


def test_a_gpu_that_was_not_asked_in_time_is_refused(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    with pytest.raises(ConfigError, match=r"run\.deterministic: in Python, set XLA_FLAGS"):
        determinism.check_determinism("gpu")
    determinism.check_determinism("cpu")
    determinism.check_determinism("tpu")
    determinism.request_determinism()
    determinism.check_determinism("gpu")
