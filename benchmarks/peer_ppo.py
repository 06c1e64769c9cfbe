"""TRL's PPO, which ended with its release 1.12: the trainer on a case's models and prompts, fed what jaxalign is fed.

What differs from jaxalign and is matched by settings there: gradients are never clipped, and policy and value model
share one optimizer. What differs and is left: old log-probs are the sampler's, where jaxalign has those of its training
forward.
"""

import contextlib
import json
from pathlib import Path
from typing import Any

import torch
import trl.experimental.ppo.ppo_trainer as module
from cases import CHECKED, KL, NEW, PROMPT, Case, given_completions
from datasets import Dataset
from gate import Gate, Stop, peak_memory
from transformers import AutoTokenizer, LlamaForCausalLM, LlamaForSequenceClassification, TrainerCallback
from trl.experimental.ppo import PPOConfig, PPOTrainer


class Turns(TrainerCallback):
    """Waits for the driver between updates, and keeps the losses that were logged."""

    def __init__(self, gate: Gate) -> None:
        self.gate, self.policy, self.value = gate, [], []

    def on_train_begin(self, args, state, control, **_):
        """The first update."""
        self.gate.between()

    def on_step_end(self, args, state, control, **_):
        """The next update."""
        self.gate.between()

    def on_log(self, args, state, control, logs=None, **_):
        """Means over the passes of an update."""
        self.policy.append(logs["loss/policy_avg"])
        self.value.append(logs["loss/value_avg"])


def sampled(case: Case, gate: Gate) -> Any:
    """In place of the trainer's sampling: the given completions in the compared updates, then its own."""
    sample, calls = module.batch_generation, 0

    def batch_generation(model, queries, size, pad, generation_config):
        nonlocal calls
        calls += 1
        if calls > CHECKED:
            with gate.clock("sample"):
                rows, logits = sample(model, queries, size, pad, generation_config)
            assert rows.shape[1] == PROMPT + NEW
            # The trainer would read a padding token that was sampled as the end of its row.
            rows[:, PROMPT:][rows[:, PROMPT:] == pad] = 4
            return rows, logits
        rows = torch.cat([queries, torch.tensor(given_completions(case, calls))], dim=1)
        with torch.no_grad():
            logits = model(rows).logits[:, PROMPT - 1 : -1] / generation_config.temperature
        return rows, logits

    return batch_generation


def trainer_of(case: Case, folder: Path, callback: Turns, common: dict[str, Any]) -> Any:
    """The trainer over the case's prompts in their order."""
    rows = json.loads((folder / "rows.json").read_text())
    data = Dataset.from_dict({"input_ids": [row["prompt"] for row in rows]})
    policy, reference = (
        LlamaForCausalLM.from_pretrained(folder / "model", dtype=torch.float32) for _ in range(2)
    )
    value, reward = (
        LlamaForSequenceClassification.from_pretrained(folder / "scalar", dtype=torch.float32)
        for _ in range(2)
    )
    epochs = int(case.peer.get("epochs", 1))
    config = PPOConfig(
        **{name: of for name, of in common.items() if name != "max_steps"},
        total_episodes=case.batch * 100_000,
        num_ppo_epochs=epochs,
        num_mini_batches=1,
        local_rollout_forward_batch_size=case.batch,
        response_length=NEW,
        temperature=1.0,
        kl_coef=KL,
        num_sample_generations=0,
    )
    trainer = PPOTrainer(
        args=config,
        processing_class=AutoTokenizer.from_pretrained(folder / "model"),
        model=policy,
        ref_model=reference,
        reward_model=reward,
        value_model=value,
        train_dataset=data,
        callbacks=[callback],
    )
    # Its own loader shuffles.
    trainer.dataloader = torch.utils.data.DataLoader(
        data, case.batch, collate_fn=trainer.data_collator, drop_last=True
    )
    return trainer


def train(case: Case, folder: Path, gate: Gate, common: dict[str, Any]) -> None:
    """Trains until the driver stops it; reports losses, and gradient norms of the compared updates."""
    callback, norms, whiten = Turns(gate), [], module.masked_whiten

    def counted(values, mask, shift_mean=True):
        gate.count(mask.sum())  # once an update: advantages over the tokens that count
        return whiten(values, mask, shift_mean)

    module.masked_whiten = counted
    module.batch_generation = sampled(case, gate)
    trainer = trainer_of(case, folder, callback, common)
    steps = CHECKED * trainer.args.num_ppo_epochs

    def norm(optimizer, *_):
        if len(norms) < steps:
            grads = [
                p.grad.norm()
                for group in optimizer.param_groups
                for p in group["params"]
                if p.grad is not None
            ]
            norms.append(float(torch.stack(grads).norm()))

    trainer.optimizer.optimizer.register_step_pre_hook(norm)
    passes = trainer.args.num_ppo_epochs
    gate.report = lambda: {
        "losses": callback.policy,
        "value_losses": callback.value,
        "grad_norms": [sum(norms[i : i + passes]) / passes for i in range(0, len(norms), passes)],
    }
    with contextlib.suppress(Stop):
        trainer.train()
    gate.answer(memory=peak_memory())
