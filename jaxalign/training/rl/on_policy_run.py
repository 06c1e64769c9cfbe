"""The run that all trainers which learn from their own samples share: open, load, update, export."""

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any

import jax
import optax

from jaxalign import models
from jaxalign.checkpoints import CheckpointStore
from jaxalign.data import collate_prompts
from jaxalign.errors import ConfigError
from jaxalign.processes import largest
from jaxalign.rollout import Engine
from jaxalign.runs import Given, Heartbeat, Profile, Run, StopFlag, records
from jaxalign.training.core import setup
from jaxalign.training.core.exports import chosen_state
from jaxalign.training.core.generate_setup import Generated, check_generates
from jaxalign.training.core.interval import Interval
from jaxalign.training.core.loading import load_data, row_batches
from jaxalign.training.core.loop import Interrupted, restore_callbacks, tell_saved
from jaxalign.training.core.loss_scale import with_loss_scale
from jaxalign.training.core.mesh_fit import check_rows
from jaxalign.training.core.open_run import OpenRun
from jaxalign.training.core.opening import tell_devices, tell_updates
from jaxalign.training.core.reward_source import build_reward
from jaxalign.training.core.scoring import CausalPolicy
from jaxalign.training.core.setup import TrainResult
from jaxalign.training.core.speed import Speed
from jaxalign.training.core.state import create_state
from jaxalign.training.core.stopwatch import Stopwatch
from jaxalign.training.core.update_rules import refuse_schedule_free
from jaxalign.training.rl.offload import offloaded
from jaxalign.training.rl.on_policy import OnPolicyTrainer
from jaxalign.training.rl.on_policy_config import OnPolicyConfig
from jaxalign.training.rl.policy_evaluation import evaluate_policy, generated
from jaxalign.training.rl.rollout_engine import make_generator
from jaxalign.training.rl.truncation import truncation_warning


class OnPolicyRun(OpenRun):
    """An open run, from which an algorithm takes the parts of its trainer."""

    def load_policy(self, live: Any, tokenizer: Any) -> tuple[Any, Any]:
        """As for every run; in exact mode where `rollout.exact` asks for it."""
        policy, tokenizer = super().load_policy(live, tokenizer)
        exact = self.config.rollout.exact
        if exact and self.mesh.size > 1:
            raise ConfigError(f"rollout.exact: it computes on one device, and the mesh has {self.mesh.size}")
        if exact and self.run.given.others["engine"] is not None:
            raise ConfigError("rollout.exact: an engine of your own (engine=) samples in its own way")
        return models.with_config(policy, exact=exact), tokenizer

    def reward(self, live: Any, policy: Any, tokenizer: Any, *, by_step: bool = False) -> Any:
        """The live reward, else that of `config.reward`; see `reward_source.build_reward`."""
        return build_reward(
            self.config.reward,
            live,
            mesh=self.mesh,
            run=self.run,
            batch_size=self.config.train.score_batch_size,
            vocabulary=policy.config.vocab_size,
            tokenizer=tokenizer,
            by_step=by_step,
        )[0]

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
        state = with_loss_scale(create_state(trained, optimizer), [policy.training_pass])
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
    check_generates(config, given)
    with setup.default_device(mesh), Run.open(config.run, config, command, given) as run:
        opened = OnPolicyRun(config, run, mesh, jax.random.key(config.run.seed))
        # What the trainer does not hold leaves the device with `begin`.
        trainer = begin(opened, *opened.load_policy(live, tokenizer))
        metrics = run_updates(trainer, generated(opened, trainer))
        policy, tokenizer = trainer.policy, trainer.tokenizer
        trained, frozen = trainer.state.params["policy"], trainer.frozen["policy"]
        model = setup.export_policy(run, policy, trained, frozen, tokenizer, config.lora)
        run.finish(metrics)
        return TrainResult(run.folder, metrics, models.with_config(model, exact=False), tokenizer)


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


