"""Greedy matching by hand; embeddings are a model's hidden states, however they are batched."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import models
from jaxalign.errors import DataError
from jaxalign.evaluation.metrics import similarity
from jaxalign.evaluation.metrics.similarity import greedy_matching, idf_weights, token_embeddings

CONFIG = models.ModelConfig(
    vocab_size=259,
    hidden_size=16,
    intermediate_size=32,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    max_positions=40,
)
TEXTS = ["a longer text than the others", "short", "", "a second one", "ü", "x" * 40]


@pytest.fixture(scope="module")
def model():
    return models.create(CONFIG, key=jax.random.key(0))


@pytest.fixture(scope="module")
def framing_tokenizer():
    """Bytes between a `<s>` and a `</s>` that the tokenizer adds."""
    from tokenizers import Tokenizer, pre_tokenizers, processors
    from tokenizers import models as kinds
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate(letters)} | {"<s>": 256, "</s>": 257}
    fast = Tokenizer(kinds.BPE(vocab=vocabulary, merges=[]))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    fast.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 256), ("</s>", 257)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=fast, bos_token="<s>", eos_token="</s>")


def test_each_token_is_matched_with_its_most_similar_one():
    # Lengths do not matter. Angles: candidate 0 and 60 degrees, reference 0, 90 and 180.
    root = math.sqrt(3)
    candidate = np.array([[5.0, 0.0], [1.0, root]])
    reference = np.array([[0.1, 0.0], [0.0, 7.0], [-2.0, 0.0]])
    found = greedy_matching(candidate, reference)
    precision, recall = (1 + root / 2) / 2, (1 + root / 2 - 1 / 2) / 3
    assert found.precision == pytest.approx(precision)
    assert found.recall == pytest.approx(recall)
    assert found.f1 == pytest.approx(2 * precision * recall / (precision + recall))


def test_weights_weigh_the_tokens_of_their_own_text():
    candidate, reference = np.array([[1.0, 0], [0, 1]]), np.array([[1.0, 0], [-1, -1]])
    found = greedy_matching(
        candidate, reference, candidate_weights=np.array([3.0, 1.0]), reference_weights=np.array([1.0, 4.0])
    )
    assert found.precision == pytest.approx((3 * 1 + 1 * 0) / 4)
    assert found.recall == pytest.approx((1 * 1 + 4 * -math.sqrt(0.5)) / 5)
    assert found.f1 == 0  # the recall is negative
    equal = greedy_matching(candidate, reference, candidate_weights=np.zeros(2))
    assert equal.precision == greedy_matching(candidate, reference).precision == 0.5


def test_matching_is_that_of_a_loop_and_swaps_with_its_sides():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(7, 5)), rng.normal(size=(4, 5))
    cosine = [[a @ b / math.sqrt(a @ a) / math.sqrt(b @ b) for b in y] for a in x]
    found = greedy_matching(x, y)
    assert found.precision == pytest.approx(sum(max(row) for row in cosine) / 7)
    assert found.recall == pytest.approx(sum(max(row[j] for row in cosine) for j in range(4)) / 4)
    back = greedy_matching(y, x)
    assert (back.precision, back.recall) == pytest.approx((found.recall, found.precision))
    assert greedy_matching(x, x[::-1]).f1 == pytest.approx(1)


def test_an_empty_text_and_a_zero_vector_are_similar_to_nothing():
    none, some = np.zeros((0, 2)), np.ones((3, 2))
    for sides in ((none, some), (some, none), (none, none)):
        assert greedy_matching(*sides) == similarity.Matching(precision=0.0, recall=0.0, f1=0.0)
    assert greedy_matching(np.zeros((1, 2)), some).precision == 0


@pytest.mark.parametrize(
    ("candidate", "reference", "weights"),
    [
        (np.ones((2, 3)), np.ones((2, 4)), None),
        (np.ones(3), np.ones((1, 3)), None),
        (np.full((2, 3), np.nan), np.ones((2, 3)), None),
        (np.ones((2, 3)), np.ones((2, 3)), np.ones(3)),
        (np.ones((2, 3)), np.ones((2, 3)), np.array([1.0, -1.0])),
    ],
)
def test_what_cannot_be_matched_is_refused(candidate, reference, weights):
    with pytest.raises(ValueError):
        greedy_matching(candidate, reference, candidate_weights=weights)


def test_rare_tokens_weigh_more():
    weights = idf_weights([[1, 1, 2], [1, 3], [1]])
    assert weights([1, 2, 3, 9]) == pytest.approx([0, math.log(4 / 2), math.log(4 / 2), math.log(4)])


def test_embeddings_are_the_hidden_states_of_the_text_alone(model, byte_tokenizer):
    found = token_embeddings(model, byte_tokenizer, TEXTS, batch_size=4)
    for text, one in zip(TEXTS, found, strict=True):
        ids = byte_tokenizer.encode(text)
        assert one.ids.tolist() == ids
        assert one.vectors.shape == (len(ids), 16)
        assert one.vectors.dtype == np.float32
    for row in (1, 5):  # one is padded, one fills the context
        expected = jax.jit(model.hidden)(jnp.asarray([found[row].ids]))[0]
        np.testing.assert_allclose(found[row].vectors, expected, atol=1e-5)
    assert len(found[4].ids) == 2  # an umlaut has two bytes


def test_batches_change_nothing_and_share_programs(model, byte_tokenizer, compiled):
    one = token_embeddings(model, byte_tokenizer, TEXTS[:4], batch_size=1)
    compiled.clear()
    texts = ["abcdefg"[:i] for i in range(1, 8)] * 3
    many = token_embeddings(model, byte_tokenizer, [*TEXTS, *texts], batch_size=5)
    # Widths 8, 32 and 40, the model's limit.
    assert len(compiled) <= 3
    for a, b in zip(one, many[: len(one)], strict=True):
        np.testing.assert_allclose(a.vectors, b.vectors, atol=1e-5)
        np.testing.assert_array_equal(a.ids, b.ids)


def test_special_tokens_are_seen_and_not_returned(model, framing_tokenizer):
    (found,) = token_embeddings(model, framing_tokenizer, ["abc"])
    ids = framing_tokenizer.encode("abc")
    assert (ids[0], ids[-1], len(ids)) == (256, 257, 5)
    expected = jax.jit(model.hidden)(jnp.asarray([ids]))[0]
    assert found.ids.tolist() == ids[1:-1]
    np.testing.assert_allclose(found.vectors, expected[1:-1], atol=1e-5)


def test_a_text_matches_itself_best(model, byte_tokenizer):
    texts = ["the cat sat", "the cat sat", "the cat ran", "0123456789"]
    own, same, near, far = (one.vectors for one in token_embeddings(model, byte_tokenizer, texts))
    f1 = [greedy_matching(other, own).f1 for other in (same, near, far)]
    assert f1[0] == pytest.approx(1, abs=1e-6)
    assert f1[0] > f1[1] > f1[2]


def test_a_text_beyond_the_context_is_named(model, byte_tokenizer):
    with pytest.raises(DataError, match="text 1: 41 tokens, but the model takes at most 40"):
        token_embeddings(model, byte_tokenizer, ["a", "x" * 41])
    with pytest.raises(ValueError, match="batch_size"):
        token_embeddings(model, byte_tokenizer, ["a"], batch_size=0)
