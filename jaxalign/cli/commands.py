"""The commands: what each does, and where its configuration and function are."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Command:
    """One command: what it does, and where its configuration and function are.

    Attributes:
      summary: one line for `jaxalign --help`.
      config: `module:Class` of its configuration.
      function: `module:function` that takes it.
      aliases: short flag -> dotted key.
      positional: key that an argument right after the command sets, as in `jaxalign chat FOLDER`; empty for none.
    """

    summary: str
    config: str
    function: str
    aliases: Mapping[str, str] = field(default_factory=dict)
    positional: str = ""


COMMANDS: dict[str, Command] = {
    "sft": Command(
        "supervised fine-tuning (SFT) on demonstrations",
        "jaxalign.training.sft:SFTConfig",
        "jaxalign.training.sft:train_sft",
    ),
    "distill": Command(
        "distill a teacher into a smaller student with the same tokenizer",
        "jaxalign.training.distill.trainer:DistillConfig",
        "jaxalign.training.distill.trainer:train_distill",
    ),
    "reward": Command(
        "train a reward model on comparisons, rankings or labeled steps",
        "jaxalign.training.reward_model.trainer:RewardConfig",
        "jaxalign.training.reward_model.trainer:train_reward",
    ),
    "dpo": Command(
        "direct preference optimization (DPO and its family) on comparisons or labels",
        "jaxalign.training.preference.dpo:DPOConfig",
        "jaxalign.training.preference.dpo:train_dpo",
    ),
    "tfpo": Command(
        "train a small doctor to guide a large frozen patient (LLMDoctor)",
        "jaxalign.llmdoctor.tfpo_config:TFPOConfig",
        "jaxalign.llmdoctor.tfpo:train_tfpo",
        {"patient": "patient.path"},
    ),
    "ppo": Command(
        "proximal policy optimization (PPO) against a reward",
        "jaxalign.training.rl.ppo:PPOConfig",
        "jaxalign.training.rl.ppo:train_ppo",
    ),
    "grpo": Command(
        "GRPO, RLOO and other policy-gradient methods without a critic",
        "jaxalign.training.rl.grpo:GRPOConfig",
        "jaxalign.training.rl.grpo:train_grpo",
    ),
    "online-dpo": Command(
        "DPO on the policy's own samples, ranked by a reward or a judge",
        "jaxalign.training.rl.online_dpo:OnlineDPOConfig",
        "jaxalign.training.rl.online_dpo:train_online_dpo",
    ),
    "sweep": Command(
        "train one run per point of a grid and rank them by a metric",
        "jaxalign.pipelines.sweep:SweepConfig",
        "jaxalign.pipelines.sweep:run_sweep",
        positional="command",
    ),
    "plan": Command(
        "memory, collectives and time of a training run on devices you do not have yet",
        "jaxalign.plan.plan:PlanConfig",
        "jaxalign.plan.plan:plan",
        positional="command",
    ),
    "generate": Command(
        "generate completions with any model folder or run",
        "jaxalign.inference.generate:GenerateConfig",
        "jaxalign.inference.generate:generate",
        positional="model",
    ),
    "chat": Command(
        "chat with a model folder or run in the terminal",
        "jaxalign.cli.chat:ChatConfig",
        "jaxalign.cli.chat:chat",
        positional="model",
    ),
    "evaluate": Command(
        "score a model on benchmarks, and report the figures with intervals",
        "jaxalign.evaluation.evaluate_config:EvaluateConfig",
        "jaxalign.evaluation.evaluate:evaluate",
        positional="model",
    ),
    "compare": Command(
        "compare methods from one supervised model, with one budget and error bars",
        "jaxalign.pipelines.compare_config:CompareConfig",
        "jaxalign.pipelines.compare_cells:run_compare",
    ),
    "export": Command(
        "export a checkpoint of a run as a Hugging Face folder or GGUF file",
        "jaxalign.cli.export:ExportConfig",
        "jaxalign.cli.export:export",
        positional="run",
    ),
    "check": Command(
        "check the environment, and inspect a model or data files",
        "jaxalign.cli.check:CheckConfig",
        "jaxalign.cli.check:check",
    ),
    "demo": Command(
        "run the whole pipeline on a tiny model and generated data",
        "jaxalign.pipelines.demo:DemoConfig",
        "jaxalign.pipelines.demo:run_demo",
    ),
}
