"""TRL's preference losses, as functions of given log-probs."""

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from trl.experimental.cpo.cpo_trainer import CPOTrainer
from trl.experimental.orpo.orpo_trainer import ORPOTrainer
from trl.trainer.dpo_trainer import DPOTrainer

from tests.golden.references import labelled
from tests.golden.references.trl_stubs import Accelerator, Metrics, Wide, function_of

FOUR = ("policy_chosen_logps", "policy_rejected_logps", "ref_chosen_logps", "ref_rejected_logps")


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
    return loss(trainer, *(inputs[name] for name in FOUR), loss_type="sigmoid")[0]


def cpo(kind: str, chosen, rejected, options):
    """[B] losses by `CPOTrainer.cpo_loss`, which has no reference: log-ratios stand in for log-probs."""
    trainer = SimpleNamespace(
        accelerator=Accelerator(),
        loss_type=kind,
        beta=options["beta"],
        label_smoothing=options.get("label_smoothing", 0.0),
        simpo_gamma=options.get("gamma", 0.0),
        alpha=options.get("alpha", 0.0),
    )
    return CPOTrainer.cpo_loss(trainer, chosen, rejected)[0]


def ratios(inputs):
    return (
        inputs["policy_chosen_logps"] - inputs["ref_chosen_logps"],
        inputs["policy_rejected_logps"] - inputs["ref_rejected_logps"],
    )


def ipo(inputs, options):
    """Two of TRL's: of log-ratios as they are, and of sums that the trainer divides by three tokens each."""
    plain = cpo("ipo", *ratios(inputs), options)
    ones = torch.ones(len(plain), 3)
    sums = {name: 3 * x for name, x in inputs.items() if name.startswith("ref")}
    tokens = {side: inputs[f"policy_{side}_logps"][:, None] * ones for side in ("chosen", "rejected")}
    means = dpo_trainer("ipo", sums, options, token_logps=tokens, mask={"chosen": ones, "rejected": ones})
    torch.testing.assert_close(means, plain, rtol=1e-12, atol=1e-12)
    return plain


def f_divergence(inputs, options):
    name = {"js": "js_divergence", "alpha": "alpha_divergence"}.get(
        options["divergence"], options["divergence"]
    )
    wide = {name: x.as_subclass(Wide) for name, x in inputs.items()}
    settings = {"f_divergence_type": name, "f_alpha_divergence_coef": options.get("alpha", 0.5)}
    return dpo_trainer("sigmoid", wide, options, **settings).as_subclass(torch.Tensor)


def exo(inputs, options):
    # The trainer makes a tensor of the smoothing, in the default dtype.
    torch.set_default_dtype(torch.float64)
    try:
        return dpo_trainer("exo_pair", inputs, options)
    finally:
        torch.set_default_dtype(torch.float32)


