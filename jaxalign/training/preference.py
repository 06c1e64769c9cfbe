"""Preference training: a policy from comparisons or labels, without a reward model."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxalign import losses, models
from jaxalign.data import (
    BatchIterator,
    Dataset,
    collate_comparisons,
    collate_labels,
    eval_batches,
    load_dataset,
)
from jaxalign.mesh import shard_batch
from jaxalign.runs import Run
from jaxalign.training import setup
from jaxalign.training.loop import Loop, evaluation
from jaxalign.training.optimizer import make_optimizer
from jaxalign.training.pairs import flatten, pair_axis, question_axis, valid_rows
from jaxalign.training.preference_config import DPOConfig, DPOLossConfig
from jaxalign.training.preference_losses import FORMS, ScoredRows, batch_statistics, row_terms
from jaxalign.training.reference import ReferenceTable, reference_table
from jaxalign.training.scoring import CausalPolicy, TokenScores, score_tokens
from jaxalign.training.setup import TrainResult
from jaxalign.training.state import create_state
from jaxalign.training.step import joined_rows, make_evaluation, make_update, mean_of, split_rows

__all__ = ["DPOConfig", "DPOLossConfig", "preference_loss", "train_dpo"]

# Statistics of a whole batch, in its micro-batches: [B], a scalar repeated.
STATISTIC = "statistic_"


def preference_loss(policy: CausalPolicy, reference_definition: Any, config: DPOLossConfig):
    """Builds the loss function of `make_update`: the mean over the examples of the whole batch.

    `frozen` is {"base": frozen leaves of the policy, "reference": the reference's leaves}. A batch may hold
    `ref_logps` [B, G] computed before, and the statistics of the whole batch that it is a part of.
    """

    def loss(params, frozen, batch, key, counts):
        rows, scores, mask = _scored(policy, reference_definition, config, params, frozen, batch, key)
        given = {n.removeprefix(STATISTIC): x for n, x in batch.items() if n.startswith(STATISTIC)}
        scalars = ("kl", "delta")
        statistics = {n: x[0] if n in scalars else x for n, x in given.items()} or batch_statistics(
            rows, config
        )
        per_row = row_terms(rows, config, statistics)
        if config.weighted:
            weights = losses.wpo_weights(scores.logps, scores.sum_squared_probs, mask)
            per_row *= jnp.prod(weights.reshape(rows.logps.shape), axis=1)
        if config.supervised_weight:
            nll = -(scores.logps.sum(1) / jnp.maximum(mask.sum(1), 1)).reshape(rows.logps.shape)
            per_row += config.supervised_weight * jnp.sum(jnp.where(rows.desirable, nll, 0.0), axis=1)
        metrics = preference_metrics(rows, config.beta) | {"entropy": mean_of(scores.entropy, mask)}
        return jnp.sum(jnp.where(rows.valid, per_row, 0.0)) / jnp.maximum(counts, 1.0), metrics

    return loss


def _scored(
    policy: CausalPolicy, reference_definition: Any, config: DPOLossConfig, params, frozen, batch, key
) -> tuple[ScoredRows, TokenScores, jax.Array]:
    """The batch's completions under policy and reference; the policy's token scores; the token mask."""
    form = FORMS[config.name]
    shape = batch["tokens"].shape[:2]
    tokens, mask, lengths = flatten(batch)
    counted = jnp.maximum(mask.sum(1), 1).reshape(shape).astype(jnp.float32)
    scale = counted if form.means or config.length_normalize else 1.0
    scores = policy.score(params, frozen["base"], tokens, lengths, mask, key=key)
    logps = completion_sums(scores.logps, mask, shape, config.length_alpha) / scale

    def reference(tokens, lengths, mask):
        model = models.merge(reference_definition, frozen["reference"])
        return jax.lax.stop_gradient(score_tokens(model, tokens, lengths, mask).logps)

    ref_logps, kl_ratio = jnp.zeros(shape), jnp.zeros(shape)
    if "ref_logps" in batch:
        ref_logps = batch["ref_logps"] / scale
    elif form.reference:
        ref_logps = (
            completion_sums(reference(tokens, lengths, mask), mask, shape, config.length_alpha) / scale
        )
    if "kl_tokens" in batch:
        tokens, kl_mask, lengths = flatten(batch, "kl_")
        live = jax.lax.stop_gradient(params)
        mismatched = policy.score(live, frozen["base"], tokens, lengths, kl_mask).logps
        kl_ratio = (mismatched - reference(tokens, lengths, kl_mask)).sum(1).reshape(shape)
    desirable = batch["desirable"] if form.unpaired else jnp.broadcast_to(jnp.asarray([True, False]), shape)
    return ScoredRows(logps, ref_logps, desirable, batch["valid"], kl_ratio), scores, mask


def completion_sums(logps: jax.Array, mask: jax.Array, shape: tuple[int, int], alpha: float) -> jax.Array:
    """Token log-probs [B*G, T] -> summed log-probs [B, G]; tokens beyond the shorter completion count `alpha`."""
    if alpha == 1.0:
        return logps.sum(1).reshape(shape)
    shared = jnp.repeat(mask.sum(1).reshape(shape).min(1), shape[1])
    return losses.length_desensitized_logps(logps, mask, shared, alpha=alpha).reshape(shape)


def preference_metrics(rows: ScoredRows, beta: float) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Implicit rewards beta * (policy - reference), and how well they agree with the labels."""
    valid = rows.valid
    rewards = beta * (rows.logps - rows.ref_logps)
    if rewards.shape[1] == 1:  # labels, not pairs
        right = (rewards > 0) == rows.desirable
        good, bad = (valid[:, None] & x for x in (rows.desirable, ~rows.desirable))
        return {
            "accuracy": mean_of(right.astype(jnp.float32), valid[:, None]),
            "reward_desirable": mean_of(rewards, good),
            "reward_undesirable": mean_of(rewards, bad),
        }
    margin = rewards[:, 0] - rewards[:, 1]
    return {
        "accuracy": mean_of((margin > 0) + 0.5 * (margin == 0), valid),
        "margin": mean_of(margin, valid),
        "margin_square": mean_of(jnp.square(margin), valid),
        "reward_chosen": mean_of(rewards[:, 0], valid),
        "reward_rejected": mean_of(rewards[:, 1], valid),
        "logps_chosen": mean_of(rows.logps[:, 0], valid),
        "logps_rejected": mean_of(rows.logps[:, 1], valid),
    }


def whole_batch_statistics(
    policy: CausalPolicy, reference_definition: Any, config: DPOLossConfig, parts: int
):
    """Builds `(params, frozen, batch) -> batch` with the statistics that couple its rows, in `parts` micro-batches.

    Without it each micro-batch would be sorted, or averaged, by itself, and accumulation would change the loss.
    """

    @jax.jit
    def statistics(params, frozen, batch):
        def rows_of(part):
            return _scored(policy, reference_definition, config, params, frozen, part, None)[0]

        rows = jax.lax.map(rows_of, jax.tree.map(split_rows(parts), dict(batch)))
        found = batch_statistics(jax.tree.map(joined_rows, rows), config)
        return {STATISTIC + n: jnp.broadcast_to(x, batch["valid"].shape) for n, x in found.items()}

    return lambda params, frozen, batch: batch | statistics(params, frozen, batch)


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
        logps = score_tokens(models.merge(reference_definition, params), tokens, lengths, mask).logps
        return completion_sums(logps, mask, batch["tokens"].shape[:2], config.loss.length_alpha)

    table, path = reference_table(
        Path(config.reference_cache or run.folder / "reference"),
        data,
        reference_params,
        {"length_alpha": config.loss.length_alpha, "dtype": config.model.compute_dtype},
        lambda batch: score(reference_params, shard_batch(setup.device_part(arrange(batch)), mesh)),
        collate,
        batch_size=config.train.eval_batch_size or config.train.batch_size,
    )
    run.add_metadata(reference_logps=str(path))
    return table


def train_dpo(
    config: DPOConfig, *, policy: Any = None, reference: Any = None, tokenizer: Any = None
) -> TrainResult:
    """Trains a policy on comparisons or labelled completions with a direct preference loss.

    Args:
      config: see `DPOConfig`.
      policy: a live model in place of `config.model`; needs `tokenizer`.
      reference: a live model in place of `config.reference`.
      tokenizer: the policy's tokenizer.

    Returns:
      The run folder, final metrics (`eval/accuracy` and `eval/margin` over held-out pairs, each with a
        95% interval `..._low`, `..._high`) and the model.

    Raises:
      UserError: anything wrong with configuration, files or rows, in one line.
    """
    mesh = setup.start(config.run, config.mesh)
    key = jax.random.key(config.run.seed)
    form = FORMS[config.loss.name]
    with Run.open(config.run, config, "dpo") as run:
        if policy is None:
            policy, tokenizer = setup.load_model(config.model, mesh, seed=config.run.seed)
        if reference is None and config.reference.path and form.reference:
            reference, _ = setup.load_model(config.reference, mesh, seed=config.run.seed, section="reference")
        kind = "label" if form.unpaired else "comparison"
        data = load_dataset(config.data, kind, tokenizer, seed=config.run.seed)
        setup.check_context(policy.config, data)
        run.add_metadata(data=data.summary(), mesh=dict(mesh.shape))
        collate, arrange = collate_comparisons, pair_axis
        if form.unpaired:
            collate, arrange = partial(collate_labels, mismatched=form.statistic == "kl"), question_axis
        # The update donates its own copy of the parameters, so the start can serve as reference.
        reference_definition, reference_params = models.split(policy if reference is None else reference)
        scorer, trained, base = setup.policy_of(policy, config.lora, mesh, key=jax.random.fold_in(key, 1))
        frozen = {"base": base, "reference": reference_params if form.reference else {}}
        size = config.train.eval_batch_size or config.train.batch_size
        table = None
        if config.reference_logps == "precomputed" and form.reference:
            table = precomputed_reference(
                config, run, data, collate, arrange, reference_definition, reference_params, mesh
            )
            frozen["reference"] = {}
        total = config.train.total_steps(len(data.train))
        optimizer, schedule = make_optimizer(config.optimizer, total)
        loss = preference_loss(scorer, reference_definition, config.loss)
        parts = config.train.accumulation_steps
        step = make_update(loss, valid_rows, optimizer, accumulation_steps=parts)
        generator = setup.Generator(scorer, base, config.sampling, tokenizer, jax.random.fold_in(key, 2))
        prompts = [list(e.prompt_tokens) for e in (data.validation or data.train)[: config.run.sample_rows]]
        update_key = jax.random.fold_in(key, 3)
        coupled = parts > 1 and form.statistic
        with_statistics = whole_batch_statistics(scorer, reference_definition, config.loss, parts)

        def place(batch, *, training=False):
            batch = arrange(batch) if table is None else table.attached(arrange(batch), training=training)
            return shard_batch(setup.device_part(batch), mesh)

        def update(state, batch):
            batch = place(batch, training=True)
            if coupled:
                batch = with_statistics(state.params, frozen, batch)
            return step(state, frozen, batch, update_key)

        held_out = evaluation(
            make_evaluation(loss, valid_rows),
            lambda: eval_batches(data.validation, size, collate),
            frozen,
            place,
            config.train.eval_batches,
        )
        loop = Loop(
            run=run,
            store=setup.checkpoint_store(run),
            batches=BatchIterator(
                data.train, batch_size=config.train.batch_size, seed=config.run.seed, collate=collate
            ),
            update=update,
            total_steps=total,
            evaluate=held_out if data.validation else None,
            sample=lambda state: generator.samples(state.params, prompts, int(state.step)),
            learning_rate=schedule,
        )
        state, metrics = loop.fit(create_state(trained, optimizer))
        model = setup.export_policy(run, scorer, state.params, base, tokenizer, config.lora)
        run.finish(metrics)
        return TrainResult(run.folder, metrics, model, tokenizer)
