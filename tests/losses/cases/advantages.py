"""Advantages."""

import numpy as np

from tests.losses.cases.case import Arrays, B, Case, T, logps, normal, ragged_mask

TRL = "TRL 1.16.0 `GRPOTrainer._generate_and_score_completions`"
KINDS = 3
GROUPS = {"group_size": (1, 0, 3)}


def steps(rng, *, gaps: bool) -> Arrays:
    return {"rewards": normal(rng, B, T), "values": normal(rng, B, T), "mask": ragged_mask(rng, gaps=gaps)}


def rewards(rng) -> Arrays:
    return {"rewards": normal(rng, B)}


def counted(rng) -> Arrays:
    """One of the rewards in either half does not count."""
    mask = np.ones(B, bool)
    mask[[1, 6]] = False
    return rewards(rng) | {"mask": mask}


def columns(rng) -> Arrays:
    return {"rewards": normal(rng, B, T), "mask": ragged_mask(rng, gaps=True)}


def process(rng) -> Arrays:
    """Step rewards of ragged rows; a step may end at a token that does not count."""
    return columns(rng) | {"steps": rng.uniform(size=(B, T)) < 0.5}


def kinds(rng) -> Arrays:
    """Several rewards, of which one does not apply to a row, and one row has none."""
    mask = np.ones((B, KINDS), bool)
    mask[1] = False
    mask[4, 2] = False
    weights = np.asarray([1.0, 0.5, 2.0], np.float32)
    return {"rewards": normal(rng, B, KINDS), "mask": mask, "weights": weights}


def kl(rng) -> Arrays:
    old = logps(rng, B, T)
    return {
        "rewards": normal(rng, B),
        "old_logps": old,
        "ref_logps": old + normal(rng, B, T, scale=0.5),
        "mask": ragged_mask(rng, gaps=True),
    }


def moments(x: np.ndarray, mask: np.ndarray, *, ddof: int = 1) -> tuple[float, float]:
    """Mean and variance of what counts."""
    x = x[mask].astype(np.float64)
    return float(x.mean()), float(x.var(ddof=ddof))


def centred_groups(arrays: Arrays, size: int) -> np.ndarray:
    mask = arrays["mask"].reshape(-1, size)
    x = np.where(mask, arrays["rewards"].reshape(-1, size), 0.0).astype(np.float64)
    return np.where(mask, x - x.sum(1, keepdims=True) / mask.sum(1, keepdims=True), 0.0).reshape(-1)


def group(function: str, trl: str, inputs=counted, **more) -> Case:
    """Advantages of groups of rows."""
    return Case(
        function=function,
        inputs=inputs,
        grads=(),
        reference=trl,
        **{"mask": "mask", "padded": False, "integers": ("rewards",), "wrong": GROUPS} | more,
    )


def gae(reference: str, inputs, *, gaps: bool, **more) -> Case:
    return Case(
        function="generalized_advantage_estimation",
        inputs=inputs,
        grads=(),
        mask="mask",
        contiguous=not gaps,
        integers=("rewards",),
        wrong={"gamma": (-0.1, 1.1), "lam": (-0.1, 1.1)},
        reference=reference,
        **more,
    )


def whiten(trl: str, *, ddof: int = 1, **options) -> Case:
    def whole(arrays: Arrays, _) -> dict[str, float]:
        mean, variance = moments(arrays["x"], arrays["mask"], ddof=ddof)
        return {"mean": mean, "variance": variance}

    return Case(
        function="whiten",
        inputs=lambda rng: {"x": 3 + 2 * normal(rng, B, T), "mask": ragged_mask(rng, gaps=True)},
        options=options,
        grads=("x",),
        mask="mask",
        integers=("x",),
        coupled=True,
        statistics=whole,
        reference=trl,
    )


def whole_batch(arrays: Arrays, _) -> dict[str, float]:
    mean, variance = moments(arrays["rewards"], arrays["mask"])
    return {"mean": mean, "std": variance**0.5}


def deviation(arrays: Arrays, _) -> dict[str, float]:
    return {"std": whole_batch(arrays, _)["std"]}


def whole_baseline(arrays: Arrays, _) -> dict[str, float]:
    mean, variance = moments(centred_groups(arrays, 4), arrays["mask"])
    return {"mean": mean, "std": variance**0.5}


