"""What the trainers that learn from their own samples share: rollouts, scoring, passes over a rollout, saving.

A trainer adds what makes the algorithm: how rows are scored, and `update`.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxalign import models
from jaxalign.data import Example, packed_alike
from jaxalign.errors import UserError
from jaxalign.mesh import length_shards, row_shards
from jaxalign.models.flops import Pass
from jaxalign.processes import fetch
from jaxalign.rewards import RewardRequest
from jaxalign.rollout import Completions, Sampler
from jaxalign.rollout.trajectory import Rows
from jaxalign.runs import Run
from jaxalign.training.core import setup
from jaxalign.training.core.batch import Kind, TokenBatch, TokenRows
from jaxalign.training.core.generator import Generator
from jaxalign.training.core.loop import Batches
from jaxalign.training.core.loss_scale import of_taken_steps
from jaxalign.training.core.optimizer import steps_taken
from jaxalign.training.core.scoring import CausalPolicy
from jaxalign.training.core.state import TrainState
from jaxalign.training.core.step import make_update
from jaxalign.training.core.stopwatch import Stopwatch
from jaxalign.training.rl.collapse import collapse_signs
from jaxalign.training.rl.policy_evaluation import Evaluated
from jaxalign.training.rl.rollout_engine import importance, logp_gaps, server_gap
from jaxalign.training.rl.rollout_metrics import rollout_counts, rollout_metrics
from jaxalign.training.rl.shaped_rewards import RunningMoments, ShapedRewards, shaped_rewards
from jaxalign.training.rl.truncation import truncated_mass, truncation_of


@dataclass(kw_only=True)
class OnPolicyTrainer(Evaluated):
    """The live objects of one run. `state`, `moments` and the prompts' position are saved.

    Attributes:
      config: the algorithm's configuration, with `run`, `model`, `sampling` and `train`.
      run: the run folder.
      mesh: the devices.
      policy: how to score with the policy.
      frozen: leaves that are not trained; `frozen["policy"]` are the policy's.
      reward: see `jaxalign.rewards`.
      tokenizer: the policy's.
      prompts: where rollouts begin.
      held_out: prompts that are evaluated on, and never learnt from.
      state: trained leaves (`params["policy"]` are the policy's) and optimizer state.
      optimizer: of the trained leaves.
      key: source of all randomness.
      generator: samples from the policy.
      moments: of all scores seen.
      server_checked: whether this process has seen that the server has the policy's weights.
      server_warned: whether it has said that they are no longer near enough.
      noted: metrics of the latest rollout that are not of the algorithm.
      schedules: learning rate by optimizer step, of each part of the parameters that has its own.
      collapsed: signs of collapse that this process has warned of.
      watch: times the parts of the update.
    """

    config: Any
    run: Run
    mesh: Any
    policy: CausalPolicy
    frozen: Any
    reward: Any
    tokenizer: Any
    prompts: Batches
    held_out: Sequence[Example]
    state: TrainState
    optimizer: optax.GradientTransformation
    key: jax.Array
    generator: Generator
    moments: RunningMoments = field(default_factory=RunningMoments)
    server_checked: bool = False
    server_warned: bool = False
    noted: dict[str, float] = field(default_factory=dict)
    schedules: Mapping[str, Callable[[int], Any]] = field(default_factory=dict)
    collapsed: set[str] = field(default_factory=set)
    watch: Stopwatch = field(default_factory=Stopwatch)

    @abstractmethod
    def update(self, number: int) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """One rollout and its passes; returns metrics and a few samples as rows."""

    def learning_passes(self, number: int) -> list[Pass]:
        """The models' passes over the minibatches of an update, whose FLOPs are logged."""
        del number
        return [self.policy.training_pass]

    def make_step(self, loss: Callable, *, counts: Callable = rollout_counts, **options: Any) -> Callable:
        """The optimizer step of a loss over minibatches of a rollout; see `step.make_update` for arguments."""
        steps = self.config.train.accumulation_steps
        return make_update(loss, counts, self.optimizer, accumulation_steps=steps, **options)

    def sample(self, number: int, part: int = 0) -> tuple[Completions, RewardRequest]:
        """Completions of the next prompts, samples of a prompt together, and what a reward is asked about them.

        The randomness is that of the update's `number` and of the `part` of its rollout.
        """
        batch = self.prompts.next()
        sampling = self.config.sampling
        prompts = [list(p) for p in batch["prompts"]]
        # All parts of a rollout are drawn by the weights of its first.
        engine = self.generator.engine if part else self.generator.refresh(self.state.params["policy"])
        assert engine is not None
        key = jax.random.fold_in(self.key, number)
        key = jax.random.fold_in(key, part) if part else key
        completions = engine.generate(
            prompts, key=key, **sampling.arguments(stop_tokens=self.generator.stop_tokens)
        )
        if isinstance(engine, Sampler):
            self.watch.decoding.join(engine.traffic)
        if truncation_of(sampling):
            self.noted["rollout/truncated_mass"] = truncated_mass(completions)
        return completions, self.request_of(batch, completions, number, sampling.num_samples)

    def rewarded(self, request: RewardRequest, completions: Completions) -> ShapedRewards:
        """What completions earn, shaped as `config.reward` has it."""
        return shaped_rewards(self.reward, self.config.reward, request, completions, self.moments)

    def rollout_metrics(self, completions: Completions, rewards: ShapedRewards) -> dict[str, float]:
        """What the rollout looked like, and where the time of the update went."""
        return rollout_metrics(completions, rewards.rewards, rewards.raw) | self.watch.metrics(
            int(completions.lengths.sum())
        )

    @property
    def row_multiple(self) -> int:  # type: ignore[override]
        """What the width of rows is a multiple of: few widths, and the same part of a row for each device."""
        return max(16, length_shards(self.mesh))

    def score_rows(self, rows: Rows, score: Callable[[TokenBatch], Any]) -> Any:
        """`score` over all rows, in batches of one shape.

        Args:
          rows: N rows.
          score: batch on the mesh -> a tree of arrays, one row each.

        Returns:
          The tree on the host, with N rows.
        """
        count = len(rows.lengths)
        # Filled up to what the devices share evenly.
        shards = row_shards(self.mesh)
        size = -(-min(self.config.train.score_batch_size, count) // shards) * shards
        batches = self._on_mesh([rows.batch(start, size) for start in range(0, count, size)], TokenBatch)
        parts = [score(batch) for batch in batches]
        # Fetched when all are under way, so that the device does not wait for the host in between.
        return jax.tree.map(lambda *x: np.concatenate(x)[:count], *fetch(parts))

    def check_logps(
        self, number: int, rows: Rows, logps: np.ndarray, completions: Completions
    ) -> dict[str, float]:
        """How far the sampler's log-probs are from the training forward's, as metrics (see `logp_gaps`).

        Raises:
          UserError: before the first update, where it is further than is allowed. Also before the first one of a
            resumed run, where a server has just been given the policy's weights.
        """
        gaps = logp_gaps(rows, logps, completions)
        self.check_gaps(number, gaps)
        return gaps

    def weights(
        self, cap: float, rows: Rows, logps: np.ndarray, mask: np.ndarray, completions: Completions
    ) -> np.ndarray:
        """Importance weights [N, T] as the loss asks for them; their mean over counted tokens is a metric."""
        loss = self.config.loss
        options = {"level": loss.weighs, "mode": loss.importance_mode}
        found = importance(cap, rows, logps, mask, completions, **options)
        self.noted["rollout/importance_mean"] = float(found[mask].mean()) if mask.any() else 1.0
        return found

    def must_check(self, number: int) -> bool:
        """Whether the log-probs of this update's rollout must be checked before its first step."""
        engine = self.config.rollout.engine
        return number == 1 or not (engine.kind == "local" or self.server_checked or engine.allow_stale)

    def check_gaps(self, number: int, gaps: Mapping[str, float]) -> None:
        """Raises, or warns once, where these differences are larger than is allowed; see `check_logps`."""
        engine = self.config.rollout.engine
        if self.config.rollout.exact:
            if (gap := gaps["rollout/logp_gap"]) != 0:
                raise UserError(
                    f"update {number}: the log-probs of sampler and trainer differ by {gap:.3g} nats, and "
                    "rollout.exact promises 0; this device or version of JAX computes the same program in two ways"
                )
            return
        if engine.kind == "local":
            computed = models.operand_dtype(self.policy.definition.config)
            int8 = self.config.rollout.int8
            # Rounding moves single tokens by tenths of a nat: only the mean tells a wrong model from a rounded one.
            rounded = int8 or computed != jnp.float32
            default = 0.05 if int8 else 0.1 if rounded else 1e-3
            tolerance = self.config.train.logp_tolerance or default
            gap = gaps["rollout/logp_gap_mean" if rounded else "rollout/logp_gap"]
            if number == 1 and not gap <= tolerance:
                raise UserError(
                    f"the log-probs of sampler and trainer differ by {gap:.3g} nats"
                    f"{' in the mean' if rounded else ''}, more than train.logp_tolerance = {tolerance:g}; the update "
                    "would not be on-policy"
                    f"{'' if computed == jnp.float32 else '; raise it, or set model.compute_dtype=float32'}"
                )
            return
        wrong = server_gap(engine, gaps)
        if wrong and self.must_check(number):
            raise UserError(
                f"{wrong}; the server has another model, or reports log-probs before temperature (vLLM: start it with "
                "--logprobs-mode processed_logprobs)"
            )
        if wrong and not self.server_warned:
            self.run.warn(f"update {number}: {wrong}; the update is off-policy")
            self.server_warned = True
        self.server_checked = True

    def passes(
        self,
        number: int,
        rollout: TokenRows,
        step: Callable,
        *,
        counted: np.ndarray | None = None,
    ) -> dict[str, float]:
        """Epochs of shuffled minibatches over a rollout.

        Args:
          number: of the update, which the order depends on.
          rollout: arrays on the host, with one row a completion (or a pair of them).
          step: `step(state, frozen, batch, key) -> (state, metrics)`, with `step_metrics`.
          counted: bool, rows that count, to be dealt out evenly over the minibatches. None leaves them as they
            come; those count whose mask holds a token.

        Returns:
          Means of the metrics over all optimizer steps. A minibatch in which no row counts is none; where there are
          only such, all that is known is that there were 0 steps.

        Raises:
          UserError: a loss or gradient that is not finite.
        """
        self.watch.end_scoring()
        fetched = fetch(self._steps(number, rollout, step, counted))
        if not all(m["finite"] for m in fetched):
            raise UserError(
                f"update {number}: the loss or the gradient norm is not finite; the last saved checkpoint is good "
                "(a smaller learning rate or float32 compute may help)"
            )
        if not fetched:
            self.run.warn(f"update {number}: skipped, because the loss reads no completion of it")
            return {"policy/steps": 0.0}
        if spikes := sum(m.get("spike", 0.0) for m in fetched):
            self.run.warn(
                f"update {number}: {spikes:.0f} of {len(fetched)} steps skipped (gradient norm spikes)"
            )
        taken = [of_taken_steps(m) for m in fetched]
        metrics = {
            name: float(np.mean([m[name] for m in taken if name in m]))
            for name in sorted({name for m in taken for name in m} - {"finite"})
        }
        metrics["policy/ratio_max"] = float(np.max([m["policy/ratio_max"] for m in fetched]))
        # Before the first step the policy is the one that sampled, so the first ratio is 1.
        metrics["policy/first_ratio"] = float(fetched[0]["policy/ratio_mean"])
        metrics["policy/steps"] = float(len(fetched))
        return metrics

    def single_step(
        self, number: int, rollout: TokenRows, step: Callable, *, checked: bool
    ) -> dict[str, float]:
        """`passes` of one step on all of a rollout; checks the `sampler_gaps` of its metrics unless `checked`."""
        metrics = self.passes(number, rollout, step)
        if metrics["policy/steps"]:
            metrics["rollout/logp_gap"] = metrics.pop("rollout/logp_gap_max")
            if not checked:
                self.check_gaps(number, metrics)
        return metrics

    def _steps(
        self, number: int, rollout: TokenRows, step: Callable, counted: np.ndarray | None
    ) -> list[dict[str, jax.Array]]:
        """The optimizer steps of `passes`, and the metrics of each."""
        train = self.config.train
        rows = len(rollout.lengths)
        size = rows // train.minibatches
        seen: list[dict[str, jax.Array]] = []
        known = np.asarray(rollout.mask.any(axis=1) if counted is None else counted)
        if not known.any():
            return seen
        for epoch in range(train.epochs):
            key = jax.random.fold_in(jax.random.fold_in(self.key, number), 1_000_003 + epoch)
            order = np.asarray(jax.random.permutation(key, rows))
            if counted is not None:
                order = order[np.argsort(~counted[order], kind="stable")]
                order = order.reshape(size, train.minibatches).T.ravel()
            before = len(seen)
            picks = [order[start : start + size] for start in range(0, rows, size)]
            picks = [pick for pick in picks if known[pick].any()]
            minibatches = [jax.tree.map(lambda x, p=pick: x[p], rollout).columns() for pick in picks]
            passes = self.learning_passes(number)
            self.watch.flops += sum(each.flops(batch) for each in passes for batch in minibatches)
            for batch in self._on_mesh(minibatches, type(rollout), train.accumulation_steps):
                self.state, metrics = step(self.state, self.frozen, batch, self.key)
                seen.append(metrics)
            if train.target_kl and epoch + 1 < train.epochs:
                recent = [float(m["policy/approx_kl"]) for m in seen[before:]]
                if np.mean(recent) > train.target_kl:
                    break
        return seen

    def _on_mesh(
        self, batches: Sequence[Mapping[str, Any]], kind: type[Kind], num_microbatches: int = 1
    ) -> Iterator[Kind]:
        """Batches of one shape on the mesh, one after the other, with layouts of one shape where rows are packed."""
        packing = self.config.train.packing
        if packing:
            batches = packed_alike(batches, num_microbatches=num_microbatches, **setup.shards_of(self.mesh))
        return (
            setup.on_mesh(batch, kind, self.mesh, packing=packing, num_microbatches=num_microbatches)
            for batch in batches
        )

    def samples(self, request: RewardRequest, scores: np.ndarray) -> list[dict[str, Any]]:
        """The first completions as rows of samples.jsonl."""
        return [
            {name: values[i] for name, values in request.shown.items()}
            | {"prompt": request.prompts[i], "completion": request.completions[i], "score": float(scores[i])}
            for i in range(min(self.config.run.sample_rows, len(scores)))
        ]

    def learning_rates(self) -> dict[str, float]:
        """The learning rate of the last step of each part, 0 before its first, as metrics."""
        taken = {name: steps_taken(self.state.opt_state, name) for name in self.schedules}
        rates = {
            n: float(schedule(taken[n] - 1)) if taken[n] else 0.0 for n, schedule in self.schedules.items()
        }
        return {f"{'value' if n == 'critic' else n}/learning_rate": rate for n, rate in rates.items()}

    def warn_of_collapse(self, number: int, metrics: Mapping[str, float]) -> None:
        """Warns of each sign of a collapse once."""
        for name, sign in collapse_signs(self.config.collapse, metrics):
            if name not in self.collapsed:
                self.run.warn(f"update {number}: {sign}")
            self.collapsed.add(name)

    # --- saving -----------------------------------------------------------------------------

    def extra(self) -> dict[str, Any]:
        """What the checkpoint holds beside arrays."""
        moments = self.moments
        return {
            "prompts": dict(self.prompts.state()),
            "moments": [moments.count, moments.mean, moments.square],
        }

    def restore(self, state: TrainState, extra: Mapping[str, Any]) -> None:
        """The inverse of saving `state` with `extra()`."""
        self.state = state
        self.prompts.restore(extra["prompts"])
        self.moments = RunningMoments(*extra["moments"])
