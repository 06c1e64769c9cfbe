"""Losses of demonstrations: TRL's trainers, and torch's own functions in float64."""

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from trl.experimental.gkd.gkd_trainer import GKDTrainer
from trl.trainer.sft_trainer import SFTTrainer

from tests.golden.references.trl_stubs import Accelerator, Metrics


def cross_entropy(inputs, options):
    logits, targets, mask = inputs["logits"], inputs["targets"].long(), inputs["mask"]
    loss = F.cross_entropy(
        logits.movedim(-1, 1),
        torch.where(mask, targets, -100),
        reduction="none",
        label_smoothing=options.get("label_smoothing", 0.0),
    )
    normalizer = torch.log(torch.exp(logits).sum(-1))
    return loss + options.get("z_loss", 0.0) * mask * normalizer**2


def dft(inputs, _):
    """`SFTTrainer.compute_loss`, which returns a mean: each token is a batch of one."""
    losses = [
        [_dft_token(value[None, None], counts[None, None]) for value, counts in zip(*row, strict=True)]
        for row in zip(inputs["logps"], inputs["mask"], strict=True)
    ]
    return torch.stack([torch.stack(row) for row in losses])


def _dft_token(logp, counts):
    zeros = torch.zeros_like(logp)
    outputs = SimpleNamespace(
        log_probs=logp * counts,
        entropy=zeros,
        log_sum_sq_probs=zeros,
        mean_logits=zeros,
        is_top1=zeros.bool(),
        label_mask=counts,
    )
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=Accelerator(),
        aux_loss_enabled=False,
        compute_loss_func=None,
        label_smoother=None,
        args=SimpleNamespace(loss_type="dft", average_tokens_across_devices=False),
        _metrics={"train": Metrics(inner=True)},
        _total_train_tokens=0,
        _tp_size=1,
    )
    batch = {"attention_mask": torch.ones_like(counts).long(), "labels": torch.zeros_like(counts).long()}
    return SFTTrainer.compute_loss(trainer, lambda **_: outputs, batch)


def unlikelihood(inputs, _):
    complement = 1 - torch.exp(inputs["logps"])
    return torch.where(inputs["mask"], -torch.log(complement), 0.0)


def gkd(inputs, options):
    """By token: TRL leaves the vocabulary's terms unsummed."""
    divergence = GKDTrainer.generalized_jsd_loss(
        inputs["student_logits"],
        inputs["teacher_logits"].detach(),
        beta=options["beta"],
        temperature=options.get("temperature", 1.0),
        reduction="none",
    )
    return torch.where(inputs["mask"], divergence.sum(-1), 0.0)


REFERENCES = {
    "cross_entropy_loss": cross_entropy,
    "dft_loss": dft,
    "unlikelihood_loss": unlikelihood,
    "forward_kl_loss": lambda i, o: gkd(i, o | {"beta": 0}),
    "reverse_kl_loss": lambda i, o: gkd(i, o | {"beta": 1}),
    "generalized_jsd_loss": gkd,
}