def signal(arrays: Arrays, _) -> dict[str, float]:
    del arrays
    return {"alpha": 2.0}


def one_group_alike(rng) -> Arrays:
    """The second group's counted rewards are equal: 3 of 6 rows have a signal, so that alpha is 2."""
    arrays = counted(rng)
    arrays["rewards"][4:] = 1.0
    return arrays


CASES = [
    *[
        gae(
            "TRL 0.11.4 `PPOTrainer.compute_advantages`",
            lambda rng: steps(rng, gaps=False),
            gaps=False,
            options={"gamma": 0.9, "lam": 0.8},
            pick=part,
        )
        for part in (0, 1)
    ],
    gae(
        "float64 derivation",
        lambda rng: steps(rng, gaps=True) | {"bootstrap_values": normal(rng, B)},
        gaps=True,
        options={"gamma": 0.95, "lam": 0.7},
        pick=0,
    ),
    whiten("TRL 0.11.4 `masked_whiten`"),
    whiten("TRL 0.11.4 `masked_whiten`", shift_mean=False),
    whiten("TRL 0.11.4 `masked_whiten`, `masked_var` biased", ddof=0, unbiased=False),
    Case(
        function="global_batch_advantages",
        inputs=counted,
        grads=(),
        mask="mask",
        padded=False,
        integers=("rewards",),
        coupled=True,
        statistics=whole_batch,
        wrong={"epsilon": (-1e-4,)},
        reference="TRL 1.16.0 `RLOOTrainer._generate_and_score_completions`, normalize_advantages",
    ),
    group(
        "group_advantages",
        f"{TRL}, group",
        options={"group_size": 4},
        wrong=GROUPS | {"epsilon": (-1e-4,)},
    ),
    group(
        "group_advantages",
        f"{TRL}, batch",
        options={"group_size": 4, "scale": "batch"},
        coupled=True,
        statistics=deviation,
    ),
    group(
        "group_advantages",
        f"{TRL}, none",
        columns,
        options={"group_size": 2, "scale": "none"},
        given="rewards a token",
        padded=True,
    ),
    group(
        "leave_one_out_advantages",
        "TRL 1.16.0 `RLOOTrainer._generate_and_score_completions`",
        options={"group_size": 4},
    ),
    group(
        "process_group_advantages",
        "float64 derivation",
        process,
        options={"group_size": 4},
        padded=True,
        wrong=GROUPS | {"epsilon": (-1e-4,)},
    ),
    group(
        "gpg_advantages",
        "float64 derivation",
        one_group_alike,
        options={"group_size": 4},
        coupled=True,
        statistics=signal,
        wrong=GROUPS | {"alpha": (-1.0,)},
    ),
    group(
        "reinforce_plus_plus_baseline_advantages",
        "float64 derivation",
        options={"group_size": 4},
        coupled=True,
        statistics=whole_baseline,
        wrong=GROUPS | {"epsilon": (-1e-4,)},
    ),
    group(
        "gdpo_advantages",
        f"{TRL}, normalize_then_sum",
        kinds,
        options={"group_size": 4},
        shared=("weights",),
        coupled=True,
        wrong=GROUPS | {"epsilon": (-1e-4,)},
    ),
    group(
        "gdpo_advantages",
        "float64 derivation",
        kinds,
        options={"group_size": 4, "normalize": False},
        shared=("weights",),
    ),
    *[
        Case(
            function="reinforce_plus_plus_advantages",
            inputs=kl,
            options=options,
            grads=(),
            mask="mask",
            extreme=("old_logps", "ref_logps"),
            integers=("rewards",),
            coupled="normalize" not in options,
            wrong={"beta": (-0.1,), "gamma": (-0.1, 1.1)},
            reference="float64 derivation",
        )
        for options in ({"beta": 0.2}, {"beta": 0.2, "gamma": 0.9, "normalize": False})
    ],
    Case(
        function="remax_advantages",
        inputs=lambda rng: counted(rng) | {"greedy_rewards": normal(rng, B)},
        grads=(),
        mask="mask",
        padded=False,
        integers=("rewards", "greedy_rewards"),
        reference="float64 derivation",
    ),
]
