"""Token rewards and flow-based losses."""

import numpy as np

from tests.losses.cases.case import Arrays, B, Case, T, logps, normal, ragged_mask


def faces(rng) -> Arrays:
    """Log-probs under two instructions; the first row's tokens do not care which."""
    positive, negative = logps(rng, B, T), logps(rng, B, T)
    negative[0] = positive[0]
    return {"positive_logps": positive, "negative_logps": negative, "mask": ragged_mask(rng, gaps=True)}


def importance(rng) -> Arrays:
    return {
        "importance": rng.uniform(size=(B, T)).astype(np.float32),
        "preferred": np.arange(B) % 2 == 0,
        "mask": ragged_mask(rng, gaps=True),
    }


def after_the_fork(rng) -> Arrays:
    return {"preferred_log_values": normal(rng, B), "rejected_log_values": normal(rng, B)}


def flow(rng) -> Arrays:
    """One run of tokens a row, the states around them, rewards of either sign."""
    return {
        "logps": logps(rng, B, T),
        "rewards": normal(rng, B, T, scale=0.5),
        "log_values": normal(rng, B, T + 1),
        "mask": ragged_mask(rng),
    }


def flow_and_reference(rng) -> Arrays:
    return flow(rng) | {"ref_logps": logps(rng, B, T)}


def cut_rows(rng) -> Arrays:
    """Every third row was cut by length."""
    return flow(rng) | {"terminated": np.arange(B) % 3 > 0}


def balance(function: str, inputs=flow, **options) -> Case:
    wrong = {
        "reward_scale": (-1.0,),
        "reference_weight": (-0.5,) if "ref_logps" in inputs(np.random.default_rng()) else (-0.5, 0.5),
        "decay": (0.0, 1.5),
        "window": (0,),
    }
    return Case(
        function=function,
        inputs=inputs,
        options=options,
        grads=("logps", "log_values"),
        mask="mask",
        time_plus_one=("log_values",),
        contiguous=True,
        integers=("rewards",),
        extreme=("logps",),
        wrong=wrong,
        reference="float64 derivation, pair by pair",
    )


FAST, DENSE = "subtrajectory_balance_loss", "subtrajectory_balance_dense"
FULL = {"reward_scale": 2.0, "reference_weight": 0.5, "decay": 0.8, "window": 3}

CASES = [
    Case(
        function="token_importance",
        inputs=faces,
        options={"temperature": 0.7},
        grads=(),
        mask="mask",
        extreme=("positive_logps", "negative_logps"),
        wrong={"temperature": (0.0, -1.0), "epsilon": (-1.0,)},
        reference="float64 derivation",
    ),
    Case(
        function="token_rewards",
        inputs=importance,
        options={"threshold": 0.4},
        grads=(),
        mask="mask",
        wrong={"threshold": (-0.1, 1.1)},
        reference="float64 derivation",
    ),
    balance(FAST),
    balance(FAST, cut_rows, reduction="sum"),
    balance(FAST, decay=0.9),
    balance(FAST, window=2, pin_terminal=False, reduction="sum"),
    balance(FAST, flow_and_reference, **FULL),
    balance(DENSE),
    balance(DENSE, flow_and_reference, **FULL),
    Case(
        function="value_discrimination_loss",
        inputs=after_the_fork,
        options={"margin": 0.5},
        grads=("preferred_log_values", "rejected_log_values"),
        extreme=("preferred_log_values", "rejected_log_values"),
        wrong={"margin": (-0.1,)},
        reference="float64 `torch.nn.functional.margin_ranking_loss`",
    ),
]
