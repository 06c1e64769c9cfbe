"""What one dimension of a TFPO run learns from: comparisons, their token rewards, and how its doctor begins."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxalign.data import Dataset, chat_of, collate_comparisons, eval_batches
from jaxalign.data.batches import Collate
from jaxalign.data.chat import ChatFormat
from jaxalign.errors import ConfigError
from jaxalign.llmdoctor.tfpo_config import TFPOConfig
from jaxalign.llmdoctor.tfpo_parts import (
    DoctorPatientPair,
    check_identical,
    completion_end,
    ended_fraction,
    start_sums,
    terminated,
    value_head,
)
from jaxalign.llmdoctor.tfpo_step import TFPOBatch
from jaxalign.llmdoctor.token_rewards import TokenRewardTable, Wanted, token_reward_tables
from jaxalign.mesh import row_shards
from jaxalign.runs import Run, RunPart
from jaxalign.training.core import loading, setup
from jaxalign.training.core.batch import pair_axis
from jaxalign.training.core.loading import dated, load_data, refuse_stream
from jaxalign.training.core.loop import Batches
from jaxalign.training.core.opening import tell_devices


@dataclass(frozen=True)
class Beginning:
    """How a doctor begins on a data set.

    Attributes:
      collate: examples and their numbers -> batch.
      value: leaves of a fresh head of log-values, but for its horizon.
      horizon: of that head, tokens, float32.
      started: summed log-probs [N, 2] of the held-out responses under the doctor as it begins, nats.
    """

    collate: Collate
    value: dict[str, Any]
    horizon: jax.Array
    started: np.ndarray


@dataclass
class Dimension:
    """A dimension of preference in a run; an iterator of its training batches (`loop.Batches`), on the host.

    Attributes:
      name: of the dimension.
      config: of a run of this dimension alone.
      run: where its facts are noted.
      mesh: the devices.
      data: its comparisons.
      end: the ids that a whole response ends with.
      table: its token rewards.
      begun: set by `begin`.
    """

    name: str
    config: TFPOConfig
    run: Run
    mesh: Mesh
    data: Dataset
    end: tuple[int, ...]
    table: TokenRewardTable
    begun: Beginning = field(init=False)
    _batches: Batches = field(init=False)

    def begin(self, begun: Beginning) -> None:
        """The doctor is there: batches can be made."""
        self.begun = begun
        self._batches = self.ordered()
        ramp, horizon = float(begun.value["ramp"]), float(begun.horizon)
        self.run.add_metadata(value_start={"ramp": ramp, "horizon": horizon})

    def ordered(self) -> Batches:
        """The batches from the first on, as the data has them."""
        config = self.config
        return loading.training_batches(
            config.train, self.data.train, seed=config.run.seed, collate=self.begun.collate, mesh=self.mesh
        )

    @property
    def per_epoch(self) -> float:
        """Batches of an epoch."""
        return self._batches.per_epoch

    def next(self) -> dict[str, Any]:
        """The next batch, with rewards."""
        return self.rewarded(self._batches.next(), training=True)

    def state(self) -> Mapping[str, Any]:
        """The position after the last batch returned."""
        return self._batches.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes to a saved position."""
        self._batches.restore(state)

    def rewarded(self, columns: Mapping[str, Any], *, training: bool) -> dict[str, Any]:
        """The columns of a `TFPOBatch`; of held-out pairs with `start_logps`."""
        columns = self.table.attached(pair_axis(columns), training=training)
        columns["terminated"] = terminated(columns, self.end)
        if not training:
            columns["start_logps"] = self.begun.started[np.asarray(columns["row_ids"])].astype(np.float32)
        return columns

    def placed(self, columns: Mapping[str, Any], *, training: bool = False) -> TFPOBatch:
        """A batch of comparisons with rewards on the mesh."""
        train = self.config.train
        return setup.on_mesh(
            self.rewarded(columns, training=training),
            TFPOBatch,
            self.mesh,
            packing=train.packing,
            num_microbatches=train.accumulation_steps if training else 1,
        )

    def held_out(self) -> Any:
        """The batches of an evaluation, without rewards."""
        train = self.config.train
        size = train.eval_batch_size or train.batch_size
        return eval_batches(self.data.validation, size, self.begun.collate, multiple=row_shards(self.mesh))


