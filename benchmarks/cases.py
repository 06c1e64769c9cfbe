"""What is measured: one row a case. Read by the driver and by both children, so it needs the standard library alone."""

import random
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

# Models by name (Llama), and the length of their rows: S and M with a head of their own; H has the width, the tied
# vocabulary of 128k and the layers of a model of a billion parameters, but one layer only, so that it fits 24 GiB.
MODELS = {
    "S": {"vocab": 4096, "width": 288, "mlp": 768, "layers": 6, "heads": 6, "kv_heads": 6, "length": 256},
    "M": {"vocab": 32000, "width": 512, "mlp": 1376, "layers": 8, "heads": 8, "kv_heads": 4, "length": 512},
    "H": {
        "vocab": 128_256,
        "width": 2048,
        "mlp": 8192,
        "layers": 1,
        "heads": 32,
        "kv_heads": 8,
        "length": 2048,
    },
}
LEARNING_RATE = 1e-4
SEED = 0


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
      name: of the case, and of its folder.
      task: sft, reward, dpo, grpo, ppo or generate.
      model: a key of `MODELS`.
      kind: time (of a step), memory (of two steps) or start (from the process's start to the end of its first step).
      bf16: bfloat16 matrix products on both sides (parameters stay float32).
      chat: rows as long as real dialogues are, instead of full ones.
      batch: rows (pairs, completions) a step.
      ours: settings of jaxalign beyond the common ones.
      peer: settings of the peer: bf16, checkpointing, packing, huge_pages, precompute, cache; epochs (PPO's passes over
        a rollout, on both sides).
      target: the ratio that is aimed at; None for none. Of a memory the largest, of a time the smallest.
      rival_of: the case that has the same target against another form of the peer; the faster form counts.
      default: part of `make bench`.
      minutes: about how long it takes on two cores.
    """

    name: str
    task: str
    model: str
    kind: Literal["time", "memory", "start"] = "time"
    bf16: bool = False
    chat: bool = False
    batch: int = 8
    ours: tuple[str, ...] = ()
    peer: dict[str, object] = field(default_factory=dict)
    target: float | None = None
    rival_of: str = ""
    default: bool = True
    minutes: float = 3

    @property
    def shape(self) -> dict[str, int]:
        """The model's numbers."""
        return MODELS[self.model]

    @property
    def about(self) -> str:
        """What is compared, in a line."""
        rows = f"batch {self.batch}{', rows as long as dialogues' if self.chat else ''}"
        ours = [f"jaxalign {setting.removeprefix('--')}" for setting in self.ours]
        peer = [f"peer {name}" + ("" if value is True else f" {value}") for name, value in self.peer.items()]
        precision = "bfloat16" if self.bf16 else "float32"
        return "; ".join([f"{self.task}, model {self.model}, {rows}, {precision}", *ours, *peer])

    @property
    def measured(self) -> dict[str, object]:
        """The fields that say what is measured, ready for JSON; not those that say why or how long."""
        fields = asdict(self)
        for name in ("target", "rival_of", "default", "minutes"):
            del fields[name]
        return {**fields, "ours": list(self.ours), "shape": self.shape}

    @property
    def low_precision(self) -> bool:
        """Whether either side computes in bfloat16."""
        return self.bf16 or bool(self.peer.get("bf16"))


PACKED = ("--train.packing=true",)
# What users get who change nothing there.
DEFAULTS: dict[str, object] = {"bf16": True, "checkpointing": True}
# Rows as long as dialogues are: packed here, the peer as it comes; then the same for tasks without a target.
CHAT: dict[str, Any] = {"chat": True, "target": 3.0, "ours": PACKED, "peer": DEFAULTS}
CHAT_TOO = CHAT | {"target": None, "default": False}
# The second of transformers' two forms of `generate`.
COMPILED: dict[str, object] = {"cache": "static-compile"}

CASES = [
    Case("sft-s", "sft", "S", target=1.2, minutes=2),
    Case("sft-s-bf16", "sft", "S", bf16=True, target=1.5),
    # What users get who change nothing: bfloat16 and gradient checkpointing there, float32 here.
    Case("sft-s-defaults", "sft", "S", peer=DEFAULTS),
    # jaxalign runs in large pages by itself.
    Case("sft-s-peer-huge-pages", "sft", "S", peer={"huge_pages": True}, minutes=2),
    Case("sft-chat-s", "sft", "S", **CHAT),
    Case("sft-chat-s-bf16", "sft", "S", bf16=True, default=False, **CHAT),
    # The peer at its best: float32, no checkpointing; its padded rows in large pages, then its own packing.
    Case("sft-chat-s-tuned", "sft", "S", chat=True, ours=PACKED, peer={"huge_pages": True}, minutes=2),
    Case("sft-chat-s-peer-packed", "sft", "S", chat=True, ours=PACKED, peer={"packing": True}),
    Case(
        "sft-chat-s-peer-packed-bf16",
        "sft",
        "S",
        bf16=True,
        chat=True,
        ours=PACKED,
        peer={"packing": True},
        default=False,
    ),
    Case("reward-s", "reward", "S", target=1.3),
    Case("reward-s-bf16", "reward", "S", bf16=True, target=1.5, minutes=4),
    Case("reward-chat-s", "reward", "S", **CHAT_TOO),
    Case("reward-chat-s-bf16", "reward", "S", bf16=True, **CHAT_TOO),
    Case("dpo-s", "dpo", "S", target=1.5),
    Case("dpo-s-bf16", "dpo", "S", bf16=True, target=2.0, minutes=5),
    Case("dpo-chat-s", "dpo", "S", **CHAT_TOO, minutes=5),
    Case("dpo-chat-s-bf16", "dpo", "S", bf16=True, **CHAT_TOO, minutes=5),
    Case(
        "dpo-s-precomputed",
        "dpo",
        "S",
        ours=("--reference_logps=precomputed",),
        peer={"precompute": True},
        minutes=5,
        default=False,
    ),
    Case("generate-s", "generate", "S", batch=16, target=1.5, minutes=2.5),
    Case("generate-s-bf16", "generate", "S", bf16=True, batch=16, target=2.0, minutes=4),
    Case(
        "generate-s-compiled",
        "generate",
        "S",
        batch=16,
        target=1.5,
        rival_of="generate-s",
        peer=COMPILED,
        minutes=4,
    ),
    Case(
        "generate-s-compiled-bf16",
        "generate",
        "S",
        bf16=True,
        batch=16,
        target=2.0,
        rival_of="generate-s-bf16",
        peer=COMPILED,
        minutes=6,
        default=False,
    ),
    Case("grpo-s", "grpo", "S", batch=16, target=2.0, minutes=5),
    Case("grpo-s-bf16", "grpo", "S", bf16=True, batch=16, target=3.0, minutes=10, default=False),
    Case("ppo-s", "ppo", "S", batch=16, target=2.0, minutes=7),
    Case("ppo-s-bf16", "ppo", "S", bf16=True, batch=16, target=3.0, minutes=15, default=False),
    Case("start-s", "sft", "S", kind="start", target=1.0, minutes=4),
    Case("start-s-bf16", "sft", "S", kind="start", bf16=True, target=1.0, minutes=4, default=False),
    Case("memory-128k", "sft", "H", kind="memory", batch=2, target=0.5, peer=DEFAULTS, minutes=8),
    Case("sft-m", "sft", "M", target=2.5, default=False, minutes=10),
    Case("sft-m-bf16", "sft", "M", bf16=True, target=2.5, default=False, minutes=25),
    Case("sft-chat-m", "sft", "M", default=False, minutes=30, **CHAT),
    Case("sft-chat-m-bf16", "sft", "M", bf16=True, default=False, minutes=30, **CHAT),
    Case("reward-m", "reward", "M", target=1.3, default=False, minutes=8),
    Case("reward-m-bf16", "reward", "M", bf16=True, target=1.5, default=False, minutes=25),
    Case("dpo-m", "dpo", "M", target=2.5, default=False, minutes=20),
    Case("dpo-m-bf16", "dpo", "M", bf16=True, target=2.0, default=False, minutes=50),
    Case("generate-m", "generate", "M", batch=16, target=1.5, default=False, minutes=6),
    Case("generate-m-bf16", "generate", "M", bf16=True, batch=16, target=2.0, default=False, minutes=12),
    Case(
        "generate-m-compiled",
        "generate",
        "M",
        batch=16,
        target=1.5,
        rival_of="generate-m",
        peer=COMPILED,
        default=False,
        minutes=10,
    ),
    Case(
        "generate-m-compiled-bf16",
        "generate",
        "M",
        bf16=True,
        batch=16,
        target=2.0,
        rival_of="generate-m-bf16",
        peer=COMPILED,
        default=False,
        minutes=20,
    ),
    Case("grpo-m", "grpo", "M", batch=16, target=2.0, default=False, minutes=20),
    Case("grpo-m-bf16", "grpo", "M", bf16=True, batch=16, target=3.0, default=False, minutes=50),
    # Four passes over a rollout, the peer's default: the clipped ratio is not 1 then.
    Case("ppo-s-epochs", "ppo", "S", batch=16, peer={"epochs": 4}, minutes=15, default=False),
    Case("ppo-m", "ppo", "M", batch=16, target=2.0, default=False, minutes=25),
    Case("ppo-m-bf16", "ppo", "M", bf16=True, batch=16, target=3.0, default=False, minutes=60),
    Case(
        "memory-128k-bf16",
        "sft",
        "H",
        kind="memory",
        bf16=True,
        batch=2,
        target=0.5,
        peer=DEFAULTS,
        minutes=8,
        default=False,
    ),
]
BY_NAME = {case.name: case for case in CASES}

# Generation, GRPO and PPO: tokens of a prompt, and new tokens.
PROMPT, NEW = 64, 192
# Steps whose results are compared; where rows are sampled both sides are given the completions of these, and sample
# after them.
CHECKED = 10
# Completions a prompt in GRPO.
GROUP = 8
# The release of TRL that was the last with PPO, and the reward penalty for a nat of KL there.
PPO_RELEASE, KL = "1.12.0", 0.05


def given_completion(step: int, row: int, vocabulary: int) -> list[int]:
    """What a row of a rollout says in one of the compared steps, on both sides."""
    generator = random.Random(f"{step} {row}")
    return [generator.randrange(4, vocabulary) for _ in range(NEW)]


def given_completions(case: Case, step: int) -> list[list[int]]:
    """All rows of a rollout in one of the compared steps."""
    return [given_completion(step, row, case.shape["vocab"]) for row in range(case.batch)]