def run_updates(trainer: OnPolicyTrainer, generate: Generated | None = None) -> dict[str, float]:
    """All updates, from the newest checkpoint where the run resumes; returns the last record.

    A record is of the updates since the one before, see `Interval`. Held-out prompts are evaluated by `generate` where
    there is one, else by `evaluate_policy`.
    """
    record: dict[str, float] = {}
    run, config = trainer.run, trainer.config
    if warning := truncation_warning(config):
        run.warn(warning)
        run.add_metadata(truncated_sampling=warning)
    total, every = config.train.updates, config.run
    eval_every = config.eval.generate.every if generate else every.eval_every

    def evaluate(number: int) -> dict[str, float]:
        if generate is None:
            return evaluate_policy(trainer, number)
        found, rows = generate(trainer.state, number)
        run.log_samples(number, rows)
        return found

    speed = Speed(run, trainer.mesh)
    with (
        closing(trainer.generator),
        setup.checkpoint_store(run) as store,
        StopFlag() as stop,
        Heartbeat(run, total) as heart,
        Profile(run) as profile,
    ):
        done, interval, before = _updates_done(trainer, store)
        heart.beat(done)
        if over := done >= total or bool(run.callbacks.stopped):
            # Empty where it was killed when nothing was left but to export.
            record = run.final_metrics() or before
        compiled = None if over else tell_updates(trainer)
        evaluated = evaluate(0) if not done and eval_every else {}
        if evaluated:
            run.log_metrics(0, evaluated)
            run.callbacks.tell("on_eval", 0, total, evaluated, trainer.state)
        for number in range(done + 1, done + 1 if over else total + 1):
            trainer.watch = Stopwatch()
            metrics, samples = profile.step(number, trainer.update, number)
            heart.beat(number)
            if compiled and number == done + 1:
                compiled()
            metrics |= speed.metrics(trainer.watch.flops, metrics.get("time/optimize_seconds", 0.0))
            metrics |= speed.decode_metrics(trainer.watch.decoding)
            metrics |= trainer.noted | trainer.learning_rates()
            trainer.warn_of_collapse(number, metrics)
            run.callbacks.tell("on_step", number, total, metrics, trainer.state)
            last = number == total or bool(run.callbacks.stopped)
            halted = largest(stop.signal_received or 0)
            # Also where a signal stops the run: it would not be made up for after the resume.
            due = last or (eval_every and number % eval_every == 0)
            interval.add(metrics)
            record = interval.means()
            if due:
                evaluated = evaluate(number)
                record |= evaluated
                run.callbacks.tell("on_eval", number, total, evaluated, trainer.state)
                last = last or bool(run.callbacks.stopped)
            if number == 1 or due or (every.log_every and number % every.log_every == 0):
                run.log_metrics(number, record)
                interval = Interval()
            shown = "score" if "objective/score" in metrics else "loss"
            value = metrics.get("objective/score", metrics.get("loss", float("nan")))
            run.progress(number, total, shown, value, metrics["time/tokens_per_second"])
            if last or (every.sample_every and number % every.sample_every == 0):
                run.log_samples(number, samples)
            if last or halted or (every.save_every and number % every.save_every == 0):
                kept = {
                    "interval": dataclasses.asdict(interval),
                    "callbacks": run.callbacks.state(),
                    "record": records.clean(record),
                }
                store.save(number, trainer.state, trainer.extra() | kept, metrics=record)
                tell_saved(run, store, number, total, record, trainer.state)
            if halted and not last:
                raise Interrupted(halted)
            if last:
                run.note_stopped(number)
                break
        trainer.state = chosen_state(run, store, trainer.state, store.latest_step() or 0)
    return record


def _updates_done(trainer: OnPolicyTrainer, store: CheckpointStore) -> tuple[int, Interval, dict[str, float]]:
    """The number of the newest checkpoint of a run that resumes, to which trainer and log go back, what it has not
    logged yet, and its latest record; else 0."""
    if not trainer.run.resumed:
        return 0, Interval(), {}
    if (found := store.restore_newest(trainer.state)) is None:
        trainer.run.rewind(-1)
        return 0, Interval(), {}
    done, state, extra = found
    trainer.restore(state, extra)
    restore_callbacks(trainer.run, extra)
    trainer.run.rewind(done)
    # Checkpoints of earlier versions have none: they logged single updates.
    return done, Interval(**extra.get("interval", {})), dict(extra.get("record", {}))
