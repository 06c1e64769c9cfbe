"""Preference training: a policy from comparisons or labels, without a reward model."""

from dataclasses import replace
from functools import partial
from typing import Any, Unpack

from jaxalign import models
from jaxalign.data import Dataset, collate_comparisons, collate_labels
from jaxalign.errors import ConfigError
from jaxalign.runs import Given, Live
from jaxalign.training.core.batch import pair_axis, question_axis, valid_count
from jaxalign.training.core.offline import DatasetFeed, OfflineRun, Task, TrainResult, fit
from jaxalign.training.core.step import make_evaluation
from jaxalign.training.preference.config import DPOConfig, DPOLossConfig
from jaxalign.training.preference.objectives import (
    PreferenceBatch,
    check_pair_loss,
    make_preference_loss,
    passes_of,
    whole_batch_statistics,
)
from jaxalign.training.preference.reference_cache import precomputed_reference

__all__ = ["DPOConfig", "DPOLossConfig", "train_dpo"]


def _check_rows(data: Dataset, config: DPOLossConfig) -> None:
    """A loss that sets each example against others has others."""
    if config.spec.statistic and 1 in (len(data.train), len(data.validation)):
        raise ConfigError(
            f"loss.name={config.name} compares each example with others: expected 2 or more, got "
            f"{len(data.train)} for training and {len(data.validation)} held out"
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
        PreferenceBatch,
        least=2 if spec.statistic else 1,
        copies=2 if mismatched else 1,
        arrange=arrange,
    )


def train_dpo(
    config: DPOConfig,
    *,
    policy: Any = None,
    reference: Any = None,
    tokenizer: Any = None,
    loss: Any = None,
    **live: Unpack[Live],
) -> TrainResult:
    """Trains a policy on comparisons or labeled completions with a direct preference loss (DPO and its family).

    Args:
      config: see `DPOConfig`.
      policy: a live model to use in place of `config.model`; needs `tokenizer`.
      reference: a live model to use in place of `config.reference`.
      tokenizer: the policy's tokenizer.
      loss: function to use in place of the one that `config.loss.name` selects; it receives the same arrays and none
        of the options. For dpo: loss(policy_chosen_logps[B], policy_rejected_logps[B], ref_chosen_logps[B],
        ref_rejected_logps[B]) -> [B]. `config.loss.beta` then only scales the logged rewards.
      live: train_dataset, eval_dataset, eval_reward, optimizer, callbacks and trackers; see `jaxalign.runs.Given`.

    Returns:
      The run folder, final metrics (`eval/accuracy` and `eval/margin` over held-out pairs, each with a
        95% interval `..._low`, `..._high`) and the model.

    Raises:
      UserError: an invalid configuration, file or row; the message is one line.
    """
    loss = check_pair_loss(loss, config.loss)
    others = {"policy": policy, "reference": reference, "tokenizer": tokenizer}
    given = Given.of(train_dpo, live, loss=loss, others=others)
    spec = config.loss.spec

    def begin(run: OfflineRun) -> Task[TrainResult]:
        start, words = run.load_policy(policy, tokenizer)
        if reference is None:
            against = run.load_reference(start, read=spec.reference)
        elif reference is policy or not spec.reference:
            against = start
        else:
            against = run.placed(reference, "reference")
        data = run.load_data("label" if spec.unpaired else "comparison", words, start.config)
        _check_rows(data, config.loss)
        # The update donates its own copy of the parameters, so the start can serve as reference.
        definition, params = models.split(against)
        scorer, trained, base = run.trained_parts(start)
        frozen = {"base": base, "reference": params if spec.reference else {}}
        feed = _feed(run, data)
        if config.reference_logps == "precomputed" and spec.reference:
            table = precomputed_reference(run, feed, definition, params)
            feed, frozen["reference"] = replace(feed, attach=table.attached), {}
        function = make_preference_loss(scorer, definition, config.loss, loss)
        num_microbatches = config.train.accumulation_steps
        coupled = whole_batch_statistics(scorer, definition, config.loss, num_microbatches)
        return Task(
            trained=trained,
            frozen=frozen,
            feed=feed,
            loss=function,
            counts=valid_count,
            passes=passes_of(scorer, definition, config.loss, precomputed=not frozen["reference"]),
            prepare=coupled if num_microbatches > 1 and spec.statistic else None,
            evaluate=feed.evaluation(make_evaluation(function, valid_count), frozen),
            generate=run.generated(
                scorer, base, words, feed, (definition, params) if frozen["reference"] else None
            ),
            sample=run.samples(scorer, base, words, data),
            finish=run.export_policy(scorer, base, words),
        )

    return fit("dpo", config, given, begin)
