"""Losses on comparisons."""

from tests.losses.cases.case import Arrays, B, Case, logps

FOUR = ("policy_chosen_logps", "policy_rejected_logps", "ref_chosen_logps", "ref_rejected_logps")


def four(rng) -> Arrays:
    """Summed log-probs of policy and reference; about ten nats, a few nats apart."""
    base = logps(rng, B, scale=10.0), logps(rng, B, scale=10.0)
    return {
        "policy_chosen_logps": base[0] + logps(rng, B),
        "policy_rejected_logps": base[1] + logps(rng, B),
        "ref_chosen_logps": base[0] + logps(rng, B),
        "ref_rejected_logps": base[1] + logps(rng, B),
    }


def pair(function: str, reference: str, **more) -> Case:
    """A loss of the four log-probs."""
    return Case(
        function=function,
        inputs=four,
        grads=FOUR[:2],
        extreme=FOUR[:2],
        reference=reference,
        wrong={"beta": (0.0, -1.0)} | more.pop("wrong", {}),
        **more,
    )


TRL = "TRL 1.16.0 `DPOTrainer._compute_loss`"
SMOOTHING = {"label_smoothing": (-0.1, 0.5, 0.7)}

CASES = [
    pair("dpo_loss", f"{TRL}, sigmoid", options={"beta": 0.1}, wrong=SMOOTHING),
    pair(
        "dpo_loss",
        "TRL 0.28.0 `DPOTrainer.dpo_loss`, sigmoid",
        options={"beta": 0.3, "label_smoothing": 0.2},
        wrong=SMOOTHING,
    ),
    pair(
        "robust_dpo_loss",
        f"{TRL}, robust",
        options={"beta": 0.3, "label_smoothing": 0.2},
        wrong=SMOOTHING,
    ),
    pair("ipo_loss", "TRL 1.16.0 `CPOTrainer.cpo_loss`, ipo, of the log-ratios", options={"beta": 0.3}),
    pair("hinge_loss", f"{TRL}, hinge", options={"beta": 0.3}),
]
