"""A real chat model, SmolLM2-135M-Instruct in 4 bits as `make demo-chat` fetches it: run by `make test-real`."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxalign as ja
from jaxalign import models
from jaxalign.evaluation.policy import sequence_kl
from jaxalign.evaluation.sampler_gap import sampler_gap
from jaxalign.export.gguf_files import save_gguf
from jaxalign.inference.generate import GenerateConfig, generate
from jaxalign.rollout import Sampler

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / ".venv" / "chat" / "SmolLM2-135M-Instruct.Q4_1.gguf"
PAIRS = ROOT / "examples" / "data" / "two_sentences.jsonl"
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not FILE.exists(), reason="no model: `make test-real` fetches it"),
]


@pytest.fixture(scope="module")
def model():
    return models.load_pretrained(FILE)


@pytest.fixture(scope="module")
def tokenizer():
    return models.load_tokenizer(FILE)


def turn(tokenizer, text):
    chat = [{"role": "user", "content": text}]
    return tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)


def test_the_template_of_the_file_speaks_to_the_model(tokenizer):
    text = tokenizer.decode(turn(tokenizer, "Hi"))
    assert text.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


def test_it_answers_and_stops_at_the_end_of_its_turn(tmp_path):
    asked = ("What is the largest animal on Earth?", "Say hello.")
    sampling = ja.SamplingConfig(max_new_tokens=64, temperature=0.0)
    output = str(tmp_path / "answers.jsonl")
    whale, hello = generate(GenerateConfig(model=str(FILE), prompt=asked, sampling=sampling, output=output))
    assert "blue whale" in whale["completion"].lower()
    assert hello["finish_reason"] == "stop" and "<|im_end|>" not in hello["completion"]


@pytest.mark.parametrize("exact", [False, True])
def test_sampler_and_trainer_agree_in_bfloat16(tokenizer, exact):
    model = models.load_pretrained(FILE, compute_dtype="bfloat16")
    if exact:
        model = models.with_config(model, exact=True, products="compute_dtype")
    prompts = [turn(tokenizer, text) for text in ("Name three rivers.", "Why do cats purr?")]
    gap = sampler_gap(Sampler(model), model, prompts, max_new_tokens=16, key=jax.random.key(0), num_samples=2)
    assert gap.largest == 0.0 if exact else gap.mean < 0.01


def test_a_file_of_8_bits_that_was_written_from_it_keeps_its_distribution(model, tokenizer, tmp_path):
    save_gguf(model, tmp_path / "model.gguf", tokenizer=tokenizer, dtype="q8_0")
    again = models.load_pretrained(tmp_path / "model.gguf")
    prompts = [turn(tokenizer, "Name three rivers.")] * 4
    done = Sampler(model).generate(prompts, max_new_tokens=24, key=jax.random.key(0))
    assert abs(sequence_kl(model, again, prompts, done).sum()) < 0.05 * done.lengths.sum()


def test_dpo_learns_the_taste_of_its_pairs(tmp_path):
    ja.train_dpo(
        ja.DPOConfig(
            run=ja.RunConfig(output=str(tmp_path / "run"), sample_rows=0, progress=False, log_every=1),
            model=ja.ModelSource(path=str(FILE)),
            data=ja.DataConfig(train=(str(PAIRS),), validation_fraction=0.0),
            loss=ja.DPOLossConfig(beta=0.5),
            lora=ja.LoraConfig(enabled=True, rank=8, alpha=16.0),
            train=ja.TrainConfig(batch_size=2, steps=6),
            optimizer=ja.OptimizerConfig(learning_rate=5e-4, schedule="constant"),
        )
    )
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    losses = [row["train/loss"] for row in map(json.loads, lines) if "train/loss" in row]
    assert losses[0] == pytest.approx(np.log(2), abs=1e-4)
    assert np.mean(losses[-2:]) < 0.8 * losses[0]


def test_grpo_starts_in_bfloat16(tmp_path):
    def shorter(prompts, completions, **_):
        return [-len(text) / 100 for text in completions]

    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"Tell me about {x}."}) + "\n" for x in ("rain", "tea")))
    result = ja.train_grpo(
        ja.GRPOConfig(
            run=ja.RunConfig(output=str(tmp_path / "run"), sample_rows=0, progress=False, log_every=1),
            model=ja.ModelSource(path=str(FILE), compute_dtype="bfloat16"),
            data=ja.DataConfig(train=(str(prompts),), validation_fraction=0.0),
            sampling=ja.SamplingConfig(max_new_tokens=16, num_samples=4),
            train=ja.GRPOTrainConfig(updates=2, prompts=2, eval_prompts=0),
            lora=ja.LoraConfig(enabled=True, rank=8, alpha=16.0),
        ),
        reward=shorter,
    )
    assert np.isfinite(result.metrics["objective/score"])
