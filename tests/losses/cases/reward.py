"""Losses of reward models, and what is made of their scores."""

import numpy as np

from tests.losses.cases.case import Arrays, B, Case, K, T, normal, ragged_mask


def pairs(rng) -> Arrays:
    return {"chosen_rewards": normal(rng, B, scale=2.0), "rejected_rewards": normal(rng, B, scale=2.0)}


def pairs_with_margin(rng) -> Arrays:
    return pairs(rng) | {"margin": np.abs(normal(rng, B))}


def best(rng) -> Arrays:
    return {"rewards": normal(rng, B, K, scale=2.0), "best": rng.integers(0, K, B).astype(np.int32)}


def ranking(rng) -> Arrays:
    order = rng.permuted(np.tile(np.arange(K, dtype=np.int32), (B, 1)), axis=1)
    return {"rewards": normal(rng, B, K, scale=2.0), "ranking": order}


def partial_ranking(rng) -> Arrays:
    """Rankings of two to K candidates; what stands at the other places is no index."""
    arrays = ranking(rng)
    mask = np.arange(K) < rng.integers(2, K + 1, (B, 1))
    return arrays | {"ranking": np.where(mask, arrays["ranking"], np.int32(-7)), "mask": mask}


def objectives(rng) -> Arrays:
    """Scores of several objectives, some of them not labelled; T stands for their number."""
    return {
        "rewards": normal(rng, B, T, scale=2.0),
        "targets": normal(rng, B, T, scale=2.0),
        "mask": ragged_mask(rng, gaps=True),
    }


def soft_labels(rng) -> Arrays:
    return {"rewards": normal(rng, B, scale=2.0), "labels": rng.uniform(size=B).astype(np.float32)}


def steps(rng) -> Arrays:
    return {
        "logits": normal(rng, B, T, scale=2.0),
        "labels": rng.integers(0, 2, (B, T)).astype(np.int32),
        "mask": ragged_mask(rng, gaps=True),
    }


def ensemble(rng) -> Arrays:
    """Members, not completions, are the rows here."""
    return {"rewards": normal(rng, B, K)}


def weighted(rng) -> Arrays:
    return {"rewards": normal(rng, B, K), "weights": normal(rng, B, K)}


def bradley_terry(reference: str, inputs, integers, **options) -> Case:
    return Case(
        function="bradley_terry_loss",
        inputs=inputs,
        options=options,
        grads=("chosen_rewards", "rejected_rewards"),
        extreme=("chosen_rewards", "rejected_rewards"),
        integers=integers,
        wrong={
            "temperature": (0.0, -1.0),
            "label_smoothing": (-0.1, 0.6),
            "center_coefficient": (-0.1,),
        },
        reference=reference,
    )


def of_scores(function: str, reference: str, inputs, **more) -> Case:
    """A loss of `rewards` alone, which may be integers."""
    return Case(
        function=function,
        inputs=inputs,
        grads=more.pop("grads", ("rewards",)),
        integers=more.pop("integers", ("rewards",)),
        extreme=more.pop("extreme", ("rewards",)),
        reference=reference,
        **more,
    )


def aggregate(reference: str, **options) -> Case:
    return of_scores(
        "aggregate_ensemble",
        reference,
        ensemble,
        options=options,
        coupled=True,
        wrong={"coefficient": (-0.1,)},
    )


TRL = "TRL 1.16.0 `RewardTrainer.compute_loss`"
SCORES = ("chosen_rewards", "rejected_rewards")
ERROR = {"integers": ("rewards", "targets"), "mask": "mask", "wrong": {"huber_delta": (0.0, -1.0)}}
TOP = {"top": (0,)}

CASES = [
    bradley_terry(TRL, pairs, SCORES),
    bradley_terry(
        f"{TRL}, margin and centring", pairs_with_margin, (*SCORES, "margin"), center_coefficient=0.01
    ),
    bradley_terry(
        "TRL 1.16.0 `CPOTrainer.cpo_loss`, simpo, of the scores",
        pairs,
        SCORES,
        margin=0.3,
        temperature=2.0,
        label_smoothing=0.1,
    ),
    of_scores("best_of_n_loss", "float64 `torch.nn.functional.cross_entropy`", best),
    of_scores("plackett_luce_loss", "float64 derivation", ranking, wrong=TOP),
    of_scores("plackett_luce_loss", "float64 derivation", partial_ranking, options={"top": 2}, wrong=TOP),
    of_scores("reward_regression_loss", "float64 `torch.nn.functional.mse_loss`", objectives, **ERROR),
    of_scores(
        "reward_regression_loss",
        "float64 `torch.nn.functional.huber_loss`, twice",
        objectives,
        options={"huber_delta": 1.5},
        **ERROR,
    ),
    of_scores(
        "reward_bce_loss",
        "float64 `torch.nn.functional.binary_cross_entropy_with_logits`",
        soft_labels,
        integers=("rewards", "labels"),
    ),
    of_scores(
        "process_reward_loss",
        "`ForTokenClassification` of transformers (the loss of TRL 1.13.0 `PRMTrainer`), logits (0, z)",
        steps,
        grads=("logits",),
        integers=("logits",),
        extreme=("logits",),
        mask="mask",
    ),
    aggregate("float64 derivation", mode="mean"),
    aggregate("float64 derivation", mode="mean_minus_std", coefficient=0.5),
    aggregate("float64 derivation", mode="worst"),
    of_scores("ensemble_disagreement", "float64 `torch.std`, correction 0", ensemble, coupled=True),
    of_scores(
        "combine_objectives",
        "float64 derivation",
        weighted,
        grads=("rewards", "weights"),
        integers=("rewards", "weights"),
    ),
]
