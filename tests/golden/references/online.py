"""Online preference losses of TRL's last release that had them, row by row: they return means."""

from types import SimpleNamespace

import torch
import torch.nn.functional as F

from tests.golden.references.trl_stubs import function_of


def nash_md(inputs, options):
    loss = function_of(
        "1.13.0", "experimental/nash_md/nash_md_trainer.py", "_compute_losses", {"torch": torch}
    )
    names = ("policy_logps", "ref_logps", "probability")
    columns = [inputs[name][:, None] for name in names]
    trainer = SimpleNamespace(beta=options["beta"])
    return torch.stack(
        [
            loss(trainer, p, r, chance[0])[0]
            for p, r, chance in zip(*(c[:, None] for c in columns), strict=True)
        ]
    )


def xpo(inputs, options):
    loss = function_of(
        "1.13.0", "experimental/xpo/xpo_trainer.py", "_compute_losses", {"torch": torch, "F": F}
    )
    own = inputs["policy_sample_chosen"]
    chosen, rejected, ref_chosen, ref_rejected = (
        inputs[f"{who}_{side}_logps"] for who in ("policy", "ref") for side in ("chosen", "rejected")
    )
    columns = (
        torch.where(own, chosen, rejected),
        torch.where(own, rejected, chosen),
        torch.where(own, ref_rejected, ref_chosen),
        torch.where(own, ref_chosen, ref_rejected),
    )
    trainer = SimpleNamespace(
        args=SimpleNamespace(loss_type=options.get("base", "sigmoid")),
        beta=options["beta"],
        alpha=options["alpha"],
    )
    rows = [slice(i, i + 1) for i in range(len(own))]
    return torch.stack([loss(trainer, *(c[i, None] for c in columns), own[i])[0] for i in rows])


REFERENCES = {"nash_md_loss": nash_md, "xpo_loss": xpo}
