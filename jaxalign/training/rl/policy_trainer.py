"""What the trainers without a critic share: a policy and its reference, scored side by side."""

from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import numpy as np
from jaxtyping import Float

from jaxalign import models
from jaxalign.arrays import AnyArray
from jaxalign.host_memory import on_device
from jaxalign.rollout import Completions
from jaxalign.rollout.trajectory import Rows
from jaxalign.training.core.batch import TokenBatch
from jaxalign.training.core.optimizer import make_optimizer
from jaxalign.training.core.scoring import score_tokens
from jaxalign.training.rl.on_policy import OnPolicyTrainer
from jaxalign.training.rl.on_policy_run import OnPolicyRun


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class PolicyScores:
    """What policy and reference say of rows, 0 outside their mask; None for a model that was not run.

    Attributes:
      logps: log-probs under the policy, nats.
      entropy: of the policy, nats.
      ref_logps: log-probs under the reference, nats.
    """

    logps: Float[AnyArray, "N T"] | None = None
    entropy: Float[AnyArray, "N T"] | None = None
    ref_logps: Float[AnyArray, "N T"] | None = None


Trainer = TypeVar("Trainer", bound="PolicyTrainer")


@dataclass(kw_only=True)
class PolicyTrainer(OnPolicyTrainer):
    """A trainer whose only trained model is the policy.

    Attributes:
      reference_definition: the static part of the reference.
      reference: its leaves.
    """

    reference_definition: Any
    reference: Any

    def __post_init__(self) -> None:
        self._score = jax.jit(self._scores_of, static_argnames="policy")

    @classmethod
    def reads_reference(cls, config: Any) -> bool:
        """Whether the reference's log-probs are needed; where they are not there is no reference."""
        del config
        return True

    def score_completions(
        self, number: int, rows: Rows, completions: Completions
    ) -> tuple[PolicyScores, dict[str, float]]:
        """What the policy, and the reference where it is read, say of N rows of prompts with their completions.

        Args:
          number: of the update.
          rows: prompts with completions.
          completions: what was sampled.

        Returns:
          The scores, and how far the policy's log-probs are from the sampler's (see `check_logps`, also for errors).
        """
        scores = self._scored(rows)
        assert scores.logps is not None
        return scores, self.check_logps(number, rows, scores.logps, completions)

    def reference_logps(self, rows: Rows) -> np.ndarray | None:
        """Log-probs [N, T] under the reference; None where it is not read."""
        return self._scored(rows, policy=False).ref_logps if self.reads_reference(self.config) else None

    def held_out_kl(self, rows: Rows) -> np.ndarray | None:
        """See `OnPolicyTrainer`."""
        scores = self._scored(rows) if self.reads_reference(self.config) else PolicyScores()
        return None if scores.ref_logps is None else (scores.logps - scores.ref_logps).sum(1)

    def _scored(self, rows: Rows, *, policy: bool = True) -> PolicyScores:
        """Scores on the host, of the reference alone where the policy is not asked."""
        reference = on_device(self.reference)
        params, frozen = self.state.params, self.frozen
        return self.score_rows(
            rows, lambda batch: self._score(params, frozen, reference, batch, policy=policy)
        )

    def _scores_of(
        self, params: Any, frozen: Any, reference: Any, batch: TokenBatch, *, policy: bool
    ) -> PolicyScores:
        temperature = self.config.sampling.temperature
        logps = entropy = ref_logps = None
        if policy:
            scores = self.policy.score(params["policy"], frozen["policy"], batch, temperature=temperature)
            logps, entropy = scores.logps, scores.entropy
        if self.reads_reference(self.config):
            model = models.merge(self.reference_definition, reference)
            ref_logps = score_tokens(model, batch, temperature=temperature).logps
        return PolicyScores(logps=logps, entropy=entropy, ref_logps=ref_logps)


def policy_trainer(
    trainer_class: type[Trainer], command: str, run: OnPolicyRun, policy: Any, tokenizer: Any, **own: Any
) -> Trainer:
    """The trainer of an algorithm without a critic; `own` are its own fields, `reward` at least."""
    config, train = run.config, run.config.train
    read = trainer_class.reads_reference(config)
    reference = run.load_reference(policy, read=read)
    definition, params = models.split(reference)
    scorer, trained, frozen = run.trained_parts(policy)
    optimizer, schedule = make_optimizer(
        config.optimizer, train.updates * train.epochs * train.minibatches, run.run.given.optimizer
    )
    return trainer_class(
        reference_definition=definition,
        reference=run.offloaded(params if read else {}, own["reward"], frozen),
        **run.parts(
            command,
            scorer,
            policy.config,
            tokenizer,
            trained={"policy": trained},
            frozen={"policy": frozen},
            optimizer=optimizer,
            schedules={"policy": schedule} if schedule else {},
        ),
        **own,
    )