def bco_pair(inputs, options):
    """TRL's pair form where nothing is shifted, else the two terms of its BCO trainer."""
    if not options.get("delta"):
        return dpo_trainer("bco_pair", inputs, options)
    both = labelled.bco_trainer(*(inputs[name] for name in FOUR), options)
    return both[: len(both) // 2] + both[len(both) // 2 :]


def orpo(inputs, options):
    """The term is subtracted from the likelihood there."""
    wide = (inputs[f"{side}_mean_logps"].as_subclass(Wide) for side in ("chosen", "rejected"))
    trainer = SimpleNamespace(beta=options["beta"], accelerator=Accelerator())
    return -ORPOTrainer.odds_ratio_loss(trainer, *wide)[0].as_subclass(torch.Tensor)


def of_rank(values, targets):
    """For each value the target of its rank, by counting; without gradient."""
    ranks = [int((values < x).sum() + (values[:i] == x).sum()) for i, x in enumerate(values)]
    return targets.sort().values[ranks].detach()


def aot(inputs, options):
    """Each row against the reference margin of its rank; the mean is that of TRL's own sorting."""
    options = dict(options)
    matched = inputs.get("matched")
    given = matched is not None
    if not given:
        matched = of_rank(
            inputs["policy_chosen_logps"] - inputs["policy_rejected_logps"],
            inputs["ref_chosen_logps"] - inputs["ref_rejected_logps"],
        )
    rows = dpo_trainer(
        "aot",
        inputs | {"ref_chosen_logps": matched, "ref_rejected_logps": torch.zeros_like(matched)},
        options,
    )
    if not given:
        _same_mean(rows, _dpo_batch("aot", inputs, options, slice(None), None, None, {}), inputs)
    return rows


def aot_unpaired(inputs, options):
    """Each side against the other's log-ratio of its rank; mean and gradient are those of TRL's own sorting."""
    chosen, rejected = ratios(inputs)
    given = "matched_rejected" in inputs
    if given:
        for_chosen, for_rejected = inputs["matched_rejected"], inputs["matched_chosen"]
    else:
        for_chosen, for_rejected = of_rank(chosen, rejected), of_rank(rejected, chosen)
    zeros = torch.zeros_like(chosen)

    def compare(first, second):
        return dpo_trainer(
            "aot_unpaired", dict(zip(FOUR, (first, second, zeros, zeros), strict=True)), options
        )

    up, down = compare(chosen, for_chosen), compare(for_rejected, rejected)
    # Half of either value; the gradient that is left out of one comes from the row of the other.
    rows = up + down - 0.5 * (up + down).detach()
    if not given:
        _same_mean(rows, _dpo_batch("aot_unpaired", inputs, options, slice(None), None, None, {}), inputs)
    return rows


def _same_mean(rows, whole, inputs):
    """Fails where the rows' mean, or its gradient, is not that of TRL's whole batch."""
    policy = [inputs[name] for name in FOUR[:2]]
    ours, theirs = (torch.autograd.grad(x, policy, retain_graph=True) for x in (rows.mean(), whole))
    torch.testing.assert_close((rows.mean(), *ours), (whole, *theirs), rtol=1e-12, atol=1e-12)


def wpo(inputs, options):
    """The factor that weighting puts on a pair whose rejected completion has weight 1."""
    mask = inputs["mask"]
    flat = torch.zeros_like(inputs["logps"])
    zeros = flat.sum(1)
    likely = inputs["sum_squared_probs"].log()
    plain, weighted = (
        torch.stack(
            [
                _dpo_batch(
                    "sigmoid",
                    {"ref_chosen_logps": zeros, "ref_rejected_logps": zeros},
                    options,
                    slice(i, i + 1),
                    {"chosen": inputs["logps"], "rejected": flat},
                    {"chosen": mask, "rejected": mask},
                    {"use_weighting": on, "log_sum_sq_probs": torch.stack([likely[i], flat[i]])},
                )
                for i in range(len(mask))
            ]
        )
        for on in (False, True)
    )
    return weighted / plain


def length_desensitized(inputs, options):
    """Read off the hinge 1 - (chosen - rejected) of a rejected completion of log-prob 0 and the shared length."""
    mask = inputs["mask"]
    shared = torch.arange(mask.shape[1]) < inputs["shared_length"][:, None]
    zeros = torch.zeros(len(mask), dtype=torch.float64)
    hinge = dpo_trainer(
        "hinge",
        {"ref_chosen_logps": zeros, "ref_rejected_logps": zeros},
        {},
        token_logps={"chosen": inputs["logps"], "rejected": torch.zeros_like(inputs["logps"])},
        mask={"chosen": mask, "rejected": shared},
        ld_alpha=options["alpha"],
    )
    return 1 - hinge


def sft(inputs, options):
    """Each counted token as a completion of its own."""
    mask = inputs["mask"]
    alone = inputs["logps"][mask][:, None]
    zeros, ones = torch.zeros(len(alone), dtype=torch.float64), torch.ones(len(alone), 1)
    losses = dpo_trainer(
        "sft",
        {"ref_chosen_logps": zeros, "ref_rejected_logps": zeros},
        options,
        token_logps={"chosen": alone, "rejected": alone},
        mask={"chosen": ones, "rejected": ones},
    )
    return torch.zeros(mask.shape, dtype=torch.float64).masked_scatter(mask, losses)


def _dpo(kind):
    return lambda inputs, options: dpo_trainer(kind, inputs, options)


def _mean_cpo(kind):
    return lambda i, o: cpo(kind, i["chosen_mean_logps"], i["rejected_mean_logps"], o)


REFERENCES = {
    "dpo_loss": conservative,
    "robust_dpo_loss": _dpo("robust"),
    "ipo_loss": ipo,
    "hinge_loss": _dpo("hinge"),
    "f_divergence_dpo_loss": f_divergence,
    "exo_loss": exo,
    "nca_loss": _dpo("nca_pair"),
    "bco_pair_loss": bco_pair,
    "sppo_loss": _dpo("sppo_hard"),
    "apo_zero_loss": _dpo("apo_zero"),
    "apo_down_loss": _dpo("apo_down"),
    "discopop_loss": _dpo("discopop"),
    "aot_loss": aot,
    "aot_unpaired_loss": aot_unpaired,
    "rank_matched": lambda i, o: of_rank(i["values"], i["targets"]),
    "cpo_loss": lambda i, o: cpo("sigmoid", i["policy_chosen_logps"], i["policy_rejected_logps"], o),
    "simpo_loss": _mean_cpo("simpo"),
    "alphapo_loss": _mean_cpo("simpo"),
    "orpo_loss": orpo,
    "wpo_weights": wpo,
    "length_desensitized_logps": length_desensitized,
    "sft_loss": sft,
} | labelled.REFERENCES
