"""A reward model as a reward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import models
from jaxalign.errors import UserError
from jaxalign.models.heads import HeadConfig
from jaxalign.rewards import ModelReward, RewardRequest
from jaxalign.rewards.model import Program, forward_of, token_scores


@pytest.fixture(scope="module")
def scalar(tiny_model_folder):
    model = models.load_pretrained(tiny_model_folder)
    return models.create_scalar_model(model, HeadConfig(init_std=1.0), key=jax.random.key(1))


@pytest.mark.long
def test_a_score_is_the_models_of_prompt_and_completion_alone(scalar):
    rows = [[1, 2, 3], [4, 5, 6, 7, 8], [9, 10], [11, 12, 13, 14]]
    request = RewardRequest(
        [""] * 4, [""] * 4, [row[:1] for row in rows], [row[1:] for row in rows], {}, width=4
    )
    # Three rows a batch: the last batch is filled up.
    scores = ModelReward(scalar, batch_size=3, pad_multiple=8).score(request).scores
    alone = [float(scalar(jnp.asarray([row]), lengths=jnp.asarray([len(row)]))[0]) for row in rows]
    np.testing.assert_allclose(scores, alone, rtol=1e-5)
    assert np.std(alone) > 0.01


@pytest.mark.long
def test_rows_are_scored_together_with_little_padding_in_few_shapes(scalar):
    definition, params = models.split(scalar)
    shapes, tokens = [], 0

    def forward(params, *rows):
        shapes.append(rows[0].shape)
        return forward_of(definition)(params, *rows)

    rng = np.random.default_rng(0)
    for count in (50, 55, 61):
        rows = [
            rng.integers(1, 200, n).tolist() for n in np.clip(rng.lognormal(2, 0.7, count), 1, 60).astype(int)
        ]
        found = token_scores(Program(forward, params), rows, batch_size=8, pad_multiple=8)
        assert [scores.shape for scores in found] == [(len(row),) for row in rows]
        tokens += sum(map(len, rows))
    assert len(set(shapes)) <= 3
    assert all(lines <= 8 for lines, _ in shapes)
    assert sum(lines * width for lines, width in shapes) < 1.4 * tokens


def test_equal_rows_have_equal_scores_bit_for_bit(scalar):
    """Completions that tie must tie: the best of them is not the one that lies best."""
    row, others = [7, 8, 9, 10, 11], [[1, 2, 3], [4] * 9, [5, 6]]
    rows = [row, others[0], row, others[1], row, others[2], row]
    scores = ModelReward(scalar, batch_size=2, pad_multiple=8).score_rows(rows)
    assert len(set(scores[::2].tolist())) == 1
    assert len(set(scores.tolist())) == 4


def test_an_empty_row_is_one_of_token_0(scalar):
    empty, zero = ModelReward(scalar).score_rows([[], [0]])
    assert empty == zero


def test_a_model_that_knows_fewer_tokens_than_the_policy_is_refused(scalar):
    with pytest.raises(UserError, match=r"its vocabulary has 259 tokens, the policy's 300; .* tokenizer"):
        ModelReward(scalar, vocabulary=300)
