"""The models of a PPO run: policy, critic, reference and reward, and how they share weights."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxalign import models
from jaxalign.errors import ConfigError
from jaxalign.models.flops import Pass
from jaxalign.runs import Run
from jaxalign.training.core import setup
from jaxalign.training.core.batch import TokenRows
from jaxalign.training.core.implementations import with_implementations
from jaxalign.training.core.mesh_fit import tell_fit
from jaxalign.training.core.optimizer import (
    clipping,
    guarded,
    in_parts,
    make_optimizer,
    make_schedule,
    update_rule,
)
from jaxalign.training.core.reward_source import build_reward
from jaxalign.training.core.scoring import (
    CausalPolicy,
    ScalarPolicy,
    TokenScores,
    score_tokens,
    values_before,
)
from jaxalign.training.rl.ppo_config import PPOConfig


@dataclass(frozen=True)
class ActorCritic:
    """Policy and value function.

    The trained leaves are {"policy": ..., "critic": ...}; the frozen ones have the same
    keys. With a shared trunk "critic" holds the head alone.

    Attributes:
      policy: how to score with the policy.
      critic: how to score with the critic; None where the trunk is shared.
      reference_definition: the static part of the reference model.
      head: applies a value head to hidden states, where the trunk is shared.
    """

    policy: CausalPolicy
    critic: ScalarPolicy | None
    reference_definition: Any
    head: Any = None

    def score(
        self, params: Any, frozen: Any, rows: TokenRows, *, temperature: float
    ) -> tuple[TokenScores, Float[Array, "B T"], Float[Array, " B"]]:
        """Token scores, the value before each counted token, and the value after each row's last token."""
        scores = self.policy.score(params["policy"], frozen["policy"], rows, temperature=temperature)
        if self.critic is None:
            per_token = self.head(params["critic"], scores.hidden)
        else:
            per_token = self.critic.per_token(params["critic"], frozen["critic"], rows)
        after = jnp.take_along_axis(per_token, jnp.maximum(rows.lengths - 1, 0)[:, None], axis=1)[:, 0]
        return scores, values_before(per_token, rows.mask), after

    @property
    def training_passes(self) -> list[Pass]:
        """The passes of an optimizer step over its minibatch, the policy's first."""
        return [self.policy.training_pass, *([self.critic.training_pass] if self.critic else [])]

    def reference_logps(self, reference: Any, rows: TokenRows, *, temperature: float) -> Float[Array, "B T"]:
        """Log-probs under the frozen reference, at the sampling temperature."""
        return score_tokens(
            models.merge(self.reference_definition, reference), rows, temperature=temperature
        ).logps


@dataclass(frozen=True)
class Parts:
    """What `build` makes: the models, their leaves, the reward, the optimizer and its learning rates."""

    models: ActorCritic
    trained: Any
    frozen: Any
    reference: Any
    reward: Any
    optimizer: optax.GradientTransformation
    schedules: dict[str, optax.Schedule]


def build(
    config: PPOConfig,
    policy: Any,
    reward: Any,
    mesh: Any,
    *,
    key: jax.Array,
    tokenizer: Any = None,
    run: Run | None = None,
) -> Parts:
    """Loads what the configuration names beside the policy, and says what is trained; see `setup.load_model` for `run`.

    Raises:
      ConfigError: no reward; or a critic from a reward model that is not there.
    """
    reference = setup.load_reference(config, policy, mesh, run, read=config.kl.measured)
    reference_definition, reference_params = models.split(reference)
    batch, vocabulary = config.train.score_batch_size, policy.config.vocab_size
    reward, reward_model = build_reward(
        config.reward,
        reward,
        mesh=mesh,
        batch_size=batch,
        vocabulary=vocabulary,
        tokenizer=tokenizer,
        run=run,
    )
    scorer, trained, frozen = setup.policy_of(policy, config.lora, mesh, key=jax.random.fold_in(key, 1))
    critic, critic_trained, critic_frozen, head = _critic(config, policy, reward_model, mesh, key, run)
    both = {"policy": trained, "critic": critic_trained}
    optimizer, schedules = _optimizer(config, run.given.optimizer if run else None)
    return Parts(
        models=ActorCritic(scorer, critic, reference_definition, head),
        trained=both,
        frozen={"policy": frozen, "critic": critic_frozen},
        reference=reference_params if config.kl.measured else {},
        reward=reward,
        optimizer=optimizer,
        schedules=schedules,
    )


