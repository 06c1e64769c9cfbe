"""A reward model as a reward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import models
from jaxalign.errors import UserError
from jaxalign.models.heads import HeadConfig
from jaxalign.rewards import ModelReward, RewardRequest


@pytest.fixture(scope="module")
def scalar(tiny_model_folder):
    model = models.load_pretrained(tiny_model_folder)
    return models.create_scalar_model(model, HeadConfig(init_std=1.0), key=jax.random.key(1))


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


def test_a_model_that_knows_fewer_tokens_than_the_policy_is_refused(scalar):
    with pytest.raises(UserError, match=r"its vocabulary has 259 tokens, the policy's 300; .* tokenizer"):
        ModelReward(scalar, vocabulary=300)
