"""Rollouts from another engine than the trainer's own sampler, and how far its log-probs are from the policy's."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign import processes
from jaxalign.errors import ConfigError
from jaxalign.losses import importance_weights
from jaxalign.rollout import Completions, Engine, EngineConfig, ServerEngine
from jaxalign.rollout.logp_gap import logp_gap
from jaxalign.rollout.trajectory import Rows, sampler_logps
from jaxalign.runs import Run
from jaxalign.training.core.generator import Generator
from jaxalign.training.core.scoring import CausalPolicy
from jaxalign.training.rl.on_policy_config import OnPolicyConfig


def make_generator(
    config: OnPolicyConfig,
    policy: CausalPolicy,
    frozen: Any,
    tokenizer: Any,
    key: jax.Array,
    run: Run,
    engine: Engine | None = None,
) -> Generator:
    """What samples for a run: `engine` where one is given, else the one that `config.rollout.engine` names.

    Raises:
      ConfigError: 8-bit rollouts of an engine that is given, which stores weights and cache as it will; an engine that
        is given to one of several processes.
      UserError: a server that is not there, or does not have the model.
    """
    settings = config.rollout.engine
    if engine is not None and config.rollout.int8:
        raise ConfigError(
            "rollout.weights and rollout.cache must be same if you pass your own engine (engine=), which does not "
            "use them"
        )
    if engine is not None and processes.several():
        raise ConfigError(
            "engine: an engine of your own samples for one process only; of several processes, name one with "
            "rollout.engine.kind"
        )
    if engine is None and settings.kind != "local":
        # A name that nothing else has: what lies there is removed before the first weights are written.
        folder = (
            Path(settings.folder) / f"jaxalign-{run.folder.resolve().name}"
            if settings.folder
            else run.folder / "engine"
        )
        engine = ServerEngine(settings, policy.definition, folder, lora=policy.lora)
        engine.connect()
    # In exact mode an adapter stays beside the weights, as in training: merged weights are rounded.
    merged = settings.weights == "merged" and not config.rollout.exact
    storage = {"weights": config.rollout.weights, "cache": config.rollout.cache}
    return Generator(
        policy, frozen, config.sampling, tokenizer, key, engine=engine, merged=merged, storage=storage
    )


def logp_gaps(rows: Rows, logps: np.ndarray, completions: Completions) -> dict[str, float]:
    """Largest and mean difference of the sampler's log-probs and those of the training forward [N, T], in nats.

    Over the tokens in the rows' mask; 0 where there is none.
    """
    gap = logp_gap(logps, sampler_logps(rows, completions), rows.mask)
    return {"rollout/logp_gap": gap.largest, "rollout/logp_gap_mean": gap.mean}


def server_gap(engine: EngineConfig, gaps: Mapping[str, float]) -> str:
    """What is wrong with a server's log-probs, in one line; empty where they are near enough."""
    mean = gaps["rollout/logp_gap_mean"]
    if mean <= engine.logp_tolerance:
        return ""
    return (
        f"log-probs of the server and of the policy differ by {mean:.3g} nats a token "
        f"(at most {gaps['rollout/logp_gap']:.3g}), more than rollout.engine.logp_tolerance = "
        f"{engine.logp_tolerance:g}"
    )


def importance(
    cap: float,
    rows: Rows,
    logps: np.ndarray,
    mask: np.ndarray,
    completions: Completions,
    *,
    level: Literal["token", "sequence"] = "token",
    mode: Literal["truncate", "mask"] = "truncate",
) -> np.ndarray:
    """Importance weights of the tokens [N, T], for a sampler that is not quite the policy."""
    sampled = rows.from_completion(completions.sampling_logps)
    arrays = (jnp.asarray(x) for x in (logps, sampled, mask))
    return np.asarray(importance_weights(*arrays, cap=cap, level=level, mode=mode))
