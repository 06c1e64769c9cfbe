"""Preference training: a policy from comparisons or labels, without a reward model."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from jaxalign import models
from jaxalign.data import (
    Dataset,
    collate_comparisons,
    collate_labels,
    eval_batches,
)
from jaxalign.data.batches import Collate
from jaxalign.errors import ConfigError
from jaxalign.runs import Given, Run
from jaxalign.training import setup
from jaxalign.training.data import load_data, refuse_stream
from jaxalign.training.generator import Generator, samples_of
from jaxalign.training.loop import Batches, Loop, evaluation
from jaxalign.training.opening import tell_devices
from jaxalign.training.optimizer import make_optimizer
from jaxalign.training.own_loss import check_own_loss
from jaxalign.training.packing import packing_of
from jaxalign.training.pairs import flatten, pair_axis, question_axis, valid_rows
from jaxalign.training.preference_config import DPOConfig, DPOLossConfig
from jaxalign.training.preference_step import completion_sums, make_preference_loss, whole_batch_statistics
from jaxalign.training.reference import ReferenceTable, reference_table
from jaxalign.training.scoring import score_tokens
from jaxalign.training.setup import TrainResult
from jaxalign.training.state import create_state
from jaxalign.training.step import make_evaluation, make_update
from jaxalign.training.stops import with_stops

__all__ = ["DPOConfig", "DPOLossConfig", "train_dpo"]


def precomputed_reference(
    config: DPOConfig,
    run: Run,
    data: Dataset,
    collate: Callable[..., Any],
    arrange: Callable[..., Any],
    reference_definition: Any,
    reference_params: Any,
    mesh: Any,
) -> ReferenceTable:
    """The reference's log-probs of all completions, from the cache or computed; the run notes the file."""

    @jax.jit
    def score(params, batch):
        tokens, mask, lengths = flatten(batch)
        model = models.merge(reference_definition, params)
        logps = score_tokens(model, tokens, lengths, mask, packing=packing_of(batch)).logps
        return completion_sums(logps, mask, batch["tokens"].shape[:2], config.loss.length_alpha)

    table, path = reference_table(
        Path(config.reference_cache or run.folder / "reference"),
        data,
        reference_params,
        {"length_alpha": config.loss.length_alpha, "dtype": config.model.compute_dtype},
        lambda batch: score(
            reference_params, setup.on_mesh(arrange(batch), mesh, packing=config.train.packing)
        ),
        collate,
        batch_size=config.train.eval_batch_size or config.train.batch_size,
    )
    run.add_metadata(reference_logps=str(path))
    return table


def _data(config: DPOConfig, policy: Any, tokenizer: Any, run: Run) -> Dataset:
    """The examples, of the kind that the loss takes and as many as it needs."""
    spec = config.loss.spec
    kind = "label" if spec.unpaired else "comparison"
    data = load_data(run, config.data, kind, tokenizer, policy.config, seed=config.run.seed)
    if spec.statistic and 1 in (len(data.train), len(data.validation)):
        raise ConfigError(
            f"loss.name={config.loss.name} sets each example against others: expected 2 or more, there are "
            f"{len(data.train)} to train on and {len(data.validation)} held out"
        )
    return data


def _batches(config: DPOConfig, data: Dataset, mesh: Mesh) -> tuple[Batches, Collate, Callable]:
    """What the steps take, how examples become a batch, and how a batch is laid out for the loss."""
    spec = config.loss.spec
    collate, arrange = collate_comparisons, pair_axis
    mismatched = bool(spec.statistic and spec.statistic.mismatched)
    if spec.unpaired:
        collate, arrange = partial(collate_labels, mismatched=mismatched), question_axis
    collate = setup.collate_of(collate, data.train, packing=config.train.packing)
    batches = setup.training_batches(
        config.train,
        data.train,
        seed=config.run.seed,
        collate=collate,
        mesh=mesh,
        least=2 if spec.statistic else 1,
        copies=2 if mismatched else 1,
    )
    return batches, collate, arrange


def check_pair_loss(loss: Any, config: DPOLossConfig) -> Any:
    """The user's loss (see `check_own_loss`), called as the one that `config` names is, without its options."""
    spec = config.spec
    arrays, keywords = dict.fromkeys(spec.arguments, ("B",)), spec.statistic.axes if spec.statistic else {}
    unread = [option.name for option in spec.options]
    return check_own_loss(loss, arrays, ("B",), config=config, unread=unread, keywords=keywords)


