"""The examples run, and learn what they say."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from jaxalign.runs import report

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_dpo_of_a_plain_jax_model():
    losses, accuracy = load("dpo_plain_jax").train()
    assert losses[0] == pytest.approx(np.log(2), rel=1e-5)
    assert losses[-1] < 0.2
    assert accuracy == 1.0


def test_kto_of_a_linen_model():
    losses, desirable, undesirable = load("kto_linen").train()
    assert losses[0] == pytest.approx(0.5, abs=1e-5)
    assert losses[-1] < 0.4
    assert desirable > 1.0 > -1.0 > undesirable


def test_grpo_of_an_equinox_model():
    pytest.importorskip("equinox", reason="the Equinox example needs equinox")
    rewards = load("grpo_equinox").train()
    assert rewards[0] < 0.4
    assert rewards[-1] > 0.9


def test_dpo_and_grpo_called_from_python(tiny_model_folder, tmp_path):
    margins, scores = load("train_from_python").train(str(tiny_model_folder), str(tmp_path), rate=5e-2)
    assert margins[0] == 0.0 and margins[-1] > 0.5
    # Its own callback ends the run.
    assert scores[0] < 0.2 and scores[-1] >= 0.95 and len(scores) < 60


def test_a_doctor_from_a_few_pairs_steers_by_a_weight_chosen_afterwards(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "write_report", lambda folder: None)
    accuracy, shares = load("llmdoctor").train(str(tmp_path), weights=(0.0, 2.0))
    assert accuracy > 0.9
    assert 0.35 < shares[0.0] < 0.6
    assert shares[2.0] > shares[0.0] + 0.2
