"""From log-probs under two instructions to rewards: the rule by itself."""

from dataclasses import replace

import numpy as np
import pytest

from jaxalign.errors import ConfigError
from jaxalign.llmdoctor import token_reward_rule
from jaxalign.llmdoctor.token_reward_config import TokenRewardConfig
from jaxalign.llmdoctor.token_reward_rule import reward_facts, rewarded
from jaxalign.llmdoctor.token_reward_store import FaceScores

CONFIG = TokenRewardConfig(epsilon=0.0)


def scores(*responses):
    """Responses, chosen and rejected by turns; each a list of positive minus negative log-prob."""
    offsets = np.cumsum([0, *map(len, responses)])
    difference = np.asarray([x for response in responses for x in response], np.float32)
    tokens = np.arange(len(difference), dtype=np.int32)
    negative = np.full(len(difference), -4.0, np.float32)
    return FaceScores(offsets, tokens, negative + difference, negative, np.zeros(len(responses) // 2, bool))


NONE = scores()
CONTROLS = ("shuffled", "even", "labels")
# Means of |difference| 1, 2 and 0.5, 1 nats.
TWO_PAIRS = scores([1, 0, 2, -1], [2, -3, 1], [0.5, -0.5], [1, -1, -1])


def test_rewards_by_hand():
    train, _, _ = rewarded(TWO_PAIRS, NONE, replace(CONFIG, threshold=0.8))
    importance = np.tanh([1, 0, 2, 1, 1, 1.5, 0.5, 1, 1, 1, 1, 1])
    np.testing.assert_allclose(train.importance, importance, rtol=1e-6)
    signs = np.repeat([1, -1, 1, -1], [4, 3, 2, 3])
    np.testing.assert_allclose(train.rewards, np.where(importance > 0.8, signs * importance, 0), rtol=1e-6)


def test_equal_faces_have_no_reward():
    train, _, _ = rewarded(scores([0, 0], [0]), NONE, replace(CONFIG, threshold=0.0))
    np.testing.assert_array_equal(train.rewards, 0)
    assert reward_facts(train, train, 0.0, CONFIG)["agreement"] == 0.5


@pytest.mark.parametrize("scale", [-1.0, 100.0])
def test_importance_is_of_no_scale_and_no_sign(scale):
    base, _, _ = rewarded(TWO_PAIRS, NONE, CONFIG)
    scaled = replace(
        TWO_PAIRS, positive_logps=-4 + scale * (TWO_PAIRS.positive_logps - TWO_PAIRS.negative_logps)
    )
    found, _, _ = rewarded(scaled, NONE, CONFIG)
    np.testing.assert_allclose(found.importance, base.importance, rtol=1e-5)


def test_the_floor_takes_all_rewards_of_a_response():
    train, _, _ = rewarded(TWO_PAIRS, NONE, replace(CONFIG, min_mean_delta=1.0))
    facts = reward_facts(train, train, 0.5, replace(CONFIG, min_mean_delta=1.0))
    assert (train.kept == [[3, 2], [0, 3]]).all()
    assert facts["floored_responses"] == 1
    assert facts["zero_responses"] == 1
    assert facts["zero_rows"] == 0


def test_signed_rewards_ask_the_difference_to_agree_with_the_label():
    train, _, _ = rewarded(TWO_PAIRS, NONE, replace(CONFIG, signed=True))
    expected = [True, False, True, False, False, True, False, True, False, False, True, True]
    np.testing.assert_array_equal(train.rewards != 0, expected)
    plain, _, _ = rewarded(TWO_PAIRS, NONE, CONFIG)
    np.testing.assert_array_equal(train.rewards[expected], plain.rewards[expected])


@pytest.mark.parametrize("share", [0.05, 0.3, 1.0])
def test_a_quantile_keeps_that_share_of_the_training_tokens(share):
    draw = np.random.default_rng(0)
    train, held_out = (scores(*draw.standard_normal((40, 10))) for _ in range(2))
    found, other, threshold = rewarded(train, held_out, replace(CONFIG, quantile=share))
    assert (found.rewards != 0).sum() == share * 400
    # Held-out tokens go by the threshold that was found.
    np.testing.assert_array_equal(other.rewards != 0, other.importance > threshold)
    assert 0 <= threshold < 1


def test_a_quantile_counts_what_floor_and_sign_leave():
    draw = np.random.default_rng(0)
    train = scores(*draw.standard_normal((40, 10)))
    found, _, _ = rewarded(train, NONE, replace(CONFIG, quantile=0.2, signed=True))
    assert (found.rewards != 0).sum() == 80


def test_a_quantile_keeps_tokens_that_share_the_largest_importance():
    # 32 tokens with one far above the mean: tanh rounds to 1.
    train = scores(*[[40.0, *[0.01] * 31]] * 4)
    found, _, _ = rewarded(train, NONE, replace(CONFIG, quantile=0.01))
    assert (found.rewards != 0).sum() == 4


def test_controls_keep_the_rewards_of_a_response_but_not_their_places():
    rng = np.random.default_rng(0)
    split = scores(*(rng.normal(size=size) for size in (30, 20, 25, 35)))
    base, _, _ = rewarded(split, split, CONFIG)
    found = {name: rewarded(split, split, replace(CONFIG, placement=name))[:2] for name in CONTROLS}
    by_response = {name: np.split(x.rewards, split.offsets[1:-1]) for name, (x, _) in found.items()}
    whole = np.split(base.rewards, split.offsets[1:-1])
    mean = np.mean([abs(x.sum()) for x in whole])
    for number, before in enumerate(whole):
        shuffled, even, labels = (by_response[name][number] for name in CONTROLS)
        assert (shuffled != before).any()
        np.testing.assert_array_equal(np.sort(shuffled), np.sort(before))
        np.testing.assert_allclose(even, before.sum() / len(before), rtol=1e-5)
        np.testing.assert_allclose(labels, (mean, -mean)[number % 2] / len(before), rtol=1e-5)
    for train, validation in found.values():
        np.testing.assert_array_equal(train.rewards, validation.rewards)


def test_chunks_change_nothing(monkeypatch):
    whole = rewarded(TWO_PAIRS, TWO_PAIRS, CONFIG)
    monkeypatch.setattr(token_reward_rule, "CHUNK", 2)
    parts = rewarded(TWO_PAIRS, TWO_PAIRS, CONFIG)
    for one, other in zip(whole[:2], parts[:2], strict=True):
        np.testing.assert_array_equal(one.rewards, other.rewards)
        np.testing.assert_array_equal(one.importance, other.importance)


def test_facts_by_hand():
    config = replace(CONFIG, threshold=0.8)
    train, validation, threshold = rewarded(TWO_PAIRS, NONE, config)
    facts = reward_facts(train, validation, threshold, config)
    assert facts["rows"] == 2
    assert facts["validation_rows"] == 0
    assert facts["tokens"] == 12
    assert facts["kept_fraction"] == 2 / 12
    assert facts["mean_delta"] == pytest.approx(14 / 12)
    # Sums of the differences: 2 against 0, and 0 against -1.
    assert facts["agreement"] == 1.0
    assert facts["zero_rows"] == 1
    assert facts["zero_responses"] == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positive": "a"}, "both or none"),
        ({"dimension": "kindness"}, "no instructions are shipped for 'kindness'"),
        ({"temperature": 0.0}, "rewards.temperature"),
        ({"epsilon": -1e-9}, "rewards.epsilon"),
        ({"threshold": 1.0}, "rewards.threshold"),
        ({"quantile": 1.1}, "rewards.quantile"),
        ({"min_mean_delta": -0.1}, "rewards.min_mean_delta"),
        ({"batch_size": 0}, "rewards.batch_size"),
    ],
)
def test_settings_out_of_range_name_their_key(change, message):
    with pytest.raises(ValueError, match=message):
        TokenRewardConfig(**change)


def test_identical_instructions_are_refused():
    with pytest.raises(ConfigError, match=r"^rewards.positive, rewards.negative: .* are the same"):
        TokenRewardConfig(positive="Be kind.", negative="Be  kind.\n")
