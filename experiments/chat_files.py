"""Chat and medical preference files through SFT, reward modelling and DPO.

Claim: on HH-RLHF, PKU-SafeRLHF and medical pairs every row is used or counted, the supervised loss falls by 10% or
  more on held-out rows, and reward model and DPO report held-out accuracy and margin with intervals.
Command: python experiments/chat_files.py SOURCE STAGE --shared ../shared --output runs/chat_files
  SOURCE is hh, pku or medical; STAGE is sft, reward, dpo or all.
Model: a Llama with random weights (3.3 million parameters, GPT-2's tokenizer, 2,048 positions): it shows that the
  machinery is right and that losses fall, not that so small a model can tell a good answer from a bad one.
Needs: the three files and tokenizers/gpt2 under SHARED/data.
Time: 2 to 10 minutes a stage on two CPU cores. Figures: experiments/LOG.md.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

from jaxalign.data import DataConfig
from jaxalign.runs import RunConfig
from jaxalign.training.core.loop import TrainConfig
from jaxalign.training.core.optimizer import OptimizerConfig
from jaxalign.training.core.setup import ModelSource
from jaxalign.training.preference.dpo import DPOConfig, train_dpo
from jaxalign.training.reward_model.trainer import RewardConfig, train_reward
from jaxalign.training.sft import SFTConfig, train_sft

# File, part of the prompts held out, and what is cut of rows over 384 tokens: HH's dialogues are long before the
# answer, the medical answers (to 36 questions) are long themselves.
FILES = {
    "hh": ("hh_harmless_base_test.jsonl.gz", 0.1, "cut_prompt_start"),
    "pku": ("pku_saferlhf_5k.jsonl.gz", 0.1, "cut_prompt_start"),
    "medical": ("medical_preference_pairs.jsonl.gz", 0.35, "cut_completion"),
}
STAGES = ("sft", "reward", "dpo")
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 50257,
    "hidden_size": 64,
    "intermediate_size": 172,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "bos_token_id": 50256,
    "eos_token_id": 50256,
}


def run_stage(source: str, stage: str, shared: Path, output: Path, steps: int) -> dict[str, object]:
    """One stage on one file; DPO starts from the SFT run's model where there is one."""
    model = output / "llama"
    model.mkdir(parents=True, exist_ok=True)
    (model / "config.json").write_text(json.dumps(LLAMA))
    name, held_out, truncation = FILES[source]
    tokenizer = str(shared / "data/tokenizers/gpt2")
    common = {
        "run": RunConfig(output=str(output / f"{source}-{stage}"), eval_every=steps),
        "model": ModelSource(path=str(model), tokenizer=tokenizer, random_init=True),
        "data": DataConfig(
            train=(str(shared / "data/preferences" / name),),
            validation_fraction=held_out,
            max_length=384,
            truncation=truncation,
            template="markers",
        ),
    }
    train = TrainConfig(batch_size=4, steps=steps, eval_batch_size=8)
    fast = OptimizerConfig(learning_rate=2e-3, warmup_ratio=0.1)
    if stage == "sft":
        result = train_sft(SFTConfig(**common, train=train, optimizer=fast))
    elif stage == "reward":
        result = train_reward(
            RewardConfig(
                **common, train=train, optimizer=OptimizerConfig(learning_rate=3e-4, warmup_ratio=0.1)
            )
        )
    else:
        supervised = output / f"{source}-sft"
        if (supervised / "export").is_dir():
            common["model"] = ModelSource(path=str(supervised))
        train = replace(train, batch_size=2)  # pairs of pairs: the widest logits of the three stages
        result = train_dpo(
            DPOConfig(**common, train=train, optimizer=OptimizerConfig(learning_rate=1e-4, schedule="linear"))
        )
    lines = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    first = next(line for line in lines if "eval/loss" in line)
    data = json.loads((result.folder / "metadata.json").read_text())["data"]
    return {
        "source": source,
        "stage": stage,
        "counts": {k: v for k, v in data.items() if k != "fingerprint"},
        "held-out loss before": first["eval/loss"],
        **{name: value for name, value in result.metrics.items() if name.startswith("eval/")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", choices=FILES)
    parser.add_argument("stage", choices=[*STAGES, "all"])
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--output", type=Path, default=Path("runs/chat_files"))
    parser.add_argument("--steps", type=int, default=200)
    arguments = parser.parse_args()
    for stage in STAGES if arguments.stage == "all" else (arguments.stage,):
        figures = run_stage(arguments.source, stage, arguments.shared, arguments.output, arguments.steps)
        print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
