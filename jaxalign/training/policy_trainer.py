"""What the trainers without a critic share: a policy and its reference, scored side by side, and a whole run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxalign import models
from jaxalign.host_memory import on_device
from jaxalign.rollout import Completions
from jaxalign.rollout.trajectory import Rows
from jaxalign.runs import Given, Run
from jaxalign.training import setup
from jaxalign.training.offload import offloaded
from jaxalign.training.on_policy import OnPolicyTrainer, load_prompts, run_updates
from jaxalign.training.optimizer import make_optimizer
from jaxalign.training.packing import packing_of
from jaxalign.training.rollout_engine import make_generator
from jaxalign.training.scoring import CausalPolicy, score_tokens
from jaxalign.training.setup import TrainResult
from jaxalign.training.state import create_state
from jaxalign.training.stops import with_stops
from jaxalign.training.update_rules import refuse_schedule_free


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


def train_policy(
    trainer_class: type[PolicyTrainer],
    config: Any,
    command: str,
    parts: Callable[[Any, Any], dict[str, Any]],
    given: Given,
) -> TrainResult:
    """A whole run of a trainer without a critic.

    Args:
      trainer_class: the algorithm.
      config: its configuration, an `OnPolicyConfig`.
      command: its name.
      parts: the policy's model and tokenizer -> the trainer's own fields (`reward` at least).
      given: live objects in place of what the configuration names; of `others`, `policy`, `tokenizer` and `engine`.

    Returns:
      The run folder, the last record of metrics and the model.

    Raises:
      UserError: anything wrong with configuration, files, rows or rewards, in one line.
    """
    policy, tokenizer, engine = (given.others[name] for name in ("policy", "tokenizer", "engine"))
    setup.check_live(policy, tokenizer, "policy")
    mesh = setup.start(config.run, config.mesh)
    key = jax.random.key(config.run.seed)
    with Run.open(config.run, config, command, given) as run:
        if policy is None:
            policy, tokenizer = setup.load_model(
                config.model, mesh, seed=config.run.seed, run=run, packing=config.train.packing
            )
        policy = with_stops(policy, config.data, tokenizer)
        own = parts(policy, tokenizer)
        train = config.train
        read = trainer_class.reads_reference(config)
        reference = setup.load_reference(config, policy, mesh, run, read=read)
        reference_definition, reference_params = models.split(reference)
        scorer, trained, frozen = setup.policy_of(policy, config.lora, mesh, key=jax.random.fold_in(key, 1))
        reference_params = reference_params if read else {}
        if train.offload:
            reference_params = offloaded(reference_params, own["reward"], frozen, mesh, run)
        optimizer, schedule = make_optimizer(
            config.optimizer, train.updates * train.epochs * train.minibatches, given.optimizer
        )
        state = create_state({"policy": trained}, optimizer)
        refuse_schedule_free(state.opt_state, f"{command}, which must sample from the weights that it trains")
        rollout_key = jax.random.fold_in(key, 2)
        trainer = trainer_class(
            config=config,
            run=run,
            mesh=mesh,
            frozen={"policy": frozen},
            tokenizer=tokenizer,
            **load_prompts(config, policy.config, tokenizer, run, mesh),
            state=state,
            key=rollout_key,
            generator=make_generator(config, scorer, frozen, tokenizer, rollout_key, run, engine),
            policy=scorer,
            reference_definition=reference_definition,
            reference=reference_params,
            optimizer=optimizer,
            schedules={"policy": schedule} if schedule else {},
            **own,
        )
        # The trainer has copies of what it trains: what nothing reads any more leaves the device.
        del policy, trained, reference, reference_params, state
        metrics = run_updates(trainer)
        model = setup.export_policy(
            run, scorer, trainer.state.params["policy"], frozen, tokenizer, config.lora
        )
        run.finish(metrics)
        return TrainResult(run.folder, metrics, model, tokenizer)
