"""The run that all trainers which learn from their own samples share: open, load, update, export."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

from jaxalign.data import collate_prompts
from jaxalign.rollout import Engine
from jaxalign.runs import Given, Run
from jaxalign.training.core import setup
from jaxalign.training.core.loading import load_data, row_batches
from jaxalign.training.core.mesh_fit import check_rows
from jaxalign.training.core.open_run import OpenRun
from jaxalign.training.core.opening import tell_devices
from jaxalign.training.core.scoring import CausalPolicy
from jaxalign.training.core.setup import TrainResult
from jaxalign.training.core.state import create_state
from jaxalign.training.core.update_rules import refuse_schedule_free
from jaxalign.training.rl.offload import offloaded
from jaxalign.training.rl.on_policy import OnPolicyTrainer, run_updates
from jaxalign.training.rl.on_policy_config import OnPolicyConfig
from jaxalign.training.rl.rollout_engine import make_generator


class OnPolicyRun(OpenRun):
    """An open run, from which an algorithm takes the parts of its trainer."""

    def offloaded(self, reference: Any, reward: Any, policy: Any) -> Any:
        """The reference's leaves where `train.offload` has them wait; see `offload.offloaded`."""
        if not self.config.train.offload:
            return reference
        return offloaded(reference, reward, policy, self.mesh, self.run)

    def parts(
        self,
        command: str,
        policy: CausalPolicy,
        shape: Any,
        tokenizer: Any,
        *,
        trained: Mapping[str, Any],
        frozen: Mapping[str, Any],
        optimizer: optax.GradientTransformation,
        schedules: Mapping[str, Any],
    ) -> dict[str, Any]:
        """The fields of an `OnPolicyTrainer` that every algorithm fills alike.

        Args:
          command: the algorithm's.
          policy: how to score with the policy.
          shape: its `ModelConfig`.
          tokenizer: its tokenizer.
          trained, frozen: leaves by part, one of which is "policy".
          optimizer: of the trained ones.
          schedules: see `OnPolicyTrainer`.
        """
        state = create_state(trained, optimizer)
        refuse_schedule_free(state.opt_state, f"{command}, which must sample from the weights that it trains")
        config, run, key = self.config, self.run, self.fold(2)
        engine: Engine | None = run.given.others["engine"]
        return {
            "config": config,
            "run": run,
            "mesh": self.mesh,
            "policy": policy,
            "frozen": frozen,
            "tokenizer": tokenizer,
            **load_prompts(config, shape, tokenizer, run, self.mesh),
            "state": state,
            "optimizer": optimizer,
            "schedules": schedules,
            "key": key,
            "generator": make_generator(config, policy, frozen["policy"], tokenizer, key, run, engine),
        }


def fit_on_policy(
    command: str, config: Any, given: Given, begin: Callable[[OnPolicyRun, Any, Any], OnPolicyTrainer]
) -> TrainResult:
    """A whole run.

    Args:
      command: its name.
      config: an `OnPolicyConfig`.
      given: live objects in place of what the configuration names; of `others`, `policy`, `tokenizer` and `engine`.
      begin: (open run, policy, tokenizer) -> the trainer, which has copies of what it trains.

    Returns:
      The run folder, the last record of metrics and the policy.

    Raises:
      UserError: anything wrong with configuration, files, rows or rewards, in one line.
    """
    live, tokenizer = given.others["policy"], given.others["tokenizer"]
    setup.check_live(live, tokenizer, "policy")
    mesh = setup.start(config.run, config.mesh)
    check_rows(config, mesh)
    with Run.open(config.run, config, command, given) as run:
        opened = OnPolicyRun(config, run, mesh, jax.random.key(config.run.seed))
        # What the trainer does not hold leaves the device with `begin`.
        trainer = begin(opened, *opened.load_policy(live, tokenizer))
        metrics = run_updates(trainer)
        policy, tokenizer = trainer.policy, trainer.tokenizer
        trained, frozen = trainer.state.params["policy"], trainer.frozen["policy"]
        model = setup.export_policy(run, policy, trained, frozen, tokenizer, config.lora)
        run.finish(metrics)
        return TrainResult(run.folder, metrics, model, tokenizer)


def load_prompts(
    config: OnPolicyConfig, model_config: Any, tokenizer: Any, run: Run, mesh: Any
) -> dict[str, Any]:
    """`prompts` of a run, in the order of its seed, and those `held_out`; what they are goes into its metadata.

    Raises:
      UserError: anything wrong with files or rows, or a prompt that leaves no room for its completion.
    """
    seed, room = config.run.seed, config.sampling.max_new_tokens
    data = load_data(run, config.data, "prompt", tokenizer, model_config, seed=seed, new_tokens=room)
    tell_devices(run, mesh)
    prompts = row_batches(data.train, batch_size=config.train.prompts, seed=seed, collate=collate_prompts)
    return {"prompts": prompts, "held_out": data.validation}
