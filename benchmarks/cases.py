"""What is measured: one row a case. Read by the driver and by both children, so it needs the standard library alone."""

import random
from dataclasses import dataclass, field

# The shapes of models S and M (Llama, no tied head), and the length of their rows.
MODELS = {
    "S": {"vocab": 4096, "width": 288, "mlp": 768, "layers": 6, "heads": 6, "kv_heads": 6, "length": 256},
    "M": {"vocab": 32000, "width": 512, "mlp": 1376, "layers": 8, "heads": 8, "kv_heads": 4, "length": 512},
}
LEARNING_RATE = 1e-4
SEED = 0


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
      name: of the case, and of its folder.
      task: sft, reward, dpo, grpo or generate.
      model: a key of `MODELS`.
      bf16: bfloat16 matrix products on both sides (parameters stay float32).
      chat: rows as long as real dialogues are, instead of full ones.
      batch: rows (pairs, completions) a step.
      ours: settings of jaxalign beyond the common ones.
      peer: settings of the peer: checkpointing, packing, huge_pages, precompute, cache.
      target: the ratio that is aimed at; None for none.
      default: part of `make bench`.
    """

    name: str
    task: str
    model: str
    bf16: bool = False
    chat: bool = False
    batch: int = 8
    ours: tuple[str, ...] = ()
    peer: dict[str, object] = field(default_factory=dict)
    target: float | None = None
    default: bool = True

    @property
    def shape(self) -> dict[str, int]:
        """The model's numbers."""
        return MODELS[self.model]


CASES = [
    Case("sft-s", "sft", "S", target=1.2),
    Case("sft-s-bf16", "sft", "S", bf16=True, target=1.5),
    # What users get who change nothing: bfloat16 and gradient checkpointing there, float32 here.
    Case("sft-s-defaults", "sft", "S", peer={"bf16": True, "checkpointing": True}),
    Case("sft-s-peer-huge-pages", "sft", "S", peer={"huge_pages": True}),
    Case(
        "sft-chat-s",
        "sft",
        "S",
        chat=True,
        target=3.0,
        ours=("--train.packing=true",),
        peer={"bf16": True, "checkpointing": True},
    ),
    Case("sft-chat-s-tuned", "sft", "S", chat=True, ours=("--train.packing=true",)),
    Case("reward-s", "reward", "S", target=1.3),
    Case("reward-s-bf16", "reward", "S", bf16=True, target=1.5),
    Case("dpo-s", "dpo", "S", target=1.5),
    Case("dpo-s-bf16", "dpo", "S", bf16=True, target=2.0),
    Case(
        "dpo-s-precomputed",
        "dpo",
        "S",
        ours=("--reference_logps=precomputed",),
        peer={"precompute": True},
    ),
    Case("generate-s", "generate", "S", batch=16, target=1.5),
    Case("generate-s-bf16", "generate", "S", bf16=True, batch=16, target=2.0),
    Case("generate-s-compiled", "generate", "S", batch=16, target=1.5, peer={"cache": "static-compile"}),
    Case("grpo-s", "grpo", "S", batch=16, target=2.0),
    Case("sft-m", "sft", "M", target=2.5, default=False),
    Case("sft-m-bf16", "sft", "M", bf16=True, target=2.5, default=False),
    Case("reward-m", "reward", "M", target=1.3, default=False),
    Case("dpo-m", "dpo", "M", target=2.5, default=False),
    Case("dpo-m-bf16", "dpo", "M", bf16=True, target=2.0, default=False),
    Case("generate-m", "generate", "M", batch=16, target=1.5, default=False),
    Case("generate-m-bf16", "generate", "M", bf16=True, batch=16, target=2.0, default=False),
    Case("grpo-m", "grpo", "M", batch=16, target=2.0, default=False),
]
BY_NAME = {case.name: case for case in CASES}

# Generation and GRPO: tokens of a prompt, and new tokens.
PROMPT, NEW = 64, 192
# Steps whose results are compared; in GRPO both sides are given the completions of these, and sample after them.
CHECKED = 10
# Completions a prompt in GRPO.
GROUP = 8


def given_completion(step: int, row: int, vocabulary: int) -> list[int]:
    """What a row of a rollout says in one of the compared steps, on both sides."""
    generator = random.Random(f"{step} {row}")
    return [generator.randrange(4, vocabulary) for _ in range(NEW)]
