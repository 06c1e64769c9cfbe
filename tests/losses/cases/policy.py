"""Policy-gradient losses, KL estimators, weights of tokens, and reductions."""

import numpy as np

from tests.losses.cases.case import Arrays, B, Case, T, logps, normal, ragged_mask

GRPO = "TRL 1.16.0 `GRPOTrainer._compute_loss`"
SCORING = "TRL 1.16.0 `GRPOTrainer._generate_and_score_completions`"
CLIPS = {"clip_low": (-0.1, 1.5), "clip_high": (-0.1,)}
DUAL = CLIPS | {"dual_clip": (1.0, 0.5)}


def policies(rng) -> Arrays:
    """A policy and the one that sampled, a fifth of a nat apart, so that either side is clipped."""
    new = logps(rng, B, T)
    return {
        "logps": new,
        "old_logps": new + normal(rng, B, T, scale=0.3),
        "mask": ragged_mask(rng, gaps=True),
    }


def rows(rng) -> Arrays:
    """With one advantage a row."""
    return policies(rng) | {"advantages": normal(rng, B)}


def tokens(rng) -> Arrays:
    """With one advantage a token."""
    return policies(rng) | {"advantages": normal(rng, B, T)}


def reference(rng) -> Arrays:
    """With a frozen reference."""
    arrays = rows(rng)
    return arrays | {"ref_logps": arrays["logps"] + normal(rng, B, T, scale=0.5)}


def weighted(rng) -> Arrays:
    """With a frozen reference and a weight a token."""
    return reference(rng) | {"weights": rng.uniform(0, 2, (B, T)).astype(np.float32)}


def pair(rng) -> Arrays:
    arrays = policies(rng)
    return {"logps": arrays["logps"], "ref_logps": arrays["old_logps"], "mask": arrays["mask"]}


def samplers(rng) -> Arrays:
    arrays = policies(rng)
    return {"old_logps": arrays["logps"], "sampling_logps": arrays["old_logps"], "mask": arrays["mask"]}


def moved(rng) -> Arrays:
    arrays = rows(rng)
    arrays["sampling_logps"] = arrays.pop("old_logps")
    return arrays


def critic(rng) -> Arrays:
    old = normal(rng, B, T)
    return {
        "values": old + normal(rng, B, T, scale=0.5),
        "old_values": old,
        "returns": normal(rng, B, T),
        "mask": ragged_mask(rng, gaps=True),
    }


def numbers(rng) -> Arrays:
    return {"x": normal(rng, B, T), "mask": ragged_mask(rng, gaps=True)}


def tokens_in_all(arrays: Arrays, _) -> dict[str, float]:
    return {"count": float(arrays["mask"].sum())}


def rows_in_all(arrays: Arrays, _) -> dict[str, float]:
    return {"count": float(arrays["mask"].any(1).sum())}


def policy(function: str, trl: str, inputs=rows, **more) -> Case:
    """A loss of a policy and the one that sampled."""
    defaults = {"grads": ("logps",), "extreme": ("logps", "old_logps"), "integers": ("advantages",)}
    return Case(
        function=function,
        inputs=inputs,
        reference=trl,
        mask="mask",
        **defaults | {"wrong": CLIPS} | more,
    )


def kl(estimator: str, trl: str) -> Case:
    return Case(
        function="kl_penalty",
        inputs=pair,
        options={"estimator": estimator},
        grads=("logps",),
        mask="mask",
        extreme=("logps", "ref_logps"),
        reference=trl,
    )


def weights(level: str, mode: str, **options) -> Case:
    return Case(
        function="importance_weights",
        inputs=samplers,
        options={"level": level, "mode": mode} | options,
        grads=(),
        mask="mask",
        extreme=("old_logps", "sampling_logps"),
        wrong={"cap": (0.0, -1.0), "floor": (-0.1, 9.0)},
        reference=f"{SCORING}, {level}_{mode}",
    )


def reduction(function: str, trl: str, count, **more) -> Case:
    return Case(
        function=function,
        inputs=numbers,
        grads=("x",),
        mask="mask",
        coupled=True,
        statistics=count,
        reference=trl,
        **more,
    )


