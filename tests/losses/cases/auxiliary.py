"""Auxiliary losses."""

import numpy as np

from tests.losses.cases.case import Arrays, B, Case, D, normal


def pairs(rng) -> Arrays:
    """Positives that lie near their anchors."""
    anchors = normal(rng, B, D)
    return {"anchors": anchors, "positives": anchors + normal(rng, B, D)}


def pairs_and_negatives(rng) -> Arrays:
    return pairs(rng) | {"negatives": normal(rng, 3, D)}


def other_rows(arrays: Arrays, rows: slice):
    """The positives that a part of the batch does not have, and the negatives of all."""
    others = np.delete(arrays["positives"], np.arange(B)[rows], axis=0)
    return {"negatives": np.concatenate([others, arrays.get("negatives", others[:0])])}


def info_nce(inputs, grads, **options) -> Case:
    return Case(
        function="info_nce_loss",
        inputs=inputs,
        options=options,
        grads=grads,
        shared=("negatives",),
        coupled=True,
        statistics=other_rows,
        wrong={"temperature": (0.0, -1.0)},
        reference="float64 `torch.nn.functional.cross_entropy` of `normalize`d rows",
    )


CASES = [
    info_nce(pairs, ("anchors", "positives")),
    info_nce(pairs_and_negatives, ("anchors", "positives", "negatives"), temperature=0.2),
]
