"""The demo's comparison of live models: reward, KL to the SFT model, perplexity, win rate.

`jaxalign compare` compares methods over seeds (`compare_cells`); KL, win rates and intervals are measured alike.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxalign import models
from jaxalign.evaluation import Estimate, Perplexity, WinRate, estimate_mean, perplexity, win_rate
from jaxalign.evaluation.policy import make_scorer
from jaxalign.evaluation.policy_kl import policy_kl
from jaxalign.rewards import RewardRequest, evaluate_reward
from jaxalign.rollout import Sampler, SamplingConfig

TrueReward = Callable[[str, str], float]


@dataclass(frozen=True)
class Answers:
    """One model's completions of the held-out prompts, with scores.

    Attributes:
      completions: texts, N.
      proxy: the reward model's scores [N].
      true: the true rewards [N]; None where nobody knows them.
      kl: KL from the supervised model of each answer [N], nats: exact at each token, summed over them, see
        `evaluation.policy_kl`.
      lengths: tokens of each answer [N].
    """

    completions: list[str]
    proxy: np.ndarray
    true: np.ndarray | None
    kl: np.ndarray
    lengths: np.ndarray

    @property
    def judged(self) -> np.ndarray:
        """The scores that decide a win: true rewards if known, else the reward model's."""
        return self.proxy if self.true is None else self.true


@dataclass(frozen=True)
class MethodResult:
    """One row of the comparison.

    Attributes:
      name: base, SFT, PPO, DPO.
      true: true reward; None where nobody knows it.
      proxy: the reward model's score.
      kl: sequence KL to the supervised model, nats.
      perplexity: on held-out demonstrations.
      wins: against the supervised model; None for itself.
      length: mean tokens an answer.
    """

    name: str
    true: Estimate | None
    proxy: Estimate
    kl: Estimate
    perplexity: Perplexity
    wins: WinRate | None
    length: float

    def plain(self) -> dict[str, Any]:
        """The row as numbers, for a JSON file."""
        values: dict[str, Any] = {
            "method": self.name,
            "proxy_reward": self.proxy.mean,
            "proxy_reward_se": self.proxy.standard_error,
            "proxy_reward_sd": self.proxy.standard_deviation,
            "kl": self.kl.mean,
            "kl_se": self.kl.standard_error,
            "perplexity": self.perplexity.value,
            "length": self.length,
        }
        if self.true is not None:
            values |= {
                "true_reward": self.true.mean,
                "true_reward_se": self.true.standard_error,
                "true_reward_sd": self.true.standard_deviation,
            }
        if self.wins is not None:
            values |= {
                "win_rate": self.wins.rate,
                "win_rate_low": self.wins.low,
                "win_rate_high": self.wins.high,
            }
        return values


class Comparison:
    """Samples and scores several models of one shape with one set of compiled programs.

    Args:
      supervised: the model that KL and wins are counted against.
      reward: the proxy: a reward, see `jaxalign.rewards`.
      tokenizer: of all models.
      prompts: ids of the held-out prompts, N.
      prompt_texts: the same as text.
      sampling: how answers are drawn.
      held_out: batches of held-out demonstrations, for perplexity.
      true_reward: `(prompt, completion) -> float`, or None.
      seed: of the answers; every model gets the same random numbers.
    """

    def __init__(
        self,
        supervised: Any,
        *,
        reward: Any,
        tokenizer: Any,
        prompts: Sequence[Sequence[int]],
        prompt_texts: Sequence[str],
        sampling: SamplingConfig,
        held_out: Sequence[Mapping[str, Any]],
        true_reward: TrueReward | None,
        seed: int,
    ) -> None:
        definition, _ = models.split(supervised)
        self.supervised = supervised
        self.reward, self.tokenizer, self.true_reward = reward, tokenizer, true_reward
        self.prompts, self.prompt_texts = [list(p) for p in prompts], list(prompt_texts)
        self.sampling, self.held_out = sampling, held_out
        self.sampler = Sampler(supervised)
        self.key = jax.random.key(seed)
        self._score = make_scorer(definition, temperature=sampling.temperature or 1.0)
        # Other random numbers than the supervised model's own row, so that a policy that never
        # moved would win half of the time rather than tie always.
        self.opponent = self.answers(supervised, draw=1)

    def answers(self, model: Any, *, draw: int = 0) -> Answers:
        """Samples and judges one answer a prompt."""
        params = models.split(model)[1]
        self.sampler.update(params)
        done = self.sampler.generate(
            self.prompts, key=jax.random.fold_in(self.key, draw), **self.sampling.arguments(num_samples=1)
        )
        texts = done.texts(self.tokenizer)
        request = RewardRequest(
            prompts=self.prompt_texts,
            completions=texts,
            prompt_ids=self.prompts,
            completion_ids=done.token_lists(),
            columns={},
            width=done.tokens.shape[1],
        )
        true = None
        if self.true_reward is not None:
            true = np.array([self.true_reward(p, c) for p, c in zip(self.prompt_texts, texts, strict=True)])
        pairs = list(zip(self.prompts, done.token_lists(), strict=True))
        distance = policy_kl(model, self.supervised, pairs, batch_size=64)
        proxy = evaluate_reward(self.reward, request).scores
        assert proxy is not None
        return Answers(texts, np.asarray(proxy, np.float64), true, distance.kl, np.asarray(done.lengths))

    def result(self, name: str, model: Any, answers: Answers) -> MethodResult:
        """The row of one model, from its answers and the held-out text."""
        params = models.split(model)[1]
        ppl = perplexity(lambda batch: self._score(params, batch), self.held_out)
        return MethodResult(
            name=name,
            true=None if answers.true is None else estimate_mean(answers.true),
            proxy=estimate_mean(answers.proxy),
            kl=estimate_mean(answers.kl),
            perplexity=ppl,
            wins=win_rate(answers.judged, self.opponent.judged),
            length=float(answers.lengths.mean()),
        )


def comparison_rows(results: Sequence[MethodResult]) -> list[dict[str, str]]:
    """The comparison as text: one mapping of column to cell per method, all with the same columns."""
    with_truth = any(r.true is not None for r in results)
    rows = []
    for r in results:
        row = {"method": r.name}
        if with_truth:
            row["true reward"] = _pair(r.true)
        row["proxy reward"] = _pair(r.proxy)
        row["KL from SFT (nats)"] = _pair(r.kl)
        row["perplexity"] = (
            f"{r.perplexity.value:.2f}" if r.perplexity.value < 1e4 else f"{r.perplexity.value:.1e}"
        )
        row["win rate vs SFT"] = (
            "-" if r.wins is None else f"{r.wins.rate:.0%} [{r.wins.low:.0%}, {r.wins.high:.0%}]"
        )
        row["tokens"] = f"{r.length:.1f}"
        rows.append(row)
    return rows


def gains(results: Sequence[MethodResult], *, baseline: str = "SFT") -> dict[str, float]:
    """Each method's reward relative to the baseline's mean, in the baseline's standard deviations.

    The reward is the true one where it is known, else the proxy.
    """
    base = next(r for r in results if r.name == baseline)
    reference = base.true or base.proxy
    spread = reference.standard_deviation or math.nan
    return {
        r.name: ((r.true or r.proxy).mean - reference.mean) / spread for r in results if r.name != baseline
    }


def _pair(estimate: Estimate | None) -> str:
    return "-" if estimate is None else f"{estimate.mean:.2f} ± {estimate.standard_error:.2f}"
