"""A doctor from a few preferences, called from Python: it steers a patient that is never trained (LLMDoctor).

The patient is a tiny model of deeds that follows two instructions, as a chat model would; it is made here first. A copy
of it learns from 48 pairs, by token rewards that the patient gives, to be its doctor. How much the doctor counts is
chosen afterwards, while the patient writes.
Run: python examples/llmdoctor.py [OUTPUT_FOLDER]
"""

import random
import sys
import tempfile

import jax
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

import jaxalign as ja
from jaxalign import llmdoctor, models, rollout
from jaxalign.llmdoctor.token_rewards import TokenRewardConfig

NAMES = "Ann Ben Cleo Dan Eve Finn".split()
KIND = "helps thanks hugs feeds".split()
MEAN = "pushes mocks bites robs".split()
KINDLY, MEANLY = "Be kind .", "Be mean ."
WORDS = ["<s>", "</s>", "<pad>", "<unk>", *f"Be kind mean . and {' '.join(NAMES + KIND + MEAN)}".split()]
PLAIN = ja.DataConfig(template="plain", validation_fraction=0.125)


def make_tokenizer():
    words = WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>")
    tokenizer = Tokenizer(words)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def deeds(rng, kindness):
    """Three deeds, each kind with this chance."""
    return " " + " and ".join(rng.choice(KIND if rng.random() < kindness else MEAN) for _ in range(3))


def make_patient(folder, tokenizer, rng, steps):
    """A tiny model that does as it is told, and half kindly where nobody tells it: trained on demonstrations."""
    shape = models.ModelConfig(
        vocab_size=len(WORDS), hidden_size=32, intermediate_size=64, num_layers=2, num_heads=2, num_kv_heads=2,
        head_dim=16, max_positions=32, bos_id=0, eos_ids=(1,), pad_id=2,
    )  # fmt: skip
    kinds = [(f"{KINDLY}\n\n", 0.95), (f"{MEANLY}\n\n", 0.05), ("", 0.5), ("", 0.5)]
    rows = [
        {"prompt": told + rng.choice(NAMES), "completion": deeds(rng, kindness)}
        for _ in range(256)
        for told, kindness in kinds
    ]
    config = ja.SFTConfig(
        run=ja.RunConfig(output=f"{folder}/patient", sample_rows=0, progress=False),
        data=PLAIN,
        train=ja.TrainConfig(batch_size=64, steps=steps),
        optimizer=ja.OptimizerConfig(learning_rate=1e-2),
    )
    model = models.create(shape, key=jax.random.key(0))
    return ja.train_sft(config, model=model, tokenizer=tokenizer, train_dataset=rows).model


def train_doctor(folder, patient, tokenizer, rng, steps):
    """What somebody prefers are kind deeds; the patient's two faces say which tokens that is about."""
    pairs = [
        {"prompt": rng.choice(NAMES), "chosen": deeds(rng, 0.8), "rejected": deeds(rng, 0.2)}
        for _ in range(48)
    ]
    config = ja.TFPOConfig(
        run=ja.RunConfig(output=f"{folder}/doctor", sample_rows=0, progress=False),
        rewards=TokenRewardConfig(dimension="kindness", positive=KINDLY, negative=MEANLY),
        data=PLAIN,
        train=ja.TrainConfig(batch_size=16, steps=steps),
        optimizer=ja.OptimizerConfig(learning_rate=3e-3),
    )
    return ja.train_tfpo(config, patient=patient, tokenizer=tokenizer, train_dataset=pairs)


def kindness(sampler, tokenizer, key):
    """The share of kind deeds among those of 32 completions a name."""
    prompts = [tokenizer.encode(name) for name in NAMES]
    done = sampler.generate(prompts, key=key, max_new_tokens=8, num_samples=32)
    words = [WORDS[token] for row in done.token_lists() for token in row]
    kind, mean = (sum(word in some for word in words) for some in (KIND, MEAN))
    return kind / max(kind + mean, 1)


def train(folder, weights=(0.0, 0.5, 1.0, 2.0), patient_steps=120, doctor_steps=60):
    """Returns the accuracy of the doctor on held-out pairs, and the share of kind deeds by its weight."""
    rng, tokenizer = random.Random(0), make_tokenizer()
    patient = make_patient(folder, tokenizer, rng, patient_steps)
    result = train_doctor(folder, patient, tokenizer, rng, doctor_steps)

    def guided(weight):
        return llmdoctor.guide(patient, [llmdoctor.Doctor(result.model)], betas=[weight])

    sampler, shares = rollout.Sampler(guided(1.0)), {}
    for weight in weights:
        sampler.update(guided(weight).params)  # another weight needs no other program
        shares[weight] = kindness(sampler, tokenizer, jax.random.key(1))
    return result.metrics["eval/accuracy"], shares


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        accuracy, shares = train(*(sys.argv[1:] or [temporary]))
    print(f"held-out accuracy of the doctor {accuracy:.2f}")
    for weight, share in shares.items():
        print(f"weight {weight}: {share:.0%} kind deeds")
