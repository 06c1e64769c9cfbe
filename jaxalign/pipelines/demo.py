"""`jaxalign demo`: the whole pipeline on a tiny model and a generated world of stories.

Everything is generated on the spot: the texts, the tokenizer, the base model. The true
quality of a story is known (`story_world.true_reward`), is never trained on beyond the
noisy labels of the pairs, and stands beside the learned reward in every figure.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax

from jaxalign import models
from jaxalign.config import parse
from jaxalign.data import DataConfig
from jaxalign.errors import ConfigError
from jaxalign.pipelines import story_world
from jaxalign.pipelines.pipeline import EvaluationConfig, PipelineConfig, PipelineResult, Stages, run_pipeline
from jaxalign.rollout import SamplingConfig
from jaxalign.runs import RunConfig
from jaxalign.training.core.loop import TrainConfig
from jaxalign.training.core.optimizer import OptimizerConfig
from jaxalign.training.core.reward_source import RewardSource
from jaxalign.training.preference.dpo import DPOConfig, DPOLossConfig
from jaxalign.training.reward_model.trainer import RewardConfig, RewardLossConfig
from jaxalign.training.rl.kl_controller import KLConfig
from jaxalign.training.rl.ppo_config import CriticConfig, PPOConfig, PPOLossConfig, PPOTrainConfig
from jaxalign.training.sft import SFTConfig, train_sft

MAX_POSITIONS = 96
MAX_LENGTH = 64
MAX_NEW_TOKENS = 48
# Sizes of the world's files, see `story_world.write_world`.
WORLD = {"stories": 6000, "preferences": 6000, "held_out": 200}


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """The demonstration, or the same pipeline on a model and files of your own.

    Attributes:
      output: folder for all results: one run folder per stage, report.html and comparison.json.
      seed: seed for the generated data, the weights and the data order.
      device: device to run on: cpu, gpu or tpu; auto uses JAX's default.
      quick: run the same stages with fewer steps.
      resume: continue from the results in `output`.
      model: a model folder or hub id to use in place of the demo's own; needs demonstrations and comparisons.
      demonstrations: files with demonstrations, for supervised fine-tuning.
      comparisons: files with comparisons, for the reward model and DPO.
      prompts: files with prompts for PPO; empty uses the prompts of the comparisons.
      settings: pipeline configuration (a file or a shipped name) to use with your own model.
    """

    output: str = "runs/demo"
    seed: int = 0
    device: Literal["auto", "cpu", "gpu", "tpu"] = "auto"
    quick: bool = False
    resume: bool = False
    model: str = ""
    demonstrations: tuple[str, ...] = ()
    comparisons: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    settings: str = "pipeline"

    def __post_init__(self) -> None:
        own = [self.model, self.demonstrations, self.comparisons]
        if any([*own, self.prompts]) and not all(own):
            raise ValueError(
                "model, demonstrations and comparisons: expected all three, or none for the demo's own"
            )


@dataclass(frozen=True)
class Steps:
    """Optimizer steps (updates) of each stage."""

    base: int
    sft: int
    reward: int
    ppo: int
    dpo: int


FULL = Steps(base=300, sft=500, reward=400, ppo=40, dpo=300)
QUICK = Steps(base=120, sft=120, reward=80, ppo=10, dpo=60)


def run_demo(config: DemoConfig) -> PipelineResult:
    """Runs SFT, reward model, PPO and DPO on a tiny model, then compares them and writes a report.

    Args:
      config: see `DemoConfig`.

    Returns:
      The output folder, the comparison and the live models.

    Raises:
      UserError: an invalid configuration, file or row; the message is one line.
    """
    if config.model:
        return run_pipeline(own_pipeline(config))
    folder = Path(config.output)
    if not config.resume and (folder / "comparison.json").exists():
        raise ConfigError(f"output: {folder} already holds a demo; choose another folder")
    stages = Stages()
    files = story_world.write_world(folder / "data", seed=config.seed, **WORLD)
    tokenizer = story_world.build_tokenizer()
    plan = demo_pipeline(config, files)
    with stages.stage("base", "pre-training a small Llama on single sentences, without stories"):
        shape = model_shape(tokenizer)
        blank = models.create(shape, key=jax.random.key(config.seed))
        base = train_sft(base_stage(config, files), model=blank, tokenizer=tokenizer).model
    stages.say(f"       {models.params_count(models.split(base)[1]):,} parameters, {shape.vocab_size} words")
    return run_pipeline(
        plan,
        model=base,
        tokenizer=tokenizer,
        true_reward=lambda prompt, completion: story_world.true_reward(f"{prompt} {completion}"),
        stages=stages,
        title="jaxalign demo: a world of micro-stories",
        notes=[
            f"The true reward of a story is known (at most {story_world.BEST_REWARD:g} points). The reward model "
            "(the proxy) saw only pairs, of which one label in twenty is wrong; its scores have mean 0 and "
            "variance 1 over held-out stories. Win rates are by the true reward, against other samples of the SFT "
            "model. ± is the standard error of the mean."
        ],
    )


def model_shape(tokenizer: Any) -> models.ModelConfig:
    """A Llama of 0.1 million parameters."""
    return models.ModelConfig(
        family="llama",
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=192,
        num_layers=2,
        num_heads=4,
        num_kv_heads=4,
        head_dim=16,
        max_positions=MAX_POSITIONS,
        bos_id=tokenizer.bos_token_id,
        eos_ids=(tokenizer.eos_token_id,),
        pad_id=tokenizer.pad_token_id,
    )


def base_stage(config: DemoConfig, files: story_world.WorldFiles) -> SFTConfig:
    """The short pre-training that makes the demo's base model."""
    steps = QUICK if config.quick else FULL
    return SFTConfig(
        run=_run(config, "base"),
        data=_data(files.loose),
        train=TrainConfig(batch_size=32, steps=steps.base),
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=10),
        sampling=SamplingConfig(max_new_tokens=MAX_NEW_TOKENS),
    )


