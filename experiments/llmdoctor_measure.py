"""What `llmdoctor.py` measures: answers to held-out prompts, and what they cost."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from llmdoctor_task import DIMENSIONS, MAX_NEW_TOKENS, words_told

from jaxalign import llmdoctor, models
from jaxalign.data import BatchIterator, DataConfig, collate_comparisons, eval_batches, load_dataset
from jaxalign.evaluation.policy import make_scorer, summed_logps
from jaxalign.llmdoctor.tfpo_config import TFPOConfig, TFPOLossConfig
from jaxalign.llmdoctor.tfpo_step import TFPOBatch, make_tfpo_loss, tfpo_counts
from jaxalign.mesh import MeshConfig
from jaxalign.models import LoraConfig
from jaxalign.rollout import Completions, Sampler, join_rows
from jaxalign.runs import RunConfig
from jaxalign.training.core import setup
from jaxalign.training.core.batch import CompletionBatch, pair_axis, valid_count
from jaxalign.training.core.optimizer import OptimizerConfig, make_optimizer
from jaxalign.training.core.scoring import score_tokens
from jaxalign.training.core.state import create_state
from jaxalign.training.core.step import make_update
from jaxalign.training.preference.config import DPOLossConfig
from jaxalign.training.preference.objectives import PreferenceBatch, make_preference_loss
from jaxalign.uncertainty import wilson_interval


class Measure:
    """Answers to the same prompts, several each: how good, how far from the patient, how varied.

    Args:
      patient: distances are from its distribution without an instruction, at temperature 1.
      tokenizer: its tokenizer.
      prompts: texts.
      samples: answers to each.
      seed: of the sampling.
    """

    def __init__(self, patient: Any, tokenizer: Any, prompts: Sequence[str], *, samples: int, seed: int):
        self.tokenizer, self.samples, self.seed = tokenizer, samples, seed
        self.texts = [text for text in prompts for _ in range(samples)]
        self.prompts = [tokenizer.encode(text) for text in prompts]
        self.repeated = [ids for ids in self.prompts for _ in range(samples)]
        definition, self._params = models.split(patient)
        self._score = make_scorer(definition)

    def sampled(
        self, sampler: Sampler, *, told: Sequence[str] | None = None, temperature: float = 1.0
    ) -> dict[str, Any]:
        """The figures of what a sampler writes; `told` are the prompts with an instruction before them."""
        prompts = self.prompts if told is None else [self.tokenizer.encode(text) for text in told]
        done = sampler.generate(
            prompts,
            max_new_tokens=MAX_NEW_TOKENS,
            key=jax.random.key(self.seed),
            num_samples=self.samples,
            temperature=temperature,
        )
        return self.figures(done, certain=temperature == 0)

    def figures(
        self, done: Completions, *, certain: bool = False, kl_bound: float | None = None
    ) -> dict[str, Any]:
        """Plain figures of one completion for each of `repeated`.

        Args:
          done: the completions; their log-probs are those of the distribution whose distance is measured.
          certain: the decoder is deterministic, so that its KL is what the patient finds unlikely.
          kl_bound: the KL in nats a completion where it is known by a bound only.

        Returns:
          reward (true, points) and words: means; `by_prompt`: the reward of each prompt; kl (nats a completion) and
          kl_token: means of log p(completion) - log p_patient(completion) over the decoder's own samples, which
          estimate the KL; distinct_n: n-grams of a prompt's answers that differ, as a part of all, mean over prompts;
          ended: part of the answers that ended by themselves.
        """
        texts = done.texts(self.tokenizer)
        whole = [f"{prompt} {text}" for prompt, text in zip(self.texts, texts, strict=True)]
        rewards = np.asarray([DIMENSIONS["kindness"].truth(text) for text in whole])
        theirs = summed_logps(self._score, self._params, join_rows(self.repeated, done))
        ours = np.where(done.mask, done.logps, 0.0).astype(np.float64).sum(1) * (not certain)
        nats = ours - theirs
        by_prompt = rewards.reshape(-1, self.samples).mean(1)
        figures = {
            "reward": float(rewards.mean()),
            "by_prompt": by_prompt.round(4).tolist(),
            "words": float(np.mean([words_told(text) for text in whole])),
            "kl": float(nats.mean()) if kl_bound is None else kl_bound,
            "kl_token": float(nats.sum() / done.mask.sum()) if kl_bound is None else None,
            "kl_is_bound": kl_bound is not None,
            "ended": float(np.mean([reason == "stop" for reason in done.finish_reason])),
            "example": texts[0],
        }
        rows = done.token_lists()
        groups = [rows[i : i + self.samples] for i in range(0, len(rows), self.samples)]
        return figures | {f"distinct_{n}": distinct(groups, n) for n in (1, 2, 4)}


def pair_accuracy(model: Any, start: Any, config: DataConfig, tokenizer: Any) -> dict[str, Any]:
    """How often a model's log-ratio to what it began as agrees with the labels of held-out pairs.

    Returns:
      `accuracy`, with a Wilson interval `low` and `high`; `right`: 1, 0 or a half for each pair.
    """
    rows = load_dataset(config, "comparison", tokenizer, seed=0).validation

    def sums(model: Any) -> np.ndarray:
        definition, params = models.split(model)

        @jax.jit
        def score(params: Any, batch: Any) -> jax.Array:
            scores = score_tokens(models.merge(definition, params), batch.rows())
            return scores.logps.sum(1).reshape(-1, 2)

        batches = eval_batches(rows, 64, collate_comparisons)
        logps = [
            np.asarray(score(params, CompletionBatch.of(pair_axis(batch))))[batch["valid"]]
            for batch in batches
        ]
        return np.concatenate(logps).astype(np.float64)

    ratios = sums(model) - sums(start)
    right = 0.5 * (1 + np.sign(ratios[:, 0] - ratios[:, 1]))
    low, high = wilson_interval(float(right.sum()), len(right))
    return {"accuracy": float(right.mean()), "low": low, "high": high, "right": right.tolist()}


def distinct(groups: Sequence[Sequence[Sequence[int]]], n: int) -> float:
    """Different n-grams of a group's rows as a part of all their n-grams; the mean over groups."""
    parts = []
    for rows in groups:
        found = [tuple(row[i : i + n]) for row in rows for i in range(len(row) - n + 1)]
        if found:
            parts.append(len(set(found)) / len(found))
    return float(np.mean(parts))


