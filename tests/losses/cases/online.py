"""Online preference losses."""

import numpy as np

from tests.losses.cases.case import Arrays, B, Case, logps
from tests.losses.cases.preference import FOUR, four


def nash_md(rng) -> Arrays:
    """Summed log-probs of the policy's samples, and the chance that each is preferred."""
    base = logps(rng, B, scale=10.0)
    return {
        "policy_logps": base + logps(rng, B),
        "ref_logps": base + logps(rng, B),
        "probability": rng.random(B).astype(np.float32),
    }


def xpo(rng) -> Arrays:
    """Four log-probs, and whose sample was chosen; the first two rows show both."""
    chosen = rng.random(B) < 0.5
    chosen[:2] = True, False
    return four(rng) | {"policy_sample_chosen": chosen}


CASES: list[Case] = [
    Case(
        function="nash_md_loss",
        inputs=nash_md,
        grads=("policy_logps",),
        extreme=("policy_logps",),
        options={"beta": 0.3},
        wrong={"beta": (0.0, -1.0)},
        reference="TRL 1.13.0 `NashMDTrainer._compute_losses`, of completions of one token",
    ),
    *[
        Case(
            function="xpo_loss",
            inputs=xpo,
            grads=FOUR[:2],
            extreme=FOUR[:2],
            options={"beta": 0.3, "alpha": 0.01} | more,
            wrong={"beta": (0.0, -1.0), "alpha": (-0.01,)},
            reference=f"TRL 1.13.0 `XPOTrainer._compute_losses`, {more.get('base', 'sigmoid')}",
        )
        for more in ({}, {"base": "ipo"})
    ],
]
