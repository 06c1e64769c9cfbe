"""How alike two texts are in meaning: greedy matching of their tokens' embeddings, as BERTScore does it."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from jaxalign import models
from jaxalign.buckets import width_bucket
from jaxalign.errors import DataError
from jaxalign.models.layers import Params


@dataclass(frozen=True, kw_only=True)
class Matching:
    """A greedy matching of two texts.

    Attributes:
      precision: mean similarity of a candidate's token with the reference's most similar one.
      recall: mean similarity of a reference's token with the candidate's most similar one.
      f1: their harmonic mean; 0 unless both are positive.
    """

    precision: float
    recall: float
    f1: float


def greedy_matching(
    candidate: np.ndarray,
    reference: np.ndarray,
    *,
    candidate_weights: np.ndarray | None = None,
    reference_weights: np.ndarray | None = None,
) -> Matching:
    """Precision, recall and F1 of the cosine similarities of tokens.

    S_ij = cos(reference_i, candidate_j)
    recall    = sum_i w_i max_j S_ij / sum_i w_i        over the reference's tokens
    precision = sum_j v_j max_i S_ij / sum_j v_j        over the candidate's tokens
    f1        = 2 precision recall / (precision + recall)

    Args:
      candidate: [T, D], embeddings of the candidate's tokens, of any length; a vector of zeros is similar to none (0).
      reference: [S, D], likewise.
      candidate_weights: v, [T], not negative (`idf_weights`); equal when None, and where they sum to 0.
      reference_weights: w, [S], likewise.

    Returns:
      similarities in [-1, 1]; all 0 where a text has no token.

    Raises:
      ValueError: incompatible shapes, negative weights, or a number that is not finite.

    Source: arXiv:1904.09675, eq. 1-3 (R, P, F), and its importance weighting.
    """
    x, y = (np.asarray(array, np.float64) for array in (candidate, reference))
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"expected [T, D] and [S, D], got {x.shape} and {y.shape}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("an embedding is not finite")
    v, w = _weights(candidate_weights, len(x)), _weights(reference_weights, len(y))
    if not len(x) or not len(y):
        return Matching(precision=0.0, recall=0.0, f1=0.0)
    similarity = _unit(y) @ _unit(x).T
    recall = float(np.average(similarity.max(1), weights=w))
    precision = float(np.average(similarity.max(0), weights=v))
    positive = precision > 0 and recall > 0
    f1 = 2 * precision * recall / (precision + recall) if positive else 0.0
    return Matching(precision=precision, recall=recall, f1=f1)


def _unit(vectors: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(norms > 0, norms, 1.0)


def _weights(weights: np.ndarray | None, count: int) -> np.ndarray:
    if weights is None:
        return np.ones(count)
    array = np.asarray(weights, np.float64)
    if array.shape != (count,) or not (array >= 0).all() or not np.isfinite(array).all():
        raise ValueError(f"expected {count} weights, finite and not negative, got shape {array.shape}")
    return array if array.sum() > 0 else np.ones(count)


def idf_weights(references: Sequence[Sequence[int]]) -> Callable[[Sequence[int]], np.ndarray]:
    """Inverse document frequencies: rare tokens count more.

    idf(token) = log((M + 1) / (texts with the token + 1)), M texts; log(M + 1) for a token that none has

    Args:
      references: token ids of each reference of the whole test set.

    Returns:
      token ids -> weights, float64 of the same length.

    Source: arXiv:1904.09675, "Importance Weighting"; plus-one smoothing as in its code.
    """
    texts = Counter(token for row in references for token in {*map(int, row)})
    count = len(references)

    def weights(ids: Sequence[int]) -> np.ndarray:
        return np.asarray([math.log((count + 1) / (texts[int(token)] + 1)) for token in ids], np.float64)

    return weights


@dataclass(frozen=True, eq=False)
class TokenEmbeddings:
    """The tokens of a text.

    Attributes:
      ids: int32 [T].
      vectors: float32 [T, D].
    """

    ids: np.ndarray
    vectors: np.ndarray


def token_embeddings(
    model: models.Transformer, tokenizer: Any, texts: Sequence[str], *, batch_size: int = 32
) -> list[TokenEmbeddings]:
    """Hidden states of each text's tokens: a causal model's, after the last layer and norm.

    BERTScore takes a bidirectional encoder. Here a token sees only what stands before it, so similarities tell less and
    are all rather high: compare systems on one model, never figures of two models.

    Args:
      model: a causal language model; a mesh it may have is used as it is.
      tokenizer: its Hugging Face tokenizer. The special tokens that it puts around a text are seen by the model, and
        left out of what is returned.
      texts: any number; an empty one has no tokens.
      batch_size: rows a forward pass, which are texts of similar length, padded to a bucket.

    Returns:
      one for each text, in order.

    Raises:
      DataError: a text that is longer than the model's context.
      ValueError: a batch size below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
    limit = model.config.max_positions
    rows, kept = [], []
    for number, text in enumerate(texts):
        encoded = tokenizer(text, return_special_tokens_mask=True)
        rows.append(np.asarray(encoded["input_ids"], np.int32))
        kept.append(np.asarray(encoded["special_tokens_mask"], bool) ^ True)
        if len(rows[-1]) > limit:
            raise DataError(f"text {number}: {len(rows[-1])} tokens, but the model takes at most {limit}")
    definition, params = models.split(model)
    empty = np.zeros((0, model.config.hidden_size), np.float32)
    found = [TokenEmbeddings(row[:0], empty) for row in rows]
    order = sorted((i for i, row in enumerate(rows) if len(row)), key=lambda i: len(rows[i]))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        width = min(width_bucket(len(rows[batch[-1]])), limit)
        # Filler rows keep the shape, so that one program serves all batches of a width.
        tokens, lengths = np.zeros((batch_size, width), np.int32), np.ones(batch_size, np.int32)
        for place, i in enumerate(batch):
            tokens[place, : len(rows[i])], lengths[place] = rows[i], len(rows[i])
        states = np.asarray(_hidden(definition, params, tokens, lengths), np.float32)
        for place, i in enumerate(batch):
            found[i] = TokenEmbeddings(rows[i][kept[i]], states[place, : len(rows[i])][kept[i]])
    return found


@partial(jax.jit, static_argnums=0)
def _hidden(
    definition: models.Definition, params: Params, tokens: jax.Array, lengths: jax.Array
) -> jax.Array:
    return models.merge(definition, params).hidden(tokens, lengths=lengths)