def size(model: Any) -> dict[str, int]:
    """Weights, and the bytes that they take."""
    leaves = jax.tree.leaves(models.split(model)[1])
    return {"weights": sum(x.size for x in leaves), "bytes": sum(x.nbytes for x in leaves)}


def speeds(
    samplers: Mapping[str, Sampler], prompts: Sequence[Sequence[int]], *, rounds: int = 7, rows: int = 64
) -> dict[str, Any]:
    """Tokens a second of each sampler, taking turns; the first round (compiling) is left out.

    Returns:
      By name: the median, and `seconds` of each round, so that ratios can be taken round by round.
    """
    prompts = [prompts[i % len(prompts)] for i in range(rows)]

    def generate(sampler: Sampler) -> Callable[[], Any]:
        return lambda: sampler.generate(
            prompts, max_new_tokens=MAX_NEW_TOKENS, key=jax.random.key(0), stop_tokens=()
        )

    seconds = in_turns({name: generate(sampler) for name, sampler in samplers.items()}, rounds=rounds)
    tokens = rows * MAX_NEW_TOKENS
    return {n: {"median": tokens / statistics.median(s), "seconds": s} for n, s in seconds.items()}


def in_turns(
    ways: Mapping[str, Callable[[], Any]], *, rounds: int, repeats: int = 1
) -> dict[str, list[float]]:
    """Seconds of each way, once a round (the mean of `repeats` calls), after a round that is left out."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            for _ in range(repeats):
                jax.block_until_ready(way())
            if number:
                seconds[name].append((time.perf_counter() - started) / repeats)
    return seconds


def steps(
    patient: Any, config: DataConfig, tokenizer: Any, *, rounds: int = 7, repeats: int = 20
) -> dict[str, list[float]]:
    """Seconds of an optimizer step of 16 pairs, all weights trained: DPO with its live reference, TFPO by two presets.

    Token rewards are computed once before training and are not in it; `learning` has what they cost.
    """
    mesh, key = setup.start(RunConfig(), MeshConfig()), jax.random.key(0)
    data = load_dataset(config, "comparison", tokenizer, seed=0).train
    definition, reference = models.split(patient)
    policy, trained, base = setup.policy_of(patient, LoraConfig(), mesh, key=key)
    frozen = {"base": base, "reference": reference}
    width = max(len(row) for example in data for row in example.rows)
    batches = BatchIterator(data, batch_size=16, seed=0, collate=partial(collate_comparisons, width=width))
    batch = pair_axis(batches.next())
    sign = np.asarray([1.0, -1.0], np.float32)[:, None]
    batch |= {"rewards": batch["mask"] * sign, "terminated": np.ones(batch["mask"].shape[:2], bool)}
    pairs, rewarded = (setup.on_mesh(batch, kind, mesh) for kind in (PreferenceBatch, TFPOBatch))
    optimizer, _ = make_optimizer(OptimizerConfig(), 1000)

    def stepping(loss: Any, counts: Any, trained: Any, frozen: Any, placed: Any) -> Callable[[], Any]:
        update, state = make_update(loss, counts, optimizer), create_state(trained, optimizer)

        def step() -> Any:
            nonlocal state
            state, metrics = update(state, frozen, placed, key)
            return metrics

        return step

    ways = {
        "DPO": stepping(
            make_preference_loss(policy, definition, DPOLossConfig()), valid_count, trained, frozen, pairs
        )
    }
    for preset in ("paper", "tilted"):
        numbers, head = TFPOLossConfig(preset=preset).resolved(), TFPOConfig().head
        value = llmdoctor.create_value_head(patient.config, head, key=key, ramp=0.0, horizon=48.0)
        ways[f"TFPO {preset}"] = stepping(
            make_tfpo_loss(policy, head, numbers),
            tfpo_counts(numbers),
            {"policy": trained, "value": {name: value[name] for name in ("head", "ramp")}},
            frozen | {"horizon": value["horizon"]},
            rewarded,
        )
    return in_turns(ways, rounds=rounds, repeats=repeats)
