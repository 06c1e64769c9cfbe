"""From log-probs under two instructions to rewards: importance, floor, sign, and what is large enough."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from jaxalign import losses
from jaxalign.llmdoctor.token_reward_config import TokenRewardConfig
from jaxalign.llmdoctor.token_reward_store import FaceScores
from jaxalign.uncertainty import wilson_interval

# Responses whose rewards are made at once, an even number: chunks share one program.
CHUNK = 512


IMPORTANCE = jax.jit(losses.token_importance)
REWARDS = jax.jit(losses.token_rewards)


@dataclass(frozen=True)
class Rewarded:
    """The responses of a split with their rewards.

    Attributes:
      scores: log-probs under both instructions, in columns.
      importance, rewards: float32 [tokens], in the same order.
    """

    scores: FaceScores
    importance: np.ndarray
    rewards: np.ndarray

    @property
    def kept(self) -> np.ndarray:
        """[N, 2]: tokens with a reward in both responses of each pair."""
        return self.scores.totals(self.rewards != 0).reshape(-1, 2)


def rewarded(
    train: FaceScores, validation: FaceScores, config: TokenRewardConfig
) -> tuple[Rewarded, Rewarded, float]:
    """The rewards of both splits, and the threshold that importances had to exceed.

        r_t = sign * S_t * [S_t > threshold] * [mean D >= min_mean_delta] * [signed: sign * (l+_t - l-_t) > 0]

    with sign = +1 for chosen, -1 for rejected. A quantile is that of all tokens of the training set, those that the
    last two factors leave out counted as S = 0. `config.placement` may then deal them out otherwise.
    """
    shape = (min(CHUNK, max(len(x.lengths) for x in (train, validation))), _longest(train, validation))
    importance = partial(IMPORTANCE, temperature=config.temperature, epsilon=config.epsilon)
    found, eligible = [], []
    for scores in (train, validation):
        columns = (scores.positive_logps, scores.negative_logps)
        found.append(_by_chunks(importance, scores, shape, columns))
        eligible.append(np.where(_allowed(scores, config), found[-1], np.float32(0)))
    threshold = _threshold(eligible[0], config)
    rule = partial(REWARDS, preferred=_preferred(shape[0]), threshold=threshold)
    rewards = [
        _by_chunks(rule, scores, shape, (values,))
        for scores, values in zip((train, validation), eligible, strict=True)
    ]
    rewards = _placed(rewards, (train, validation), config)
    return Rewarded(train, found[0], rewards[0]), Rewarded(validation, found[1], rewards[1]), threshold


def _placed(
    rewards: Sequence[np.ndarray], splits: Sequence[FaceScores], config: TokenRewardConfig
) -> list[np.ndarray]:
    """Rewards as `config.placement` deals them out among the tokens of each response."""
    sums = [scores.totals(values) for scores, values in zip(splits, rewards, strict=True)]
    common = np.abs(sums[0]).mean()  # of the training responses
    placed = []
    for scores, values, total in zip(splits, rewards, sums, strict=True):
        if config.placement == "shuffled":
            # By response first, and within it at random.
            response = np.repeat(np.arange(len(scores.lengths)), scores.lengths)
            chance = np.random.default_rng(0).random(len(values))
            values = values[np.lexsort((chance, response))]
        elif config.placement != "importance":
            even = config.placement == "even"
            each = total if even else np.where(_preferred(len(total)), common, -common)
            values = np.repeat(each / scores.lengths, scores.lengths).astype(np.float32)
        placed.append(values)
    return placed


def _preferred(rows: int) -> np.ndarray:
    """bool [rows]: chosen and rejected by turns."""
    return np.arange(rows) % 2 == 0


def _longest(*splits: FaceScores) -> int:
    return int(max(np.max(scores.lengths, initial=1) for scores in splits))


def _by_chunks(
    function: Callable[..., jax.Array],
    scores: FaceScores,
    shape: tuple[int, int],
    columns: Sequence[np.ndarray],
) -> np.ndarray:
    """Columns [tokens] as padded rows of one shape through a function of them and their mask, and back."""
    parts = [np.zeros(0, np.float32)]
    for first in range(0, len(scores.lengths), shape[0]):
        lengths = scores.lengths[first : first + shape[0]]
        span = slice(scores.offsets[first], scores.offsets[first + len(lengths)])
        mask = np.zeros(shape, bool)
        mask[: len(lengths)] = np.arange(shape[1]) < lengths[:, None]
        padded = np.zeros((len(columns), *shape), np.float32)
        padded[:, mask] = [column[span] for column in columns]
        parts.append(np.asarray(function(*padded, mask=mask))[mask])
    return np.concatenate(parts)


def _allowed(scores: FaceScores, config: TokenRewardConfig) -> np.ndarray:
    """bool [tokens]: what floor and sign let have a reward."""
    difference = scores.positive_logps - scores.negative_logps
    allowed = np.repeat(_mean_deltas(scores) >= config.min_mean_delta, scores.lengths)
    if config.signed:
        preferred = np.repeat(_preferred(len(scores.lengths)), scores.lengths)
        allowed &= np.where(preferred, difference > 0, difference < 0)
    return allowed


def _mean_deltas(scores: FaceScores) -> np.ndarray:
    """float64 [2N]: mean |difference| of the faces over each response, nats."""
    return scores.totals(np.abs(scores.positive_logps - scores.negative_logps)) / scores.lengths


def _threshold(importance: np.ndarray, config: TokenRewardConfig) -> float:
    if not config.quantile:
        return config.threshold
    kept = max(round(config.quantile * len(importance)), 1)
    falling = np.sort(importance)[::-1]
    bound = falling[kept] if kept < len(falling) else np.float32(0)
    # Where more tokens than that share the largest value they are all kept, rather than none.
    return float(bound if bound < falling[0] else np.nextafter(bound, np.float32(0)))


def reward_facts(
    train: Rewarded, validation: Rewarded, threshold: float, config: TokenRewardConfig
) -> dict[str, Any]:
    kept, scores = train.kept, train.scores
    gains = scores.totals(scores.positive_logps - scores.negative_logps).reshape(-1, 2)
    wins = float(np.sum((gains[:, 0] > gains[:, 1]) + 0.5 * (gains[:, 0] == gains[:, 1])))
    low, high = wilson_interval(wins, len(gains))
    return {
        "rows": len(kept),
        "validation_rows": len(validation.kept),
        "tokens": len(train.rewards),
        "kept_fraction": float(kept.sum() / len(train.rewards)),
        "threshold": threshold,
        "mean_delta": float(np.abs(scores.positive_logps - scores.negative_logps).mean()),
        "zero_rows": int((kept.sum(1) == 0).sum()),
        "zero_responses": int((kept == 0).sum()),
        "floored_responses": int((_mean_deltas(scores) < config.min_mean_delta).sum()),
        "agreement": wins / len(gains),
        "agreement_low": low,
        "agreement_high": high,
        "cut_rows": int(scores.cut.sum() + validation.scores.cut.sum()),
    }