def train_dpo(
    config: DPOConfig,
    *,
    policy: Any = None,
    reference: Any = None,
    tokenizer: Any = None,
    train_dataset: Any = None,
    eval_dataset: Any = None,
    optimizer: Any = None,
    loss: Any = None,
    callbacks: Sequence[Any] = (),
    trackers: Sequence[Any] = (),
) -> TrainResult:
    """Trains a policy on comparisons or labelled completions with a direct preference loss.

    Args:
      config: see `DPOConfig`.
      policy: a live model in place of `config.model`; needs `tokenizer`.
      reference: a live model in place of `config.reference`.
      tokenizer: the policy's tokenizer.
      loss: a function called in place of the one that `config.loss.name` names, with the same arrays and none of its
        options: for dpo, loss(policy_chosen_logps[B], policy_rejected_logps[B], ref_chosen_logps[B],
        ref_rejected_logps[B]) -> [B]. `config.loss.beta` then scales the logged rewards alone.
      train_dataset, eval_dataset, optimizer, callbacks, trackers: live objects in place of, or beside, what `config`
        names: see `jaxalign.runs.Given`.

    Returns:
      The run folder, final metrics (`eval/accuracy` and `eval/margin` over held-out pairs, each with a
        95% interval `..._low`, `..._high`) and the model.

    Raises:
      UserError: anything wrong with configuration, files or rows, in one line.
    """
    setup.check_live(policy, tokenizer, "policy")
    loss = check_pair_loss(loss, config.loss)
    given = Given(
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        optimizer=optimizer,
        loss=loss,
        callbacks=callbacks,
        trackers=trackers,
        others={"policy": policy, "reference": reference, "tokenizer": tokenizer},
    )
    mesh = setup.start(config.run, config.mesh)
    key = jax.random.key(config.run.seed)
    spec = config.loss.spec
    with Run.open(config.run, config, "dpo", given) as run:
        if policy is None:
            policy, tokenizer = setup.load_model(
                config.model, mesh, seed=config.run.seed, run=run, packing=config.train.packing
            )
        policy = with_stops(policy, config.data, tokenizer)
        if reference is None:
            reference = setup.load_reference(config, policy, mesh, run, read=spec.reference)
        data = _data(config, policy, tokenizer, run)
        tell_devices(run, mesh)
        batches, collate, arrange = _batches(config, data, mesh)
        # The update donates its own copy of the parameters, so the start can serve as reference.
        reference_definition, reference_params = models.split(reference)
        scorer, trained, base = setup.policy_of(policy, config.lora, mesh, key=jax.random.fold_in(key, 1))
        frozen = {"base": base, "reference": reference_params if spec.reference else {}}
        size = config.train.eval_batch_size or config.train.batch_size
        table = None
        if config.reference_logps == "precomputed" and spec.reference:
            refuse_stream(data, "reference_logps=precomputed")
            table = precomputed_reference(
                config, run, data, collate, arrange, reference_definition, reference_params, mesh
            )
            frozen["reference"] = {}
        # Live it is in `frozen`; else nothing reads it any more, and it leaves the device.
        del policy, reference, reference_params
        total = config.train.total_steps(batches.per_epoch)
        rule, schedule = make_optimizer(config.optimizer, total, optimizer)
        loss_function = make_preference_loss(scorer, reference_definition, config.loss, loss)
        parts = config.train.accumulation_steps
        step = make_update(loss_function, valid_rows, rule, accumulation_steps=parts)
        rows, positions = data.first(config.run.sample_rows), scorer.definition.config.max_positions
        sampling, prompts = samples_of(config.sampling, rows, positions, run)
        generator = Generator(scorer, base, sampling, tokenizer, jax.random.fold_in(key, 2))
        update_key = jax.random.fold_in(key, 3)
        coupled = parts > 1 and spec.statistic
        with_statistics = whole_batch_statistics(scorer, reference_definition, config.loss, parts)

        def place(batch, *, training=False):
            batch = arrange(batch) if table is None else table.attached(arrange(batch), training=training)
            return setup.on_mesh(batch, mesh, packing=config.train.packing, parts=parts if training else 1)

        def update(state, batch):
            batch = place(batch, training=True)
            if coupled:
                batch = with_statistics(state.params, frozen, batch)
            return step(state, frozen, batch, update_key)

        held_out = evaluation(
            make_evaluation(loss_function, valid_rows),
            lambda: eval_batches(data.validation, size, collate),
            frozen,
            place,
            config.train.eval_batches,
        )
        loop = Loop(
            run=run,
            store=setup.checkpoint_store(run),
            batches=batches,
            update=update,
            total_steps=total,
            evaluate=held_out if data.validation else None,
            sample=lambda state: generator.samples(state.params, prompts, int(state.step)),
            learning_rate=schedule,
        )
        state = create_state(trained, rule)
        del trained
        state, metrics = loop.fit(state)
        model = setup.export_policy(run, scorer, state.params, base, tokenizer, config.lora)
        run.finish(metrics)
        return TrainResult(run.folder, metrics, model, tokenizer)
