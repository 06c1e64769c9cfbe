"""Losses on comparisons and on labelled completions, and what modifies them."""

import numpy as np

from tests.losses.cases.case import Arrays, B, Case, T, V, logps, ragged_mask

FOUR = ("policy_chosen_logps", "policy_rejected_logps", "ref_chosen_logps", "ref_rejected_logps")
MEANS = ("chosen_mean_logps", "rejected_mean_logps")


def four(rng) -> Arrays:
    """Summed log-probs of policy and reference; about ten nats, a few nats apart."""
    base = logps(rng, B, scale=10.0), logps(rng, B, scale=10.0)
    return {
        "policy_chosen_logps": base[0] + logps(rng, B),
        "policy_rejected_logps": base[1] + logps(rng, B),
        "ref_chosen_logps": base[0] + logps(rng, B),
        "ref_rejected_logps": base[1] + logps(rng, B),
    }


def mixed(rng) -> Arrays:
    """Summed log-probs of which policy and reference rank the rows differently."""
    return {name: logps(rng, B, scale=3.0) for name in FOUR}


def labelled(rng) -> Arrays:
    """Summed log-probs of completions of either label; the first two rows show both."""
    base = logps(rng, B, scale=10.0)
    desirable = rng.random(B) < 0.5
    desirable[:2] = True, False
    return {
        "policy_logps": base + logps(rng, B),
        "ref_logps": base + logps(rng, B),
        "desirable": desirable,
    }


def mismatched(rng) -> Arrays:
    """Log-probs of which the policy's are higher on average, and a mask of rows."""
    base = logps(rng, B, scale=10.0)
    mask = rng.random(B) < 0.7
    mask[0] = True
    return {"policy_logps": base + 1 + logps(rng, B), "ref_logps": base + logps(rng, B), "mask": mask}


def means(rng) -> Arrays:
    """Log-probs a token, about a nat."""
    return {name: logps(rng, B) for name in MEANS}


def tokens(rng, *, gaps: bool = True) -> Arrays:
    """Log-probs of tokens with their mask."""
    return {"logps": logps(rng, B, T), "mask": ragged_mask(rng, gaps=gaps)}


def pair(function: str, reference: str, *, wrong=None, inputs=four, **more) -> Case:
    """A loss of the four log-probs, of which only the policy's get a gradient."""
    return Case(
        function=function,
        inputs=inputs,
        grads=FOUR[:2],
        extreme=FOUR[:2],
        reference=reference,
        wrong={"beta": (0.0, -1.0), **(wrong or {})},
        **more,
    )


def unreferenced(function: str, reference: str, *, inputs=means, names=MEANS, wrong=None, **more) -> Case:
    """A loss of two log-probs of the policy."""
    return Case(
        function=function,
        inputs=inputs,
        grads=names,
        extreme=names,
        reference=reference,
        wrong={"beta": (0.0, -1.0), **(wrong or {})},
        **more,
    )


def single(function: str, reference: str, *, wrong=None, inputs=labelled, **more) -> Case:
    """A loss of completions that each have a label."""
    return Case(
        function=function,
        inputs=inputs,
        grads=("policy_logps",),
        extreme=("policy_logps",),
        reference=reference,
        wrong={
            "beta": (0.0, -1.0),
            "desirable_weight": (-1.0,),
            "undesirable_weight": (-0.5,),
            **(wrong or {}),
        },
        **more,
    )


def aot_statistics(arrays: Arrays, rows: slice):
    """What rows of a batch are compared with: found over the whole batch."""
    import jax.numpy as jnp

    from jaxalign.losses import rank_matched

    a = {name: jnp.asarray(x) for name, x in arrays.items()}
    policy = a["policy_chosen_logps"] - a["policy_rejected_logps"]
    return {"matched": rank_matched(policy, a["ref_chosen_logps"] - a["ref_rejected_logps"])[rows]}


def aot_unpaired_statistics(arrays: Arrays, rows: slice):
    """The same of the two sides."""
    import jax.numpy as jnp

    from jaxalign.losses import rank_matched

    a = {name: jnp.asarray(x) for name, x in arrays.items()}
    chosen = a["policy_chosen_logps"] - a["ref_chosen_logps"]
    rejected = a["policy_rejected_logps"] - a["ref_rejected_logps"]
    return {
        "matched_rejected": rank_matched(chosen, rejected)[rows],
        "matched_chosen": rank_matched(rejected, chosen)[rows],
    }