CASES = [
    kl("k1", "TRL 0.11.4 `PPOTrainer._kl_penalty`, kl"),
    kl("k2", "TRL 0.11.4 `PPOTrainer._kl_penalty`, mse"),
    kl("k3", f"{GRPO}, the KL alone"),
    kl("abs", "TRL 0.11.4 `PPOTrainer._kl_penalty`, abs"),
    *[
        Case(
            function=function,
            inputs=lambda rng: {
                "logps": logps(rng, B, T),
                "advantages": normal(rng, B, T),
                "mask": ragged_mask(rng, gaps=True),
            },
            grads=("logps",),
            mask="mask",
            extreme=("logps",),
            integers=("advantages",),
            reference="float64 derivation",
        )
        for function in ("reinforce_loss", "gpg_loss")
    ],
    policy("ppo_policy_loss", "TRL 0.11.4 `PPOTrainer.loss`", tokens, wrong=DUAL),
    policy(
        "ppo_policy_loss",
        f"{GRPO}, grpo with delta",
        tokens,
        options={"clip_low": 0.1, "clip_high": 0.28, "dual_clip": 1.4},
        wrong=DUAL,
    ),
    *[
        Case(
            function="ppo_value_loss",
            inputs=critic,
            options=options,
            grads=("values",),
            mask="mask",
            wrong={"clip": (0.0, -0.2)},
            integers=("returns",),
            reference="TRL 0.11.4 `PPOTrainer.loss`",
        )
        for options in ({}, {"clip": 0.2})
    ],
    policy("grpo_loss", f"{GRPO}, grpo", wrong=DUAL),
    policy(
        "grpo_loss",
        f"{GRPO}, grpo",
        reference,
        options={"beta": 0.3},
        extreme=("logps", "old_logps", "ref_logps"),
        wrong=DUAL | {"beta": (-0.1,)},
    ),
    policy(
        "grpo_loss",
        f"{GRPO}, grpo with delta, the KL corrected, importance ratios",
        weighted,
        given="weights",
        options={"clip_low": 0.1, "clip_high": 0.28, "dual_clip": 1.4, "beta": 0.3, "correct_kl": True},
        extreme=("logps", "old_logps", "ref_logps"),
    ),
    policy(
        "grpo_loss", f"{GRPO}, sequence level", options={"importance_level": "sequence", "clip_high": 0.1}
    ),
    policy(
        "grpo_loss",
        "TRL 1.12.0 `gspo_token.GRPOTrainer._compute_loss`",
        tokens,
        given="advantages a token",
        options={"importance_level": "sequence_token", "clip_low": 0.1, "clip_high": 0.1},
    ),
    policy("bnpo_loss", f"{GRPO}, bnpo", coupled=True),
    policy("dapo_loss", f"{GRPO}, dapo", coupled=True, statistics=tokens_in_all),
    policy(
        "dr_grpo_loss",
        f"{GRPO}, dr_grpo",
        options={"length": 9.0},
        coupled=True,
        statistics=rows_in_all,
        wrong=CLIPS | {"length": (0.0, -3.0)},
    ),
    policy(
        "gspo_loss",
        f"{GRPO}, sequence level",
        reference,
        options={"clip_low": 0.05, "clip_high": 0.06, "beta": 0.3, "correct_kl": True},
        extreme=("logps", "old_logps", "ref_logps"),
    ),
    policy("cispo_loss", f"{GRPO}, cispo", options={"cap": 1.1}, wrong={"cap": (0.0, -1.0)}),
    policy(
        "cispo_loss",
        f"{GRPO}, cispo at sequence level",
        options={"cap": 0.9, "importance_level": "sequence"},
        wrong={},
    ),
    policy(
        "gmpo_loss",
        "TRL 1.16.0 `GMPOTrainer._compute_loss`",
        options={"clip_low": 0.2, "clip_high": 0.3},
        wrong={"clip_low": (-0.1,), "clip_high": (-0.1,)},
    ),
    policy("rloo_loss", "TRL 1.16.0 `RLOOTrainer._compute_loss`", options={"clip_high": 0.3}),
    weights("token", "truncate", cap=1.2, floor=0.8),
    weights("token", "mask", cap=1.2, floor=0.8),
    weights("sequence", "truncate", cap=1.2),
    weights("sequence", "mask", cap=1.2),
    Case(
        function="off_policy_weights",
        inputs=moved,
        options={"threshold": 0.02},
        grads=(),
        mask="mask",
        extreme=("logps", "sampling_logps"),
        integers=("advantages",),
        wrong={"threshold": (-0.1,)},
        reference="TRL 1.16.0 `GRPOTrainer.get_off_policy_mask`",
    ),
    Case(
        function="entropy_bonus",
        inputs=lambda rng: {"entropy": -logps(rng, B, T), "mask": ragged_mask(rng, gaps=True)},
        options={"coefficient": 0.01},
        grads=("entropy",),
        mask="mask",
        reference="float64 derivation",
    ),
    Case(
        function="overlong_penalty",
        inputs=lambda rng: {"lengths": rng.permutation(np.arange(8, 8 + B)).astype(np.int32)},
        options={"max_length": 13.0, "buffer": 4.0},
        grads=(),
        wrong={"max_length": (0.0,), "buffer": (0.0, 14.0), "penalty": (-1.0,)},
        reference="TRL 1.16.0 `get_soft_overlong_punishment`",
    ),
    reduction("token_mean", f"{GRPO}, bnpo's denominator", tokens_in_all),
    reduction("sequence_mean", f"{GRPO}, grpo's denominator", rows_in_all),
    reduction(
        "fixed_length_mean",
        f"{GRPO}, dr_grpo's denominator",
        rows_in_all,
        options={"length": 9.0},
        wrong={"length": (0.0, -3.0)},
    ),
]
