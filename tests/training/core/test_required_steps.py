"""A wrong step that earns 0 counts, or one line says what is missing."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from jaxalign.errors import ConfigError
from jaxalign.rewards import RewardRequest, Rewards, WeightedMix, evaluate_reward
from jaxalign.rollout import SamplingConfig
from jaxalign.training.core.required_steps import StepsRequired
from jaxalign.training.rl.grpo import Trainer, train_grpo
from jaxalign.training.rl.grpo_config import GRPOConfig, GRPOLossConfig, GRPOTrainConfig

TOKENS = np.asarray([[1, 0, 0], [1, 1, 0]], np.float32)
STEPS = np.asarray([[1, 1, 0], [1, 1, 1]], bool)
SILENT = r"loss\.advantages=process: reward zero_or_one returned token rewards but no steps"


def request():
    return RewardRequest(
        prompts=["a", "b"],
        completions=["x", "y"],
        prompt_ids=[[1], [2]],
        completion_ids=[[3], [4]],
        columns={},
        width=3,
    )


def zero_or_one(prompts, completions, *, completion_ids, columns):
    del prompts, completions, completion_ids, columns
    return TOKENS


async def awaited(prompts, completions, **_):
    await asyncio.sleep(0)
    return Rewards(token_rewards=TOKENS)


class Scoring:
    def score(self, request):
        del request
        return Rewards(token_rewards=TOKENS)


@pytest.mark.parametrize("reward", [zero_or_one, awaited, Scoring()], ids=["function", "coroutine", "object"])
@pytest.mark.parametrize("mixed", [False, True])
def test_token_rewards_without_steps_are_refused(reward, mixed):
    source = WeightedMix({"first": lambda p, c, **_: [0.0, 1.0], "second": reward}) if mixed else reward
    with pytest.raises(ConfigError, match="returned token rewards but no steps"):
        evaluate_reward(StepsRequired(source), request())


def test_steps_that_are_said_are_kept_with_those_that_earn_nothing():
    def said(prompts, completions, **_):
        return Rewards(token_rewards=TOKENS, steps=STEPS)

    found = evaluate_reward(StepsRequired(WeightedMix({"said": said})), request())
    np.testing.assert_array_equal(found.steps, STEPS)
    # Scores of rows need none.
    assert evaluate_reward(StepsRequired(lambda p, c, **_: [0.5, 1.0]), request()).steps is None


@pytest.mark.long
def test_process_advantages_refuse_zeros_and_ones_without_steps_and_count_them_with(
    configs, tmp_path, monkeypatch
):
    ppo = configs.ppo(tmp_path / "silent")
    config = GRPOConfig(
        run=ppo.run,
        model=ppo.model,
        data=ppo.data,
        reward=replace(ppo.reward, missing_stop_penalty=0.0),
        sampling=SamplingConfig(max_new_tokens=3, num_samples=2, stop_tokens=()),
        train=GRPOTrainConfig(updates=1, prompts=1, score_batch_size=4, eval_prompts=1),
        loss=GRPOLossConfig(advantages="process"),
    )
    with pytest.raises(ConfigError, match=SILENT):
        train_grpo(config, reward=zero_or_one)
    seen, plain = [], Trainer.passes
    monkeypatch.setattr(
        Trainer, "passes", lambda s, n, data, step: seen.append(data) or plain(s, n, data, step)
    )
    said = replace(config, run=replace(config.run, output=str(tmp_path / "said")))

    def with_steps(prompts, completions, **_):
        # Held-out prompts are fewer.
        return Rewards(token_rewards=TOKENS[: len(prompts)], steps=STEPS[: len(prompts)])

    train_grpo(said, reward=with_steps)
    # Steps 1, 0 and (at the end) 0; 1, 1 and 0: mean 1/2, deviation sqrt(6/4/5).
    one = 0.5 / (np.sqrt(0.3) + 1e-4)
    first, second = (a[m] for a, m in zip(seen[0].advantages, seen[0].mask, strict=True))
    np.testing.assert_allclose(first, [-one, -2 * one, -one], rtol=1e-5)
    np.testing.assert_allclose(second, [one, 0, -one], rtol=1e-5, atol=1e-6)
