"""Losses of reward models: TRL's trainers, the losses of torch and transformers, and derivations in float64."""

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from transformers.loss.loss_utils import ForTokenClassification
from trl.trainer.reward_trainer import RewardTrainer

from tests.golden.references.preference import cpo
from tests.golden.references.trl_stubs import Accelerator


def bradley_terry(inputs, options):
    chosen, rejected = inputs["chosen_rewards"], inputs["rejected_rewards"]
    if "temperature" in options:
        scale = 1 / options["temperature"]
        return cpo(
            "simpo",
            chosen,
            rejected,
            {"beta": scale, "gamma": options["margin"], "label_smoothing": options["label_smoothing"]},
        )
    margins = inputs.get("margin")
    return torch.stack(
        [
            _reward_trainer(
                chosen[i : i + 1],
                rejected[i : i + 1],
                None if margins is None else margins[i : i + 1],
                options.get("center_coefficient"),
            )
            for i in range(len(chosen))
        ]
    )


def _reward_trainer(chosen, rejected, margin, center):
    """`RewardTrainer.compute_loss` of a batch with one pair: it returns a mean."""
    metrics = dict.fromkeys(("min_reward", "mean_reward", "max_reward", "accuracy", "margin"))
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=Accelerator(),
        args=SimpleNamespace(center_rewards_coefficient=center),
        _metrics={"train": {name: [] for name in metrics}},
        _total_train_tokens=0,
        _tp_size=1,
    )
    batch = {"attention_mask": torch.ones(2, 1, dtype=torch.long)}
    if margin is not None:
        batch["margin"] = margin
    logits = torch.cat([chosen, rejected])[:, None]
    return RewardTrainer.compute_loss(trainer, lambda **_: SimpleNamespace(logits=logits), batch)


def plackett_luce(inputs, options):
    """-log of the chance to draw the candidates in this order, one after the other, without replacement."""
    losses = []
    for row, (scores, order) in enumerate(zip(inputs["rewards"], inputs["ranking"], strict=True)):
        listed = order[inputs["mask"][row]] if "mask" in inputs else order
        left = listed.tolist()
        chance = torch.ones((), dtype=torch.float64)
        for _ in range(min(options.get("top", len(left)), len(left))):
            chance = chance * scores[left[0]].exp() / sum(scores[i].exp() for i in left)
            left.pop(0)
        losses.append(-torch.log(chance))
    return torch.stack(losses)


def regression(inputs, options):
    delta = options.get("huber_delta")
    if delta is None:
        loss = F.mse_loss(inputs["rewards"], inputs["targets"], reduction="none")
    else:
        loss = 2 * F.huber_loss(inputs["rewards"], inputs["targets"], reduction="none", delta=delta)
    return torch.where(inputs["mask"], loss, 0.0)


def process_reward(inputs, _):
    """The token-classification loss of two classes, which is a mean: each token on its own."""
    labels = torch.where(inputs["mask"], inputs["labels"].long(), -100)
    logits = torch.stack([torch.zeros_like(inputs["logits"]), inputs["logits"]], dim=-1)
    config = SimpleNamespace(num_labels=2)
    losses = [
        ForTokenClassification(pair[None], label[None], config, num_items_in_batch=1)
        for pair, label in zip(logits.reshape(-1, 2), labels.reshape(-1), strict=True)
    ]
    return torch.stack(losses).reshape(labels.shape)


def aggregate(inputs, options):
    scores, members = inputs["rewards"], len(inputs["rewards"])
    if options["mode"] == "worst":
        return torch.sort(scores, dim=0).values[0]
    mean = sum(scores) / members
    if options["mode"] == "mean":
        return mean
    return mean - options["coefficient"] * (sum((s - mean) ** 2 for s in scores) / members) ** 0.5


REFERENCES = {
    "bradley_terry_loss": bradley_terry,
    "best_of_n_loss": lambda i, _: F.cross_entropy(i["rewards"], i["best"].long(), reduction="none"),
    "plackett_luce_loss": plackett_luce,
    "reward_regression_loss": regression,
    "reward_bce_loss": lambda i, _: F.binary_cross_entropy_with_logits(
        i["rewards"], i["labels"], reduction="none"
    ),
    "process_reward_loss": process_reward,
    "aggregate_ensemble": aggregate,
    "ensemble_disagreement": lambda i, _: torch.std(i["rewards"], dim=0, correction=0),
    "combine_objectives": lambda i, _: torch.linalg.vecdot(i["rewards"], i["weights"]),
}