def aot_matched(rng) -> Arrays:
    """Four log-probs and margins of other rows to compare with."""
    return four(rng) | {"matched": np.asarray(rng.standard_normal(B), np.float32)}


def aot_unpaired_matched(rng) -> Arrays:
    """Four log-probs and log-ratios of other rows to compare with."""
    arrays = four(rng)
    for name in ("matched_rejected", "matched_chosen"):
        arrays[name] = np.asarray(rng.standard_normal(B), np.float32)
    return arrays


def bco_weighted(rng) -> Arrays:
    """Labelled completions with a weight each where undesirable."""
    return labelled(rng) | {"undesirable_weight": rng.uniform(0.5, 2.0, B).astype(np.float32)}


def wpo(rng) -> Arrays:
    """Tokens with sums of squared probabilities between 1 / V and 1."""
    arrays = tokens(rng)
    return {
        "logps": arrays["logps"],
        "sum_squared_probs": rng.uniform(1 / V, 1, (B, T)).astype(np.float32),
        "mask": arrays["mask"],
    }


def ld(rng) -> Arrays:
    """Tokens with the length of the shorter completion, which may be that of the row or more."""
    return tokens(rng) | {"shared_length": rng.integers(0, T, B).astype(np.int32)}


TRL = "TRL 1.16.0 `DPOTrainer._compute_loss`"
CPO = "TRL 1.16.0 `CPOTrainer.cpo_loss`"
KTO = "TRL 1.16.0 `KTOTrainer._compute_loss`"
BCO = "TRL 1.13.0 `BCOTrainer.bco_loss`"
SMOOTHING = {"label_smoothing": (-0.1, 0.5, 0.7)}
AOT = f"{TRL}, aot, row by row with ranks found in float64; the mean is TRL's of the whole batch"
AOT_UNPAIRED = (
    f"{TRL}, aot_unpaired, row by row with ranks found in float64; the mean and its gradient are TRL's of the"
    " whole batch"
)

DIRECT = [
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
    pair(
        "ipo_loss",
        f"{CPO}, ipo, of the log-ratios; equal to {TRL}, ipo, where the log-probs are means a token",
        options={"beta": 0.3},
    ),
    pair("hinge_loss", f"{TRL}, hinge", options={"beta": 0.3}),
    *[
        pair(
            "f_divergence_dpo_loss",
            f"{TRL}, sigmoid, f_divergence_type {name}",
            options={"beta": 0.3, "divergence": divergence} | more,
        )
        for divergence, name, more in [
            ("reverse_kl", "reverse_kl", {}),
            ("forward_kl", "forward_kl", {}),
            ("js", "js_divergence", {}),
            ("alpha", "alpha_divergence", {}),
            ("alpha", "alpha_divergence", {"alpha": 0.999}),
            ("alpha", "alpha_divergence", {"alpha": 1.0}),
            ("alpha", "alpha_divergence", {"alpha": 1.5}),
        ]
    ],
]

PAIRED = [
    pair(
        "exo_loss",
        f"{TRL}, exo_pair",
        options={"beta": 0.3, "label_smoothing": 0.1},
        wrong={"label_smoothing": (0.0, -0.1, 0.5)},
    ),
    pair("exo_loss", f"{TRL}, exo_pair", options={"beta": 0.3, "label_smoothing": 1e-3}),
    pair("nca_loss", f"{TRL}, nca_pair", options={"beta": 0.3}),
    pair("bco_pair_loss", f"{TRL}, bco_pair", options={"beta": 0.3}),
    pair("bco_pair_loss", BCO, options={"beta": 0.3, "delta": 0.4}),
    pair("sppo_loss", f"{TRL}, sppo_hard", options={"beta": 0.3}),
    pair("apo_zero_loss", f"{TRL}, apo_zero", options={"beta": 0.3}),
    pair("apo_down_loss", f"{TRL}, apo_down", options={"beta": 0.3}),
    pair("discopop_loss", f"{TRL}, discopop", options={"beta": 0.3}, wrong={"tau": (0.0, -0.1)}),
    pair("discopop_loss", f"{TRL}, discopop", options={"beta": 0.3, "tau": 1.5}),
    pair(
        "aot_loss",
        AOT,
        options={"beta": 0.3},
        inputs=mixed,
        coupled=True,
        statistics=aot_statistics,
        wrong=SMOOTHING,
    ),
    pair(
        "aot_loss",
        AOT,
        options={"beta": 0.3, "label_smoothing": 0.2},
        inputs=mixed,
        coupled=True,
        statistics=aot_statistics,
    ),
    pair("aot_loss", f"{TRL}, aot, row by row", inputs=aot_matched, options={"beta": 0.3}),
    pair(
        "aot_unpaired_loss",
        AOT_UNPAIRED,
        options={"beta": 0.3},
        inputs=mixed,
        coupled=True,
        statistics=aot_unpaired_statistics,
        wrong=SMOOTHING,
    ),
    pair(
        "aot_unpaired_loss",
        AOT_UNPAIRED,
        options={"beta": 0.3, "label_smoothing": 0.2},
        inputs=mixed,
        coupled=True,
        statistics=aot_unpaired_statistics,
    ),
    pair(
        "aot_unpaired_loss",
        f"{TRL}, aot_unpaired, row by row",
        inputs=aot_unpaired_matched,
        options={"beta": 0.3},
    ),
    Case(
        function="rank_matched",
        inputs=lambda rng: {"values": logps(rng, B), "targets": logps(rng, B)},
        grads=(),
        coupled=True,
        reference="float64 derivation",
    ),
]