def load_dimensions(
    config: TFPOConfig, doctor_patient: DoctorPatientPair, mesh: Mesh, run: Run
) -> list[Dimension]:
    """The dimensions of a run: the comparisons of each, and the token rewards of all by one pass of the patient.

    Raises:
      UserError: anything wrong with files or rows; labels that are one.
    """
    chat = chat_of(dated(run, config.data), doctor_patient.tokenizer)
    end = completion_end(chat)
    found: list[tuple[str, TFPOConfig, Run, Dataset]] = []
    datasets: dict[str, Dataset] = {}
    for name, own in config.each().items():
        part = RunPart(run, name) if config.dimensions else run
        label = own.data.dimension
        if label not in datasets:
            datasets[label] = _comparisons(own, doctor_patient, part, end)
        else:
            data = datasets[label]
            part.add_metadata(data=data.summary(), ended_fraction=ended_fraction(data, end))
        found.append((name, own, part, datasets[label]))
    _check_labels(datasets)
    tell_devices(run, mesh)
    wanted = [
        Wanted(own.rewards, data, f"token_rewards-{name}.html" if config.dimensions else Wanted.view, part)
        for name, own, part, data in found
    ]
    tables = _tables(config, wanted, chat, doctor_patient, mesh, run)
    return [
        Dimension(name, own, part, mesh, data, end, table)
        for (name, own, part, data), table in zip(found, tables, strict=True)
    ]


def _comparisons(
    config: TFPOConfig, doctor_patient: DoctorPatientPair, run: Run, end: tuple[int, ...]
) -> Dataset:
    """The comparisons by one label of the data."""
    shape, seed = doctor_patient.doctor_shape, config.run.seed
    data = load_data(run, config.data, "comparison", doctor_patient.tokenizer, shape, seed=seed)
    refuse_stream(data, "tfpo")
    check_identical(data.counts, config, run)
    ended = ended_fraction(data, end)
    if config.loss.resolved().pin_terminal and not ended:
        run.warn("no completion ends with an end token, so loss.pin_terminal has no effect")
    run.add_metadata(data=data.summary(), ended_fraction=ended)
    return data


def _check_labels(datasets: Mapping[str, Dataset]) -> None:
    """Two labels are two: each gives other comparisons.

    Raises:
      ConfigError: of data that holds one label, naming both.
    """
    first, *others = datasets
    for label in others:
        if datasets[label].files == datasets[first].files:
            raise ConfigError(
                f"dimensions: the labels {first} and {label} give the same comparisons, so the data seem to have "
                "only one label; to use it for all dimensions, pass a list of names: --dimensions='[first, "
                "second]'"
            )


def _tables(
    config: TFPOConfig,
    wanted: Sequence[Wanted],
    chat: ChatFormat,
    doctor_patient: DoctorPatientPair,
    mesh: Mesh,
    run: Run,
) -> list[TokenRewardTable]:
    tables = token_reward_tables(
        wanted,
        chat,
        doctor_patient.scoring_patient,
        mesh=mesh,
        folder=run.folder / "token_rewards",
        packing=config.train.packing,
        run=run,
    )
    for each, table in zip(wanted, tables, strict=True):
        if each.run is not None:
            each.run.add_metadata(token_rewards=dict(table.summary()))
    return tables


def begin_all(dimensions: Sequence[Dimension], doctor: Any, mesh: Mesh, *, key: jax.Array) -> None:
    """Begins every dimension with the doctor; what depends on data alone is made once for all that share them."""
    made: dict[int, Beginning] = {}
    for part in dimensions:
        if id(part.data) not in made:
            made[id(part.data)] = _beginning(part.config, part.data, doctor, mesh, key)
        part.begin(made[id(part.data)])


def _beginning(config: TFPOConfig, data: Dataset, doctor: Any, mesh: Mesh, key: jax.Array) -> Beginning:
    collate = loading.collate_of(collate_comparisons, data.train, packing=config.train.packing)
    value = value_head(config, doctor, data, collate, mesh, key=key)
    horizon = value.pop("horizon")
    return Beginning(collate, value, horizon, start_sums(config, doctor, data.validation, collate, mesh)[0])
