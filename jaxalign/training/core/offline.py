"""The run that all training on a fixed data set shares: open, load, step, evaluate, sample, save, export.

A training call hands `fit` a function that loads its models and data and says what it trains, on what, and by which
loss: a `Task`. Such a function reads top to bottom as the algorithm; `sft.train_sft` has the shortest.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

import jax
import optax
from jax.sharding import Mesh

from jaxalign.data import Dataset, eval_batches
from jaxalign.data.batches import Collate
from jaxalign.data.config import Kind
from jaxalign.mesh import row_shards
from jaxalign.models.flops import Pass
from jaxalign.runs import Given, Run
from jaxalign.training.core import loading, setup
from jaxalign.training.core.batch import TokenRows
from jaxalign.training.core.generate_setup import Generated, check_generates, generate_evaluation, logged
from jaxalign.training.core.generator import Generator, samples_of
from jaxalign.training.core.held_out import evaluation
from jaxalign.training.core.loading import load_data
from jaxalign.training.core.loop import Batches, Loop, TrainConfig
from jaxalign.training.core.loss_scale import with_loss_scale
from jaxalign.training.core.mesh_fit import check_rows
from jaxalign.training.core.open_run import OpenRun
from jaxalign.training.core.opening import tell_devices
from jaxalign.training.core.optimizer import make_optimizer
from jaxalign.training.core.scoring import CausalPolicy
from jaxalign.training.core.setup import TrainResult
from jaxalign.training.core.speed import Speed
from jaxalign.training.core.state import TrainState, create_state
from jaxalign.training.core.step import Batch, CountFunction, LossFunction, make_update

Result = TypeVar("Result", bound=TrainResult)
Evaluation = Callable[[TrainState], dict[str, float]]
Samples = Callable[[TrainState], list[dict[str, Any]]]


class Feed(Protocol):
    """Training batches on the host, and how one comes to lie on the mesh."""

    @property
    def batches(self) -> Batches: ...
    def place(self, columns: Mapping[str, Any]) -> Batch: ...


@dataclass(frozen=True, kw_only=True)
class Task(Generic[Result]):
    """What a run trains, on what, and by which loss.

    Attributes:
      trained: the leaves that training begins with. The state has a copy; `fit` lets go of these.
      frozen: what else the loss reads.
      feed: the training batches.
      loss, counts: see `step.make_update`.
      passes: the models' passes over a batch, whose FLOPs are logged.
      finish: (final state, metrics) -> what the call returns, its export written.
      evaluate: metrics of held-out rows; None where there are none.
      generate: the evaluation by generation, see `loop.Loop`; None where there is none.
      sample: rows of samples.jsonl.
      draw: see `loop.Loop`.
      prepare: (trained leaves, frozen, batch on the mesh) -> batch, before each step; for statistics over all rows.
      lift: see `step.make_update`.
      optimizer: number of steps -> (transformation, learning rate by step); None takes the section `optimizer`.
      create_state: (trained leaves, transformation) -> the fresh state.
      key: of the updates; None takes the run's.
    """

    trained: Any
    frozen: Any
    feed: Feed
    loss: LossFunction
    counts: CountFunction
    passes: Sequence[Pass]
    finish: Callable[[TrainState, dict[str, float]], Result]
    evaluate: Evaluation | None = None
    generate: Generated | None = None
    sample: Samples | None = None
    draw: Callable[[TrainState, Mapping[str, Any]], Mapping[str, Any]] | None = None
    prepare: Callable[[Any, Any, Batch], Batch] | None = None
    lift: Callable[[Callable], Callable] | None = None
    optimizer: Callable[[int], tuple[optax.GradientTransformation, optax.Schedule | None]] | None = None
    create_state: Callable[[Any, optax.GradientTransformation], TrainState] = create_state
    key: jax.Array | None = None


def fit(command: str, config: Any, given: Given, begin: Callable[["OfflineRun"], Task[Result]]) -> Result:
    """A whole run.

    Args:
      command: its name.
      config: a dataclass with the sections `run`, `mesh`, `train` and `optimizer`, and those that `begin` reads.
      given: live objects in place of what the configuration names.
      begin: loads models and data and composes the task.

    Returns:
      What the task's `finish` returns.

    Raises:
      UserError: anything wrong with arguments, configuration, files or rows, in one line.
    """
    for name in ("model", "policy"):
        if name in given.others:
            setup.check_live(given.others[name], given.others["tokenizer"], name)
    mesh, train = setup.start(config.run, config.mesh), config.train
    check_rows(config, mesh)
    check_generates(config, given)
    key = jax.random.key(config.run.seed)
    with setup.default_device(mesh), Run.open(config.run, config, command, given) as run:
        task = begin(OfflineRun(config, run, mesh, key))
        total = train.total_steps(task.feed.batches.per_epoch)
        chain = task.optimizer or partial(_optimizer, config.optimizer, given.optimizer)
        rule, schedule = chain(total)
        step = make_update(
            task.loss, task.counts, rule, accumulation_steps=train.accumulation_steps, lift=task.lift
        )
        feed, frozen, prepare = task.feed, task.frozen, task.prepare
        step_key = jax.random.fold_in(key, 3) if task.key is None else task.key

        def update(state: TrainState, columns: Mapping[str, Any]) -> tuple[TrainState, dict[str, jax.Array]]:
            batch = feed.place(columns)
            if prepare is not None:
                batch = prepare(state.params, frozen, batch)
            return step(state, frozen, batch, step_key)

        loop = Loop(
            run=run,
            store=setup.checkpoint_store(run),
            batches=feed.batches,
            draw=task.draw,
            update=update,
            total_steps=total,
            evaluate=task.evaluate,
            generate=task.generate,
            generate_every=config.eval.generate.every if task.generate else 0,
            sample=task.sample,
            learning_rate=schedule,
            speed=Speed(run, mesh, task.passes),
        )
        state = with_loss_scale(task.create_state(task.trained, rule), task.passes)
        # The state has copies of what is trained: the model that it began with leaves the device.
        task = dataclasses.replace(task, trained=None)
        state, metrics = loop.fit(state)
        result = task.finish(state, metrics)
        run.finish(result.metrics)
        return result


def _optimizer(section: Any, given: Any, total: int) -> Any:
    return make_optimizer(section, total, given)


@dataclass(frozen=True, kw_only=True)
class DatasetFeed:
    """The batches of a data set: training ones by the seed's order, held-out ones as they lie. A `Feed`.

    Attributes:
      data: its examples.
      collate: examples and their numbers -> columns of a batch, on the host.
      kind: what the loss reads.
      batches: training batches, on the host.
      mesh: the devices.
      train: sizes.
      arrange: how the columns are laid out for the loss.
      attach: (columns, training=...) -> more columns, of training or held-out rows; None adds none.
      head: whether a vocabulary head reads the rows.
    """

    data: Dataset
    collate: Collate
    kind: type[TokenRows]
    batches: Batches
    mesh: Mesh
    train: TrainConfig
    arrange: Callable[[Mapping[str, Any]], dict[str, Any]] = dict
    attach: Callable[..., dict[str, Any]] | None = None
    head: bool = True

    def place(self, columns: Mapping[str, Any], *, training: bool = True) -> Batch:
        """A batch on the mesh."""
        columns = self.arrange(columns)
        if self.attach is not None:
            columns = self.attach(columns, training=training)
        return setup.on_mesh(
            columns,
            self.kind,
            self.mesh,
            packing=self.train.packing,
            num_microbatches=self.train.accumulation_steps if training else 1,
            head=self.head,
        )

    @property
    def eval_size(self) -> int:
        """Rows of a held-out batch."""
        return self.train.eval_batch_size or self.train.batch_size

    def held_out(self, *, or_training: bool = False) -> Iterator[Mapping[str, Any]]:
        """The held-out batches on the host, or those of the training rows where asked for and none are held out."""
        rows = self.data.validation or (self.data.train if or_training else ())
        return eval_batches(rows, self.eval_size, self.collate, multiple=row_shards(self.mesh))

    def evaluation(self, evaluate_batch: Callable[..., Any], frozen: Any) -> Evaluation | None:
        """`step.make_evaluation`'s function over all held-out batches; None where there are none."""
        if not len(self.data.validation):
            return None
        place = partial(self.place, training=False)
        return evaluation(evaluate_batch, self.held_out, frozen, place, self.train.eval_batches)