REFERENCE_FREE = [
    unreferenced(
        "cpo_loss",
        f"{CPO}, sigmoid",
        inputs=lambda rng: {name: logps(rng, B, scale=10.0) for name in FOUR[:2]},
        names=FOUR[:2],
        options=options,
        wrong=SMOOTHING,
    )
    for options in ({"beta": 0.1}, {"beta": 0.1, "label_smoothing": 0.2})
]
REFERENCE_FREE += [
    unreferenced(
        "simpo_loss", f"{CPO}, simpo", options={"beta": 2.0, "gamma": 0.5}, wrong={"gamma": (-0.5,)}
    ),
    *[
        unreferenced(
            "alphapo_loss",
            f"{CPO}, simpo, alpha",
            options={"beta": 2.0, "gamma": 0.5, "alpha": alpha},
            wrong={"gamma": (-0.5,)},
        )
        for alpha in (0.25, -0.5, 0.0)
    ],
    unreferenced("orpo_loss", "TRL 1.16.0 `ORPOTrainer.odds_ratio_loss`", options={"beta": 0.1}),
]

LABELLED = [
    single("kto_loss", f"{KTO}, kto", options={"beta": 0.3, "kl": 0.7}, wrong={"kl": (-0.1,)}),
    single(
        "kto_loss",
        f"{KTO}, kto",
        options={"beta": 0.3, "kl": 0.0, "desirable_weight": 1.3, "undesirable_weight": 0.6},
    ),
    Case(
        function="kto_kl",
        inputs=mismatched,
        grads=(),
        coupled=True,
        reference=f"{KTO}, its metric `kl` of the counted rows",
    ),
    single("apo_zero_unpaired_loss", f"{KTO}, apo_zero_unpaired", options={"beta": 0.3}),
    single(
        "apo_zero_unpaired_loss",
        f"{KTO}, apo_zero_unpaired",
        options={"beta": 0.3, "desirable_weight": 1.3, "undesirable_weight": 0.6},
    ),
    single("bco_loss", BCO, options={"beta": 0.3, "delta": 0.4}),
    Case(
        function="bco_loss",
        inputs=bco_weighted,
        grads=("policy_logps",),
        extreme=("policy_logps",),
        options={"beta": 0.3, "delta": -0.2},
        wrong={"beta": (0.0, -1.0), "desirable_weight": (-1.0,)},
        reference=f"{BCO}, match_underlying_distribution",
    ),
]

MODIFIERS = [
    Case(function="wpo_weights", inputs=wpo, grads=(), mask="mask", reference=f"{TRL}, use_weighting"),
    Case(
        function="length_desensitized_logps",
        inputs=ld,
        grads=("logps",),
        mask="mask",
        extreme=("logps",),
        options={"alpha": 0.4},
        wrong={"alpha": (-0.1, 1.1)},
        reference=f"{TRL}, ld_alpha",
    ),
    Case(
        function="sft_loss",
        inputs=tokens,
        grads=("logps",),
        mask="mask",
        extreme=("logps",),
        reference=f"{TRL}, sft, token by token",
    ),
]

CASES = [*DIRECT, *PAIRED, *REFERENCE_FREE, *LABELLED, *MODIFIERS]
