"""What the trainers without a critic share: a policy and its reference, scored side by side, and a whole run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxalign import models
from jaxalign.rollout import Completions, Engine, join_rows
from jaxalign.rollout.trajectory import Rows
from jaxalign.runs import Run
from jaxalign.training import setup
from jaxalign.training.on_policy import OnPolicyTrainer, load_prompts, run_updates
from jaxalign.training.optimizer import make_optimizer
from jaxalign.training.packing import packing_of
from jaxalign.training.rollout_engine import make_generator
from jaxalign.training.scoring import CausalPolicy, score_tokens
from jaxalign.training.setup import TrainResult
from jaxalign.training.state import create_state


@dataclass(kw_only=True)
class PolicyTrainer(OnPolicyTrainer):
    """A trainer whose only trained model is the policy.

    Attributes:
      policy: how to score with the policy.
      reference_definition: the static part of the reference.
      reference: its leaves.
      optimizer: the policy's.
    """

    policy: CausalPolicy
    reference_definition: Any
    reference: Any
    optimizer: Any

    def __post_init__(self) -> None:
        self._score = jax.jit(self._score_rows)

    @classmethod
    def reads_reference(cls, config: Any) -> bool:
        """Whether the reference's log-probs are needed; else the policy's stand in their place."""
        del config
        return True

    def score_completions(
        self, number: int, prompts: Sequence[Sequence[int]], completions: Completions
    ) -> tuple[Rows, np.ndarray, np.ndarray, np.ndarray, dict[str, float]]:
        """Rows of N prompts with their completions, and what policy and reference say of them.

        Returns:
          The rows; log-probs under the policy and under the reference, and the policy's entropy, [N, T]; how far
          the policy's are from the sampler's (see `check_logps`, also for errors).
        """
        rows = join_rows(prompts, completions, multiple=16)
        logps, ref_logps, entropy = self.score_rows(
            rows, lambda batch: self._score(self.state.params, self.frozen, self.reference, batch)
        )
        return rows, logps, ref_logps, entropy, self.check_logps(number, rows, logps, completions)

    def _score_rows(self, params: Any, frozen: Any, reference: Any, batch: Mapping[str, jax.Array]):
        tokens, lengths, mask = batch["tokens"], batch["lengths"], batch["mask"]
        options = {"temperature": self.config.sampling.temperature, "packing": packing_of(batch)}
        scores = self.policy.score(params["policy"], frozen["policy"], tokens, lengths, mask, **options)
        if not self.reads_reference(self.config):
            return scores.logps, scores.logps, scores.entropy
        model = models.merge(self.reference_definition, reference)
        ref = score_tokens(model, tokens, lengths, mask, **options)
        return scores.logps, ref.logps, scores.entropy


def train_policy(
    trainer_class: type[PolicyTrainer],
    config: Any,
    command: str,
    parts: Callable[[Any, Any], dict[str, Any]],
    *,
    policy: Any = None,
    tokenizer: Any = None,
    engine: Engine | None = None,
) -> TrainResult:
    """A whole run of a trainer without a critic.

    Args:
      trainer_class: the algorithm.
      config: its configuration, an `OnPolicyConfig`.
      command: its name.
      parts: the policy's model and tokenizer -> the trainer's own fields (`reward` at least).
      policy: a live model in place of `config.model`; needs `tokenizer`.
      tokenizer: the policy's tokenizer.
      engine: who samples, in place of `config.rollout.engine`.

    Returns:
      The run folder, the last update's metrics and the model.

    Raises:
      UserError: anything wrong with configuration, files, rows or rewards, in one line.
    """
    mesh = setup.start(config.run, config.mesh)
    key = jax.random.key(config.run.seed)
    with Run.open(config.run, config, command) as run:
        if policy is None:
            policy, tokenizer = setup.load_model(config.model, mesh, seed=config.run.seed, run=run)
        own = parts(policy, tokenizer)
        train = config.train
        reference = policy
        if config.reference.path and trainer_class.reads_reference(config):
            reference, _ = setup.load_model(
                config.reference, mesh, seed=config.run.seed, section="reference", run=run
            )
        reference_definition, reference_params = models.split(reference)
        scorer, trained, frozen = setup.policy_of(policy, config.lora, mesh, key=jax.random.fold_in(key, 1))
        optimizer, _ = make_optimizer(config.optimizer, train.updates * train.epochs * train.minibatches)
        rollout_key = jax.random.fold_in(key, 2)
        trainer = trainer_class(
            config=config,
            run=run,
            mesh=mesh,
            frozen={"policy": frozen},
            tokenizer=tokenizer,
            prompts=load_prompts(config, policy.config, tokenizer, run, mesh),
            state=create_state({"policy": trained}, optimizer),
            key=rollout_key,
            generator=make_generator(config, scorer, frozen, tokenizer, rollout_key, run, engine),
            policy=scorer,
            reference_definition=reference_definition,
            reference=reference_params,
            optimizer=optimizer,
            **own,
        )
        metrics = run_updates(trainer)
        model = setup.export_policy(
            run, scorer, trainer.state.params["policy"], frozen, tokenizer, config.lora
        )
        run.finish(metrics)
        return TrainResult(run.folder, metrics, model, tokenizer)
