"""TRL's losses of completions that each have a label."""

from collections import defaultdict
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from trl.trainer.kto_trainer import KTOTrainer

from tests.golden.references.trl_stubs import Accelerator, function_of


def kto_trainer(kind: str, policy, ref, desirable, options, *, kl_logps, ref_kl_logps):
    """(mean loss, metrics) of `KTOTrainer._compute_loss`; each completion is one token after a prompt token."""
    mask = torch.tensor([[0, 1]]).expand(len(policy), 2)
    per_token = policy[:, None]
    zeros = torch.zeros_like(per_token)
    metrics = defaultdict(lambda: defaultdict(list))
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=False),
        accelerator=Accelerator(),
        aux_loss_enabled=False,
        precompute_ref_logps=True,
        calculate_KL=True,
        loss_type=kind,
        beta=options.get("beta", 1.0),
        desirable_weight=options.get("desirable_weight", 1.0),
        undesirable_weight=options.get("undesirable_weight", 1.0),
        _compute_kl_logps=lambda model, batch: kl_logps,
        _metrics=metrics,
        _total_train_tokens=0,
    )
    batch = {
        "input_ids": torch.zeros_like(mask),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
        "label": desirable,
        "ref_logps": ref,
        "ref_KL_logps": ref_kl_logps,
    }

    def model(**_):
        return SimpleNamespace(log_probs=per_token, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())

    return KTOTrainer._compute_loss(trainer, model, batch, False), metrics["eval"]


def kto(kind: str):
    """[B] losses: each row is a batch of one, given the KL of the whole."""

    def reference(inputs, options):
        policy, ref, desirable = (inputs[name] for name in ("policy_logps", "ref_logps", "desirable"))
        kl = torch.full((1,), options.get("kl", 0.0), dtype=torch.float64)
        rows = [slice(i, i + 1) for i in range(len(policy))]
        return torch.stack(
            [
                kto_trainer(
                    kind,
                    policy[i],
                    ref[i],
                    desirable[i],
                    options,
                    kl_logps=kl,
                    ref_kl_logps=torch.zeros_like(kl),
                )[0]
                for i in rows
            ]
        )

    return reference


def kto_kl(inputs, options):
    """The estimate that the trainer logs."""
    policy, ref = (inputs[name][inputs["mask"]] for name in ("policy_logps", "ref_logps"))
    labels = torch.ones(len(policy), dtype=torch.bool)
    _, metrics = kto_trainer("kto", policy, ref, labels, options, kl_logps=policy, ref_kl_logps=ref)
    return torch.tensor(metrics["kl"][0], dtype=torch.float64)


def bco_trainer(chosen, rejected, ref_chosen, ref_rejected, options, rejected_weight=None):
    """Losses of the chosen, then of the rejected, by `BCOTrainer.bco_loss` with a running mean that stands still."""
    loss = function_of("1.13.0", "experimental/bco/bco_trainer.py", "bco_loss", {"torch": torch, "F": F})
    trainer = SimpleNamespace(
        beta=options["beta"],
        running=SimpleNamespace(mean=options["delta"]),
        match_underlying_distribution=rejected_weight is not None,
        _get_udm_weight=lambda embeddings: rejected_weight,
    )
    return loss(trainer, chosen, rejected, ref_chosen, ref_rejected, None, None, do_train=False)[0]


def bco(inputs, options):
    """[B] losses, put back in the order of the rows."""
    good = inputs["desirable"]
    policy, ref, weight = inputs["policy_logps"], inputs["ref_logps"], inputs.get("undesirable_weight")
    both = bco_trainer(
        policy[good],
        policy[~good],
        ref[good],
        ref[~good],
        options,
        rejected_weight=None if weight is None else weight[~good],
    )
    number = int(good.sum())
    zeros = torch.zeros_like(policy)
    return zeros.masked_scatter(good, both[:number]) + zeros.masked_scatter(~good, both[number:])


REFERENCES = {
    "kto_loss": kto("kto"),
    "kto_kl": kto_kl,
    "apo_zero_unpaired_loss": kto("apo_zero_unpaired"),
    "bco_loss": bco,
}
