"""The whole pipeline in one process: SFT -> reward model -> PPO and DPO -> comparison and report."""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from jaxalign.config import save_yaml
from jaxalign.data import collate_demonstrations, eval_batches, load_dataset
from jaxalign.errors import ConfigError
from jaxalign.evaluation.tables import format_table
from jaxalign.mesh import devices_of, make_mesh
from jaxalign.pipelines.compare import (
    Answers,
    Comparison,
    MethodResult,
    TrueReward,
    comparison_rows,
    gains,
)
from jaxalign.rewards import WeightedMix
from jaxalign.runs import plots, records
from jaxalign.runs.report import metric_series, write_comparison_report
from jaxalign.training.core import setup
from jaxalign.training.core.reward_source import build_reward
from jaxalign.training.preference.dpo import DPOConfig, train_dpo
from jaxalign.training.reward_model.trainer import RewardConfig, train_reward
from jaxalign.training.rl.ppo import train_ppo
from jaxalign.training.rl.ppo_config import PPOConfig
from jaxalign.training.sft import SFTConfig, train_sft


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How the methods are compared.

    Attributes:
      prompts: maximum number of held-out prompts that each method completes.
      demonstrations: maximum number of held-out demonstrations for perplexity.
      batch_size: rows to score at once.
      samples: completions to show side by side in the report.
    """

    prompts: int = 200
    demonstrations: int = 200
    batch_size: int = 32
    samples: int = 6

    def __post_init__(self) -> None:
        for name in ("prompts", "demonstrations", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"evaluation.{name} must be 1 or more, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class PipelineConfig:
    """All stages. The pipeline sets run.output, run.seed, run.device and run.resume of each.

    Attributes:
      output: folder for all results; each stage has a run folder in it.
      seed: seed for every stage.
      device: device to run on: cpu, gpu or tpu; auto uses JAX's default.
      resume: continue from the results in `output`.
      sft: supervised fine-tuning; its model is the pipeline's initial model.
      reward: the reward model, on the SFT model's trunk.
      ppo: PPO of the SFT model against the reward model.
      dpo: DPO of the SFT model; by default on the reward model's data.
      evaluation: how the methods are compared.
    """

    output: str = ""
    seed: int = 0
    device: Literal["auto", "cpu", "gpu", "tpu"] = "auto"
    resume: bool = False
    sft: SFTConfig = field(default_factory=SFTConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)
    dpo: DPOConfig = field(default_factory=DPOConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)


@dataclass(frozen=True)
class PipelineResult:
    """What a pipeline returns.

    Attributes:
      folder: the output folder, with `report.html` and `comparison.json`.
      metrics: how far each method lies above the supervised model, and the seconds of each stage.
      results: the rows of the comparison.
      table: the same as text.
      models: the live models by name.
    """

    folder: Path
    metrics: Mapping[str, float]
    results: Sequence[MethodResult]
    table: str
    models: Mapping[str, Any]


class Stages:
    """Prints each stage, and records how long it took."""

    def __init__(self, say: Callable[[str], None] = print) -> None:
        self.say = say
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str, title: str):
        """Times one stage."""
        self.say(f"[{name}] {title}")
        started = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started
        self.say(f"[{name}] {self.seconds[name]:.1f} s")


def run_pipeline(
    config: PipelineConfig,
    *,
    model: Any = None,
    tokenizer: Any = None,
    true_reward: TrueReward | None = None,
    stages: Stages | None = None,
    title: str = "From a checkpoint to an aligned model",
    notes: Sequence[str] = (),
) -> PipelineResult:
    """Runs every stage, compares the four models and writes the report.

    Args:
      config: see `PipelineConfig`.
      model: a live base model in place of `config.sft.model`; needs `tokenizer`.
      tokenizer: its tokenizer.
      true_reward: `(prompt, completion) -> float` where the truth is known: followed through PPO
        (never trained on) and shown in the table.
      stages: the clock; a fresh one where None.
      title: of the report.
      notes: paragraphs for the report.

    Raises:
      UserError: an invalid configuration, file or row; the message is one line.
    """
    if not config.output:
        raise ConfigError("output: expected a folder (or --output FOLDER)")
    stages = stages or Stages()
    folder = Path(config.output)
    plan = placed(config)
    if model is None:
        mesh = setup.start(plan.sft.run, plan.sft.mesh)
        # One live model goes through all stages.
        packing = any(stage.train.packing for stage in (plan.sft, plan.reward, plan.ppo, plan.dpo))
        model, tokenizer = setup.load_model(plan.sft.model, mesh, seed=config.seed, packing=packing)
    with stages.stage("sft", "supervised fine-tuning on demonstrations"):
        sft = train_sft(plan.sft, model=model, tokenizer=tokenizer)
    with stages.stage("reward", "reward model on preference pairs"):
        scorer = train_reward(plan.reward, model=sft.model, tokenizer=tokenizer)
    proxy, _ = build_reward(
        plan.ppo.reward,
        scorer.model,
        mesh=make_mesh(plan.ppo.mesh, devices_of(plan.ppo.run.device)),
        batch_size=plan.ppo.train.score_batch_size,
        vocabulary=sft.model.config.vocab_size,
    )
    with stages.stage("ppo", "proximal policy optimization against the reward model"):
        ppo = train_ppo(plan.ppo, policy=sft.model, reward=_followed(proxy, true_reward), tokenizer=tokenizer)
    with stages.stage("dpo", "direct preference optimization on the same pairs"):
        dpo = train_dpo(plan.dpo, policy=sft.model, tokenizer=tokenizer)
    live = {"base": model, "SFT": sft.model, "PPO": ppo.model, "DPO": dpo.model}
    with stages.stage("evaluation", "all four models on held-out prompts"):
        comparison = _comparison(plan, sft.model, proxy, tokenizer, true_reward)
        answers = {name: comparison.answers(one) for name, one in live.items()}
        results = [_row(comparison, name, live[name], answers[name]) for name in live]
        table = format_table(comparison_rows(results))
        above = gains(results)
        report = write_comparison_report(
            folder / "report.html",
            title=title,
            subtitle=f"seed {config.seed}; " + ", ".join(f"{k} {v:.0f} s" for k, v in stages.seconds.items()),
            rows=comparison_rows(results),
            pictures=pictures(folder, results),
            samples=side_by_side(comparison, answers, config.evaluation.samples),
            notes=[*_gain_notes(above, true_reward is not None), *notes],
        )
    save_yaml(plan, folder / "config.yaml")
    metrics = {f"{name} above SFT (SD)": value for name, value in above.items()}
    metrics |= {f"seconds {name}": value for name, value in stages.seconds.items()}
    _write_json(
        folder / "comparison.json", {"seed": config.seed, "methods": [r.plain() for r in results], **metrics}
    )
    stages.say(f"\n{table}\n")
    for note in _gain_notes(above, true_reward is not None):
        stages.say(note)
    stages.say(f"report: {report}")
    return PipelineResult(folder, metrics, results, table, live)


def placed(config: PipelineConfig) -> PipelineConfig:
    """The same with each stage's folder, seed and device, and DPO's data, filled in."""
    folder = Path(config.output)

    def at(stage: Any, name: str) -> Any:
        run = replace(
            stage.run,
            output=str(folder / name),
            seed=config.seed,
            device=config.device,
            resume=config.resume,
        )
        return replace(stage, run=run)

    ppo = at(config.ppo, "ppo")
    if ppo.critic.init == "reward":
        # The live reward is a mix that follows the truth too, so the critic starts from the folder.
        reward = (
            folder / "reward" / "export" / "member-0"
            if config.reward.ensemble.size > 1
            else folder / "reward"
        )
        ppo = replace(ppo, critic=replace(ppo.critic, init="path", path=str(reward)))
    dpo = at(config.dpo, "dpo")
    if not dpo.data.train:
        dpo = replace(dpo, data=config.reward.data)
    return replace(config, sft=at(config.sft, "sft"), reward=at(config.reward, "reward"), ppo=ppo, dpo=dpo)


def _followed(proxy: Any, true_reward: TrueReward | None) -> Any:
    """The proxy; where the truth is known it rides along with weight 0, for the log."""
    if true_reward is None:
        return proxy

    def truth(prompts, completions, *, completion_ids, columns):
        return [true_reward(p, c) for p, c in zip(prompts, completions, strict=True)]

    return WeightedMix({"proxy": proxy, "true": truth}, {"proxy": 1.0, "true": 0.0})


def _comparison(
    plan: PipelineConfig, supervised: Any, proxy: Any, tokenizer: Any, true_reward: TrueReward | None
) -> Comparison:
    settings = plan.evaluation
    prompts = load_dataset(plan.ppo.data, "prompt", tokenizer, seed=plan.seed).validation[: settings.prompts]
    demonstrations = load_dataset(plan.sft.data, "demonstration", tokenizer, seed=plan.seed).validation
    for name, rows in (("ppo", prompts), ("sft", demonstrations)):
        if not rows:
            raise ConfigError(
                f"{name}.data.validation: no held-out data; raise {name}.data.validation_fraction"
            )
    batches = eval_batches(
        demonstrations[: settings.demonstrations], settings.batch_size, collate_demonstrations
    )
    return Comparison(
        supervised,
        reward=proxy,
        tokenizer=tokenizer,
        prompts=[list(e.prompt_tokens) for e in prompts],
        prompt_texts=[e.prompt_text for e in prompts],
        sampling=plan.ppo.sampling,
        held_out=list(batches),
        true_reward=true_reward,
        seed=plan.seed,
    )


def _row(comparison: Comparison, name: str, model: Any, answers: Answers) -> MethodResult:
    result = comparison.result(name, model, answers)
    return replace(result, wins=None) if name == "SFT" else result


def pictures(folder: Path, results: Sequence[MethodResult]) -> list[tuple[str, bytes]]:
    """Curves of all stages, from their metrics.jsonl; what a stage did not log is left out."""
    series = {
        name: metric_series(records.read(folder / name / "metrics.jsonl"))
        for name in ("base", "sft", "reward", "ppo", "dpo")
        if (folder / name / "metrics.jsonl").is_file()
    }

    def lines(*wanted: tuple[str, str, str]) -> dict[str, Any]:
        return {label: series[run][key] for label, run, key in wanted if key in series.get(run, {})}

    panels = [
        (
            "Supervised loss (nats a token)",
            lines(
                ("base, training", "base", "train/loss"),
                ("SFT, training", "sft", "train/loss"),
                ("SFT, held out", "sft", "eval/loss"),
            ),
            "step",
        ),
        (
            "Reward model: pair accuracy",
            lines(("training", "reward", "train/accuracy"), ("held out", "reward", "eval/accuracy")),
            "step",
        ),
        (
            "PPO: proxy and true reward",
            lines(
                ("proxy (learned)", "ppo", "reward/proxy"),
                ("true", "ppo", "reward/true"),
                ("score", "ppo", "objective/score"),
            ),
            "update",
        ),
        ("PPO: KL to SFT (nats)", lines(("KL", "ppo", "objective/kl")), "update"),
        ("PPO: entropy (nats a token)", lines(("entropy", "ppo", "policy/entropy")), "update"),
        ("PPO: tokens an answer", lines(("length", "ppo", "rollout/length")), "update"),
        (
            "DPO: pair accuracy",
            lines(("training", "dpo", "train/accuracy"), ("held out", "dpo", "eval/accuracy")),
            "step",
        ),
        (
            "DPO: margin",
            lines(("training", "dpo", "train/margin"), ("held out", "dpo", "eval/margin")),
            "step",
        ),
    ]
    ppo = series.get("ppo", {})
    if "reward/true" in ppo:
        panels[2][1].pop("score", None)
        kl = ppo["objective/kl"][1]
        # Rewards against distance: where the proxy goes on rising and the truth does not, it is over-optimised.
        along = {name: (kl, ppo[f"reward/{name}"][1]) for name in ("proxy", "true")}
        panels.insert(3, ("Over-optimisation: reward by KL", along, "KL to SFT (nats)"))
    return [
        (title, plots.curve(curves, title, xlabel=xlabel, points=xlabel.startswith("KL")))
        for title, curves, xlabel in panels
        if curves
    ]


def side_by_side(comparison: Comparison, answers: Mapping[str, Answers], count: int) -> list[dict[str, str]]:
    """The first prompts with every model's completion and its score."""
    rows = []
    for index, prompt in enumerate(comparison.prompt_texts[:count]):
        row = {"prompt": prompt}
        for name, given in answers.items():
            row[name] = f"{given.completions[index]}  [{given.judged[index]:.1f}]"
        rows.append(row)
    return rows


def _gain_notes(above: Mapping[str, float], truth: bool) -> list[str]:
    kind = "true" if truth else "proxy"
    return [
        f"{name}: {kind} reward {value:+.2f} SFT standard deviations relative to the SFT mean."
        for name, value in above.items()
        if name != "base"
    ]


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(json.dumps(values, indent=2), encoding="utf-8")
    os.replace(temporary, path)
