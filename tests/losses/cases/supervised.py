"""Losses of demonstrations: cross-entropy, its relatives, and distillation."""

import numpy as np

from tests.losses.cases.case import Arrays, B, Case, T, V, logps, normal, ragged_mask


def predictions(rng) -> Arrays:
    """Logits, the tokens that came, and a mask with holes."""
    return {
        "logits": normal(rng, B, T, V, scale=2.0),
        "targets": rng.integers(0, V, (B, T)).astype(np.int32),
        "mask": ragged_mask(rng, gaps=True),
    }


def tokens(rng) -> Arrays:
    """Log-probs of tokens, and a mask with holes."""
    return {"logps": logps(rng, B, T), "mask": ragged_mask(rng, gaps=True)}


def two_models(rng) -> Arrays:
    """Logits of a student and a teacher that know different things."""
    return {
        "student_logits": normal(rng, B, T, V, scale=2.0),
        "teacher_logits": normal(rng, B, T, V, scale=2.0),
        "mask": ragged_mask(rng, gaps=True),
    }


def cross_entropy(reference: str, **options) -> Case:
    return Case(
        function="cross_entropy_loss",
        inputs=predictions,
        options=options,
        grads=("logits",),
        mask="mask",
        extreme=("logits",),
        wrong={"label_smoothing": (-0.1, 1.1), "z_loss": (-0.1,)},
        reference=reference,
    )


def of_tokens(function: str, reference: str) -> Case:
    return Case(
        function=function,
        inputs=tokens,
        grads=("logps",),
        mask="mask",
        extreme=("logps",),
        reference=reference,
    )


def distillation(function: str, reference: str, *, wrong=None, **options) -> Case:
    return Case(
        function=function,
        inputs=two_models,
        options=options,
        grads=("student_logits",),
        mask="mask",
        extreme=("student_logits", "teacher_logits"),
        wrong={"temperature": (0.0, -1.0)} | (wrong or {}),
        reference=reference,
    )


GKD = "TRL 1.16.0 `GKDTrainer.generalized_jsd_loss`"
BETA = {"beta": (-0.1, 1.1)}

CASES = [
    cross_entropy("float64 `torch.nn.functional.cross_entropy`"),
    cross_entropy(
        "float64 `torch.nn.functional.cross_entropy`, label_smoothing; z-loss: float64 derivation",
        label_smoothing=0.1,
        z_loss=0.01,
    ),
    of_tokens("dft_loss", "TRL 1.16.0 `SFTTrainer.compute_loss`, dft"),
    of_tokens("unlikelihood_loss", "float64 derivation"),
    distillation("forward_kl_loss", f"{GKD}, beta 0", temperature=2.0),
    distillation("reverse_kl_loss", f"{GKD}, beta 1", temperature=0.7),
    distillation("generalized_jsd_loss", GKD, wrong=BETA, beta=0.0),
    distillation("generalized_jsd_loss", GKD, wrong=BETA, beta=0.3, temperature=2.0),
    distillation("generalized_jsd_loss", GKD, wrong=BETA, beta=1.0),
]