class OfflineRun(OpenRun):
    """An open run, from which a task takes its parts. Of its keys 3 is of the updates and 2 of the samples."""

    def load_data(self, kind: Kind, tokenizer: Any, shape: Any) -> Dataset:
        """The examples of `config.data`, for a model of this shape."""
        data = load_data(self.run, self.config.data, kind, tokenizer, shape, seed=self.config.run.seed)
        tell_devices(self.run, self.mesh)
        return data

    def collate(self, collate: Collate, data: Dataset) -> Collate:
        """`collate` for batches of this data set; see `loading.collate_of`."""
        return loading.collate_of(collate, data.train, packing=self.config.train.packing)

    def feed(
        self,
        data: Dataset,
        collate: Collate,
        kind: type[TokenRows],
        *,
        least: int = 1,
        copies: int = 1,
        **options: Any,
    ) -> DatasetFeed:
        """The batches of a data set.

        Args:
          data: its examples.
          collate: as `OfflineRun.collate` returns it.
          kind: what the loss reads.
          least, copies: see `loading.training_batches`.
          options: fields of `DatasetFeed`.
        """
        train, seed = self.config.train, self.config.run.seed
        batches = loading.training_batches(
            train, data.train, seed=seed, collate=collate, mesh=self.mesh, least=least, copies=copies
        )
        return DatasetFeed(
            data=data, collate=collate, kind=kind, batches=batches, mesh=self.mesh, train=train, **options
        )

    def samples(self, policy: CausalPolicy, frozen: Any, tokenizer: Any, data: Dataset) -> Samples:
        """What the policy writes to the first prompts of the data."""
        config = self.config
        positions = policy.definition.config.max_positions
        sampling, prompts = samples_of(
            config.sampling, data.first(config.run.sample_rows), positions, self.run
        )
        generator = Generator(policy, frozen, sampling, tokenizer, self.fold(2))
        return lambda state: generator.samples(state.params, prompts, int(state.step))

    def generated(
        self,
        policy: CausalPolicy,
        frozen: Any,
        tokenizer: Any,
        feed: DatasetFeed,
        reference: tuple[Any, Any] | None = None,
    ) -> Generated | None:
        """What the policy writes to held-out prompts, measured; None where `eval.generate.every` is 0.

        Args:
          policy, frozen, tokenizer, reference: see `generate_evaluation`.
          feed: the run's batches.
        """
        if not self.config.eval.generate.every:
            return None
        evaluation = generate_evaluation(
            self,
            policy,
            frozen,
            tokenizer,
            feed.data.validation,
            updates=self.config.train.total_steps(feed.batches.per_epoch),
            reference=reference,
        )
        return logged(self.run, lambda state, step: evaluation(state.params, step))

    def export_policy(
        self, policy: CausalPolicy, frozen: Any, tokenizer: Any
    ) -> Callable[[TrainState, dict[str, float]], TrainResult]:
        """For `Task.finish`: writes the policy's export."""

        def finish(state: TrainState, metrics: dict[str, float]) -> TrainResult:
            lora = self.config.lora
            model = setup.export_policy(self.run, policy, state.params, frozen, tokenizer, lora)
            return TrainResult(self.run.folder, metrics, model, tokenizer)

        return finish
