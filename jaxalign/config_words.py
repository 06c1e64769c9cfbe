"""What other programs, and other commands of this one, call a key: so that an unknown key names the right one."""

from collections.abc import Collection

# Their word -> our keys; a command takes the first that it has.
WORDS: dict[str, tuple[str, ...]] = {
    "batch_size": ("train.batch_size", "train.prompts"),
    "beta": ("loss.beta", "kl.coefficient"),
    "betas": ("optimizer.beta1",),
    "bf16": ("model.compute_dtype",),
    "dataset": ("data.train",),
    "dataset_name": ("data.train",),
    "dtype": ("model.compute_dtype",),
    "eval_steps": ("run.eval_every",),
    "fp16": ("model.compute_dtype",),
    "gradient_accumulation_steps": ("train.accumulation_steps",),
    "gradient_checkpointing": ("model.remat",),
    "init_kl_coef": ("kl.coefficient",),
    "kl_coef": ("kl.coefficient", "loss.beta"),
    "logging_steps": ("run.log_every",),
    "lora_alpha": ("lora.alpha",),
    "lora_r": ("lora.rank",),
    "loss_type": ("loss.name",),
    "lr": ("optimizer.learning_rate",),
    "lr_scheduler_type": ("optimizer.schedule",),
    "max_completion_length": ("sampling.max_new_tokens", "data.max_length"),
    "max_seq_length": ("data.max_length",),
    "max_steps": ("train.steps", "train.updates"),
    "model_name_or_path": ("model.path",),
    "num_epochs": ("train.epochs",),
    "num_generations": ("sampling.num_samples",),
    "num_iterations": ("train.epochs",),
    "num_mini_batches": ("train.minibatches",),
    "num_ppo_epochs": ("train.epochs",),
    "num_train_epochs": ("train.epochs",),
    "optim": ("optimizer.name",),
    "output_dir": ("run.output",),
    "per_device_eval_batch_size": ("train.eval_batch_size",),
    "per_device_train_batch_size": ("train.batch_size", "train.prompts"),
    "prompts": ("train.prompts", "train.batch_size"),
    "ref_model": ("reference.path",),
    "report_to": ("run.wandb",),
    "response_length": ("sampling.max_new_tokens",),
    "reward_funcs": ("reward.functions",),
    "reward_model": ("reward.model",),
    "reward_model_path": ("reward.model",),
    "reward_weights": ("reward.weights",),
    "save_steps": ("run.save_every",),
    "save_total_limit": ("run.keep_last",),
    "steps": ("train.steps", "train.updates"),
    "total_episodes": ("train.updates",),
    "type": ("loss.name",),
    "updates": ("train.updates", "train.steps"),
    "use_peft": ("lora.enabled",),
    "warmup_ratio": ("optimizer.warmup_ratio",),
}


def our_key(name: str, keys: Collection[str]) -> str | None:
    """The key, of those that there are, that somebody who wrote `name` means; None where that is not known."""
    word = name.rsplit(".", 1)[-1].replace("-", "_").lower()
    return next((key for key in WORDS.get(word, ()) if key in keys), None)
