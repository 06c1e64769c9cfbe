"""Preference training: a policy from comparisons or labels, without a reward model."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import jax

from jaxalign import models
from jaxalign.data import Dataset, collate_comparisons, collate_labels
from jaxalign.errors import ConfigError
from jaxalign.runs import Given, Live
from jaxalign.training.core import setup
from jaxalign.training.core.loading import refuse_stream
from jaxalign.training.core.offline import DatasetFeed, OfflineRun, Task, fit
from jaxalign.training.core.own_loss import check_own_loss
from jaxalign.training.core.packing import packing_of
from jaxalign.training.core.pairs import flatten, pair_axis, question_axis, valid_rows
from jaxalign.training.core.scoring import score_tokens
from jaxalign.training.core.setup import TrainResult
from jaxalign.training.core.step import make_evaluation
from jaxalign.training.preference.config import DPOConfig, DPOLossConfig
from jaxalign.training.preference.objectives import (
    completion_sums,
    make_preference_loss,
    whole_batch_statistics,
)
from jaxalign.training.preference.reference_cache import ReferenceTable, reference_table

__all__ = ["DPOConfig", "DPOLossConfig", "train_dpo"]


def precomputed_reference(run: OfflineRun, feed: DatasetFeed, definition: Any, params: Any) -> ReferenceTable:
    """The reference's log-probs of all completions, from the cache or computed; the run notes the file."""
    config, alpha = run.config, run.config.loss.length_alpha
    refuse_stream(feed.data, "reference_logps=precomputed")

    @jax.jit
    def score(params, batch):
        tokens, mask, lengths = flatten(batch)
        model = models.merge(definition, params)
        logps = score_tokens(model, tokens, lengths, mask, packing=packing_of(batch)).logps
        return completion_sums(logps, mask, batch["tokens"].shape[:2], alpha)

    table, path = reference_table(
        Path(config.reference_cache or run.run.folder / "reference"),
        feed.data,
        params,
        {"length_alpha": alpha, "dtype": config.model.compute_dtype},
        lambda batch: score(params, feed.place(batch, training=False)),
        feed.collate,
        batch_size=feed.eval_size,
    )
    run.run.add_metadata(reference_logps=str(path))
    return table


def _check_rows(data: Dataset, config: DPOLossConfig) -> None:
    """A loss that sets each example against others has others."""
    if config.spec.statistic and 1 in (len(data.train), len(data.validation)):
        raise ConfigError(
            f"loss.name={config.name} sets each example against others: expected 2 or more, there are "
            f"{len(data.train)} to train on and {len(data.validation)} held out"
        )


def _feed(run: OfflineRun, data: Dataset) -> DatasetFeed:
    """The batches, with as many examples as the loss needs, laid out for it."""
    spec = run.config.loss.spec
    collate, arrange = collate_comparisons, pair_axis
    mismatched = bool(spec.statistic and spec.statistic.mismatched)
    if spec.unpaired:
        collate, arrange = partial(collate_labels, mismatched=mismatched), question_axis
    return run.feed(
        data,
        run.collate(collate, data),
        least=2 if spec.statistic else 1,
        copies=2 if mismatched else 1,
        arrange=arrange,
    )


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
    loss: Any = None,
    **live: Unpack[Live],
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
      live: train_dataset, eval_dataset, optimizer, callbacks, trackers: see `jaxalign.runs.Given`.

    Returns:
      The run folder, final metrics (`eval/accuracy` and `eval/margin` over held-out pairs, each with a
        95% interval `..._low`, `..._high`) and the model.

    Raises:
      UserError: anything wrong with configuration, files or rows, in one line.
    """
    setup.check_live(policy, tokenizer, "policy")
    loss = check_pair_loss(loss, config.loss)
    given = Given(
        loss=loss, others={"policy": policy, "reference": reference, "tokenizer": tokenizer}, **live
    )
    spec = config.loss.spec

    def begin(run: OfflineRun) -> Task[TrainResult]:
        start, words = run.load_policy(policy, tokenizer)
        against = reference
        if against is None:
            against = setup.load_reference(config, start, run.mesh, run.run, read=spec.reference)
        data = run.load_data("label" if spec.unpaired else "comparison", words, start.config)
        _check_rows(data, config.loss)
        # The update donates its own copy of the parameters, so the start can serve as reference.
        definition, params = models.split(against)
        scorer, trained, base = setup.policy_of(start, config.lora, run.mesh, key=run.fold(1))
        frozen = {"base": base, "reference": params if spec.reference else {}}
        feed = _feed(run, data)
        if config.reference_logps == "precomputed" and spec.reference:
            table = precomputed_reference(run, feed, definition, params)
            feed, frozen["reference"] = replace(feed, attach=table.attached), {}
        function = make_preference_loss(scorer, definition, config.loss, loss)
        parts = config.train.accumulation_steps
        coupled = whole_batch_statistics(scorer, definition, config.loss, parts)
        return Task(
            trained=trained,
            frozen=frozen,
            feed=feed,
            loss=function,
            counts=valid_rows,
            prepare=coupled if parts > 1 and spec.statistic else None,
            evaluate=feed.evaluation(make_evaluation(function, valid_rows), frozen),
            sample=run.samples(scorer, base, words, data),
            finish=run.export_policy(scorer, base, words),
        )

    return fit("dpo", config, given, begin)