def demo_pipeline(config: DemoConfig, files: story_world.WorldFiles) -> PipelineConfig:
    """The settings of the demo's stages, tuned on two CPU cores."""
    steps = QUICK if config.quick else FULL
    sampling = SamplingConfig(max_new_tokens=MAX_NEW_TOKENS)
    pairs = _data(files.preferences, files.held_out_preferences)
    return PipelineConfig(
        output=config.output,
        seed=config.seed,
        device=config.device,
        resume=config.resume,
        sft=SFTConfig(
            run=_run(config, "sft"),
            data=_data(files.stories, files.held_out_stories),
            train=TrainConfig(batch_size=32, steps=steps.sft, eval_batch_size=64),
            optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=10),
            sampling=sampling,
        ),
        reward=RewardConfig(
            run=_run(config, "reward"),
            data=pairs,
            loss=RewardLossConfig(label_smoothing=0.05),
            train=TrainConfig(batch_size=32, steps=steps.reward, eval_batch_size=64),
            optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=10, weight_decay=0.01),
        ),
        ppo=PPOConfig(
            run=replace(_run(config, "ppo"), log_every=1),
            data=_data(files.prompts, files.held_out_prompts),
            reward=RewardSource(missing_stop_penalty=1.0),
            critic=CriticConfig(
                init="reward", optimizer=OptimizerConfig(learning_rate=1e-3, schedule="linear", epsilon=1e-5)
            ),
            sampling=sampling,
            loss=PPOLossConfig(),
            kl=KLConfig(coefficient=0.1),
            train=PPOTrainConfig(
                updates=steps.ppo, prompts=128, epochs=2, minibatches=4, score_batch_size=128
            ),
            optimizer=OptimizerConfig(learning_rate=1e-3, schedule="linear", epsilon=1e-5),
        ),
        dpo=DPOConfig(
            run=_run(config, "dpo"),
            data=pairs,
            loss=DPOLossConfig(beta=0.2, label_smoothing=0.05, sft_weight=0.2),
            train=TrainConfig(batch_size=16, steps=steps.dpo, eval_batch_size=64),
            optimizer=OptimizerConfig(learning_rate=3e-4, schedule="linear", warmup_steps=10),
            sampling=sampling,
        ),
        evaluation=EvaluationConfig(batch_size=64),
    )


def own_pipeline(config: DemoConfig) -> PipelineConfig:
    """The pipeline of `settings` on the user's model and files."""
    plan = parse(PipelineConfig, config.settings)

    def reading(stage: Any, paths: tuple[str, ...]) -> Any:
        return replace(stage, data=replace(stage.data, train=paths))

    sft = replace(plan.sft, model=replace(plan.sft.model, path=config.model))
    return replace(
        plan,
        output=config.output,
        seed=config.seed,
        device=config.device,
        resume=config.resume,
        sft=reading(sft, config.demonstrations),
        reward=reading(plan.reward, config.comparisons),
        ppo=reading(plan.ppo, config.prompts or config.comparisons),
        dpo=reading(plan.dpo, config.comparisons),
    )


def _run(config: DemoConfig, name: str) -> RunConfig:
    return RunConfig(
        output=str(Path(config.output) / name),
        seed=config.seed,
        device=config.device,
        resume=config.resume,
        log_every=10,
        eval_every=100,
        keep_last=1,
    )


def _data(train: Path, validation: Path | None = None) -> DataConfig:
    return DataConfig(
        train=(str(train),),
        validation=(str(validation),) if validation else (),
        validation_fraction=0.0,
        max_length=MAX_LENGTH,
        template="plain",
    )
