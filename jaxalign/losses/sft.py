"""Negative log-likelihood of given log-probs."""

from jaxtyping import Array, Float, Shaped

from jaxalign.arrays import check_rank, check_shapes, float32
from jaxalign.masking import as_mask, masked


def sft_loss(logps: Float[Array, "B T"], mask: Shaped[Array, "B T"] | None = None) -> Float[Array, "B T"]:
    """Negative log-likelihood per token: the term that RPO, CPO and ORPO add for the chosen completion.

    loss = -logps

    The methods differ in how they reduce it: `token_mean(sft_loss(logps, mask), mask)` is the term of TRL's
    DPO and CPO trainers, `sequence_mean` that of RPO, which divides each completion by its own length.
    `cross_entropy_loss` computes the same from logits, with label smoothing.

    Args:
      logps: log-probs of the chosen completion's tokens, nats.
      mask: tokens that contribute; None for all.

    Returns:
      float32 nats, unreduced; 0 where masked.

    Raises:
      AssertionError: shapes differ.

    Source: RPO: arXiv:2404.19733.
    """
    check_rank(2, logps=logps)
    check_shapes(logps=logps, mask=mask)
    return -masked(float32(logps), as_mask(mask, logps))
