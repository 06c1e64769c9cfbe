"""TRL's preference losses, as functions of given log-probs."""

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from trl.experimental.cpo.cpo_trainer import CPOTrainer
from trl.trainer.dpo_trainer import DPOTrainer

from tests.golden.references.trl_stubs import Accelerator, Metrics, function_of


def dpo_trainer(kind: str, inputs, options, *, token_logps=None, mask=None, **settings):
    """[B] losses by `DPOTrainer._compute_loss`, row by row: it returns a mean, so each row is a batch of one.

    The policy's summed log-prob is given as that of one completion token, unless `token_logps`
    {"chosen", "rejected"} [B, T] are given with their masks.
    """
    rows = len(inputs["ref_chosen_logps"])
    return torch.stack(
        [_dpo_batch(kind, inputs, options, slice(i, i + 1), token_logps, mask, settings) for i in range(rows)]
    )


def _dpo_batch(kind, inputs, options, rows, token_logps, mask, settings):
    if token_logps is None:
        chosen, rejected = (
            inputs["policy_chosen_logps"][rows, None],
            inputs["policy_rejected_logps"][rows, None],
        )
        counted = torch.ones(2 * len(chosen), 1, dtype=torch.long)
        per_token = torch.cat([chosen, rejected])
    else:
        per_token = torch.cat([token_logps["chosen"][rows], token_logps["rejected"][rows]])
        counted = torch.cat([mask["chosen"][rows], mask["rejected"][rows]]).long()
    # A prompt token in front: TRL shifts the mask by one.
    completion_mask = torch.cat([torch.zeros(len(counted), 1, dtype=torch.long), counted], dim=1)
    zeros = torch.zeros_like(per_token)

    def model(**_):
        return SimpleNamespace(
            log_probs=per_token * counted,
            entropy=zeros,
            log_sum_sq_probs=settings.get("log_sum_sq_probs", zeros),
            mean_logits=zeros,
            is_top1=zeros.bool(),
            label_mask=counted.bool(),
        )

    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=Accelerator(),
        aux_loss_enabled=False,
        ld_alpha=settings.get("ld_alpha"),
        precompute_ref_logps=True,
        f_divergence_type=settings.get("f_divergence_type", "reverse_kl"),
        f_alpha_divergence_coef=settings.get("f_alpha_divergence_coef", 1.0),
        loss_types=[kind],
        loss_weights=[1.0],
        beta=options.get("beta", 1.0),
        label_smoothing=options.get("label_smoothing", 0.0),
        use_weighting=settings.get("use_weighting", False),
        args=SimpleNamespace(discopop_tau=options.get("tau", 0.05), gradient_checkpointing_kwargs=None),
        _metrics={"train": Metrics(inner=True)},
        _total_train_tokens=0,
        _tp_size=1,
    )
    batch = {
        "input_ids": torch.zeros_like(completion_mask),
        "attention_mask": torch.ones_like(completion_mask),
        "completion_mask": completion_mask,
        "ref_chosen_logps": inputs["ref_chosen_logps"][rows],
        "ref_rejected_logps": inputs["ref_rejected_logps"][rows],
    }
    return DPOTrainer._compute_loss(trainer, model, batch, False)


def conservative(inputs, options):
    """`DPOTrainer.dpo_loss` of the last release that smoothed labels."""
    if not options.get("label_smoothing"):
        return dpo_trainer("sigmoid", inputs, options)
    loss = function_of(
        "0.28.0",
        "trainer/dpo_trainer.py",
        "dpo_loss",
        {
            "torch": torch,
            "F": F,
            "FDivergenceType": SimpleNamespace(
                JS_DIVERGENCE=SimpleNamespace(value="js"), ALPHA_DIVERGENCE=SimpleNamespace(value="alpha")
            ),
        },
    )
    trainer = SimpleNamespace(
        accelerator=Accelerator(),
        reference_free=False,
        f_divergence_type=SimpleNamespace(value="reverse_kl"),
        beta=options["beta"],
        label_smoothing=options["label_smoothing"],
    )
    four = [
        inputs[n]
        for n in ("policy_chosen_logps", "policy_rejected_logps", "ref_chosen_logps", "ref_rejected_logps")
    ]
    return loss(trainer, *four, loss_type="sigmoid")[0]


def cpo(kind: str, chosen, rejected, options, **settings):
    """[B] losses by `CPOTrainer.cpo_loss`, which has no reference: log-ratios stand in for log-probs."""
    trainer = SimpleNamespace(
        accelerator=Accelerator(),
        loss_type=kind,
        beta=options["beta"],
        label_smoothing=options.get("label_smoothing", 0.0),
        simpo_gamma=options.get("gamma", 0.0),
        alpha=options.get("alpha", 0.0),
        **settings,
    )
    return CPOTrainer.cpo_loss(trainer, chosen, rejected)[0]


def ratios(inputs):
    return (
        inputs["policy_chosen_logps"] - inputs["ref_chosen_logps"],
        inputs["policy_rejected_logps"] - inputs["ref_rejected_logps"],
    )


REFERENCES = {
    "dpo_loss": conservative,
    "robust_dpo_loss": lambda i, o: dpo_trainer("robust", i, o),
    "ipo_loss": lambda i, o: cpo("ipo", *ratios(i), o),
    "hinge_loss": lambda i, o: dpo_trainer("hinge", i, o),
}