def _critic(config: PPOConfig, policy: Any, reward_model: Any, mesh: Any, key: jax.Array, run: Run | None):
    critic, key = config.critic, jax.random.fold_in(key, 2)
    if critic.shared_trunk or critic.init == "policy":
        scalar = models.create_scalar_model(policy, critic.head, key=key)
    elif critic.init == "reward":
        if reward_model is None:
            raise ConfigError("critic.init=reward: no reward model; set reward.model or critic.init=policy")
        scalar = reward_model
    else:
        if not critic.path:
            raise ConfigError("critic.path: expected the folder of a scalar model with critic.init=path")
        scalar = models.load_reward_model(setup.model_folder(critic.path), mesh=mesh)
        tell_fit(run, "critic", scalar.config, mesh)
    if not (critic.shared_trunk or critic.init == "policy"):
        # It learns as the policy does. A reward model that scores, perhaps the same one, stays in float32.
        scalar = models.with_config(scalar, compute_dtype=policy.config.compute_dtype)
        scalar = with_implementations(
            scalar,
            config.model,
            mesh,
            section="critic",
            asked_by="model",
            run=run,
            packing=config.train.packing,
        )
    # Nothing samples from its values.
    scalar = models.with_config(models.with_remat(scalar, policy.config.remat), exact=False)
    if critic.shared_trunk:
        # The balance of its experts is in the policy's loss.
        scalar = models.with_config(scalar, mixture=replace(scalar.config.mixture, balance=0.0))
    scorer, trained, frozen = setup.scalar_of(scalar, None, mesh, key=key)
    if not critic.shared_trunk:
        return scorer, trained, frozen, None
    definition = scorer.definition

    def head(params, hidden):
        products = models.matmul_implementation(definition.config)
        return models.apply_head(definition.head_config, params["head"], hidden, products=products)

    return None, {"head": trained["head"]}, {}, head


def _optimizer(
    config: PPOConfig, given: Any = None
) -> tuple[optax.GradientTransformation, dict[str, optax.Schedule]]:
    """One chain for the policy and one for the critic, each with its own clipping; and the learning rates of each.

    With a shared trunk there is one chain. Where its head learns alone first, it has moments and a schedule of its own,
    of the same configuration, behind one clip. The policy's schedule begins with the policy's first step. What is
    `given` (see `make_optimizer`) is of both, or {"policy": ..., "critic": ...}.
    """
    train, warmup = config.train, config.critic.warmup_updates
    steps = train.epochs * train.minibatches
    its, total = max(train.updates - warmup, 1) * steps, train.updates * steps
    each = given if isinstance(given, Mapping) else {"policy": given, "critic": given}
    if each.keys() != {"policy", "critic"}:
        raise ConfigError(f"optimizer: expected the keys policy and critic, got {', '.join(map(str, each))}")
    if not config.critic.shared_trunk:
        made = {
            "policy": make_optimizer(config.optimizer, its, each["policy"]),
            "critic": make_optimizer(config.critic.optimizer, total, each["critic"]),
        }
        return in_parts({n: rule for n, (rule, _) in made.items()}), {n: r for n, (_, r) in made.items() if r}
    if isinstance(given, Mapping):
        raise ConfigError(
            "optimizer: with critic.shared_trunk policy and critic share one optimizer, got two"
        )
    if not warmup:
        optimizer, rate = make_optimizer(config.optimizer, its, given)
        return optimizer, {"policy": rate} if rate else {}
    if isinstance(given, optax.GradientTransformation):
        return guarded(in_parts({"policy": given, "critic": given}), config.optimizer), {}
    rates = {
        name: given or make_schedule(config.optimizer, number)
        for name, number in {"policy": its, "critic": total}.items()
    }
    parts = in_parts({name: update_rule(config.optimizer, rate) for name, rate in rates.items()})
    return guarded(optax.chain(*clipping(config.optimizer), parts), config.optimizer), rates
