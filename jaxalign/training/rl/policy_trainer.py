"""What the trainers without a critic share: a policy and its reference, scored side by side."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import numpy as np

from jaxalign import models
from jaxalign.host_memory import on_device
from jaxalign.rollout import Completions
from jaxalign.rollout.trajectory import Rows
from jaxalign.training.core.optimizer import make_optimizer
from jaxalign.training.core.packing import packing_of
from jaxalign.training.core.scoring import score_tokens
from jaxalign.training.rl.on_policy import OnPolicyTrainer
from jaxalign.training.rl.on_policy_run import OnPolicyRun

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
        self._score = jax.jit(self._score_rows, static_argnames="policy")

    @classmethod
    def reads_reference(cls, config: Any) -> bool:
        """Whether the reference's log-probs are needed; where they are not there is no reference."""
        del config
        return True

    def score_completions(
        self, number: int, rows: Rows, completions: Completions, *, policy: bool = True
    ) -> tuple[dict[str, np.ndarray], dict[str, float]]:
        """What policy and reference say of N rows of prompts with their completions; no forward pass is run in vain.

        Args:
          number: of the update.
          rows: prompts with completions.
          completions: what was sampled.
          policy: whether the policy is asked.

        Returns:
          Float32 [N, T]: `logps` and `entropy` of the policy where it is asked, `ref_logps` where the reference is
          read. And how far the policy's are from the sampler's (see `check_logps`, also for errors).
        """
        if not policy and not self.reads_reference(self.config):
            return {}, {}

        reference = on_device(self.reference)

        def score(batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
            return self._score(self.state.params, self.frozen, reference, batch, policy=policy)

        found = self.score_rows(rows, score)
        gaps = self.check_logps(number, rows, found["logps"], completions) if policy else {}
        return found, gaps

    def held_out_kl(self, rows: Rows) -> np.ndarray | None:
        """See `OnPolicyTrainer`."""
        if not self.reads_reference(self.config):
            return None
        reference = on_device(self.reference)

        def score(batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
            return self._score(self.state.params, self.frozen, reference, batch, policy=True)

        found = self.score_rows(rows, score)
        return (found["logps"] - found["ref_logps"]).sum(1)

    def _score_rows(
        self, params: Any, frozen: Any, reference: Any, batch: Mapping[str, jax.Array], *, policy: bool
    ) -> dict[str, jax.Array]:
        tokens, lengths, mask = batch["tokens"], batch["lengths"], batch["mask"]
        options = {"temperature": self.config.sampling.temperature, "packing": packing_of(batch)}
        found = {}
        if policy:
            scores = self.policy.score(params["policy"], frozen["policy"], tokens, lengths, mask, **options)
            found |= {"logps": scores.logps, "entropy": scores.entropy}
        if self.reads_reference(self.config):
            model = models.merge(self.reference_definition, reference)
            found["ref_logps"] = score_tokens(model, tokens, lengths, mask, **options).logps
        return found


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
