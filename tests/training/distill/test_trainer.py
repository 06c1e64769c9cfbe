"""Distillation brings a student near its teacher, on demonstrations and on what it writes itself."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxalign import models
from jaxalign.errors import UserError
from jaxalign.rollout import SamplingConfig
from jaxalign.runs import records
from jaxalign.training.core.loop import TrainConfig
from jaxalign.training.core.setup import ModelSource
from jaxalign.training.distill.config import DistillConfig, DistillLossConfig
from jaxalign.training.distill.student_rows import check_prompts
from jaxalign.training.distill.trainer import train_distill
from jaxalign.training.sft import train_sft
from tests.training.test_resume import Killed, at_step, kill, numbers


@pytest.fixture(scope="module")
def teacher(configs, tmp_path_factory):
    """A model that answers with vowels."""
    folder = tmp_path_factory.mktemp("teacher")
    demonstrations = replace(configs.data, train=(str(folder / "rows.jsonl"),))
    (folder / "rows.jsonl").write_text(
        "".join(f'{{"prompt": "{a}{b}", "completion": "aeio"}}\n' for a in "abcdefgh" for b in "ijklm")
    )
    config = configs.sft(folder / "run", train=TrainConfig(batch_size=8, steps=40), data=demonstrations)
    train_sft(config)
    return folder / "run"


def config_of(configs, output, teacher, **changes):
    parts = {
        "model": configs.model,
        "teacher": replace(configs.model, path=str(teacher)),
        "data": configs.data,
        "train": configs.train,
        "optimizer": configs.optimizer,
        "sampling": SamplingConfig(max_new_tokens=6),
    }
    return DistillConfig(run=configs.run(output), **(parts | changes))


@pytest.mark.long
@pytest.mark.parametrize("on_policy", [0.0, 1.0], ids=["supervised", "on policy"])
def test_the_students_divergence_falls(on_policy, configs, teacher, tmp_path):
    train = TrainConfig(batch_size=8, steps=30)
    config = config_of(configs, tmp_path / "run", teacher, on_policy=on_policy, train=train)
    result = train_distill(config)
    rows = list(records.read(tmp_path / "run" / "metrics.jsonl"))
    held_out = [row for row in rows if "eval/kl" in row]
    assert held_out[-1]["eval/kl"] < 0.5 * held_out[0]["eval/kl"]
    assert result.metrics["eval/kl"] == held_out[-1]["eval/kl"]
    assert {row["train/sampled"] for row in rows if "train/sampled" in row} == {on_policy}
    assert (
        models.load_pretrained(tmp_path / "run" / "export").config.vocab_size
        == result.model.config.vocab_size
    )


def test_a_teacher_that_is_the_student_has_nothing_to_teach(configs, tmp_path):
    config = config_of(
        configs, tmp_path / "run", configs.model.path, on_policy=0.0, train=TrainConfig(batch_size=4, steps=1)
    )
    train_distill(config)
    first = next(records.read(tmp_path / "run" / "metrics.jsonl"))
    assert first["eval/loss"] == pytest.approx(0, abs=1e-6) and first["eval/agreement"] == 1
    assert first["eval/nll"] == pytest.approx(first["eval/teacher_nll"], rel=1e-6)


@pytest.mark.long
def test_resumed_with_samples_equals_undisturbed(configs, teacher, tmp_path):
    def config(name, **run):
        base = config_of(configs, tmp_path / name, teacher, train=TrainConfig(batch_size=4, steps=6))
        return replace(base, run=replace(base.run, **run))

    train_distill(config("whole"))
    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, "distill", 5, kill)
        with pytest.raises(Killed):
            train_distill(config("killed"))
    train_distill(config("killed", resume=True))
    whole, killed = (
        load_file(tmp_path / name / "export" / "model.safetensors") for name in ("whole", "killed")
    )
    assert all(np.array_equal(whole[name], killed[name]) for name in whole)
    assert numbers(tmp_path / "whole") == numbers(tmp_path / "killed")
    sampled = [row["train/sampled"] for row in numbers(tmp_path / "whole") if "train/sampled" in row]
    assert 0 < sum(sampled) < 6


@pytest.mark.long
def test_live_models_give_what_folders_give(configs, teacher, tmp_path):
    by_folder = train_distill(config_of(configs, tmp_path / "folder", teacher))
    live = {
        "model": models.load_pretrained(configs.model.path),
        "teacher": models.load_pretrained(teacher / "export"),
        "tokenizer": models.load_tokenizer(configs.model.path),
    }
    config = config_of(configs, tmp_path / "live", teacher)
    config = replace(config, model=ModelSource(), teacher=ModelSource())
    by_object = train_distill(config, **live)
    assert by_object.metrics["eval/kl"] == pytest.approx(by_folder.metrics["eval/kl"], rel=1e-6)


@pytest.fixture
def swapped(teacher, byte_tokenizer, tmp_path):
    """The teacher with a tokenizer in which a and b have each other's ids."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    body = json.loads(byte_tokenizer.backend_tokenizer.to_str())
    words = body["model"]["vocab"]
    words["a"], words["b"] = words["b"], words["a"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(body)),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
    )
    models.save_pretrained(
        models.load_pretrained(teacher / "export"), tmp_path / "swapped", tokenizer=tokenizer
    )
    return tmp_path / "swapped"


def test_what_cannot_be_distilled_is_one_line(configs, teacher, swapped, tmp_path):
    def fails(message, taught_by=teacher, **changes):
        config = config_of(configs, tmp_path / "run", taught_by, **changes)
        with pytest.raises(UserError, match=message):
            train_distill(config)

    fails("teacher.path: expected a Hugging Face folder", "")
    fails("tokenizers of teacher and student differ", swapped)
    fails("max_prompt_length", sampling=SamplingConfig(max_new_tokens=10_000))
    with pytest.raises(UserError, match=r"text.jsonl:1: the row has no prompt"):
        check_prompts([SimpleNamespace(prompt_tokens=(), source="text.jsonl:1")], 64, 6)
    with pytest.raises(ValueError, match="packing needs on_policy=0"):
        config_of(configs, tmp_path, teacher, train=TrainConfig(packing=True))
    with pytest.raises(ValueError, match=r"loss\.beta"):
        DistillLossConfig(beta=1.0)
