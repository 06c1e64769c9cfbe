"""Distillation on the teacher's distributions, over demonstrations or the student's own completions (GKD).

One step:

    a batch of demonstrations; with probability `on_policy` the student completes its prompts instead
    -> teacher and student over the same rows -> their divergence at every completion token -> an optimizer step

No gradient goes through the sampling. Source: arXiv:2306.13649, algorithm 1.
"""

from typing import Any, Unpack

import jax

from jaxalign import models
from jaxalign.errors import ConfigError
from jaxalign.losses import token_mean
from jaxalign.mesh import length_shards
from jaxalign.models.flops import Pass
from jaxalign.models.vocabulary import check_same_vocabulary, vocabulary_size
from jaxalign.runs import Given, Live
from jaxalign.training.core import setup
from jaxalign.training.core.generator import Generator
from jaxalign.training.core.offline import OfflineRun, Task, TrainResult, fit
from jaxalign.training.core.packing import Packing
from jaxalign.training.core.scoring import CausalPolicy, predictions
from jaxalign.training.core.step import make_evaluation, mean_of
from jaxalign.training.distill.config import DistillConfig, DistillLossConfig
from jaxalign.training.distill.divergence import token_divergences
from jaxalign.training.distill.student_rows import (
    DistillBatch,
    StudentRows,
    check_prompts,
    collate_with_prompts,
)
from jaxalign.training.sft import sft_counts

__all__ = ["DistillConfig", "DistillLossConfig", "train_distill"]


def make_distill_loss(student: CausalPolicy, teacher: Any, config: DistillLossConfig, *, vocabulary: int):
    """Builds the loss function of `make_update`: the token mean of the divergence over the whole batch.

    Args:
      student: how to score with the student; `frozen["base"]` are its frozen leaves.
      teacher: the static part of the teacher, from `models.split`; `frozen["teacher"]` are its leaves.
      config: the divergence.
      vocabulary: number of token ids that the two share.

    Raises:
      ConfigError: a student with a load-balancing loss, which has no place here.
    """

    if student.definition.config.mixture.balance:
        raise ConfigError(
            "a student that is a mixture of experts learns without its load-balancing loss; set model.router_loss=0 "
            "to distill into it so"
        )

    def loss(params: Any, frozen: Any, batch: DistillBatch, key: Any, counts: jax.Array):
        rows, layout = batch.rows(), batch.packing or Packing()
        model, adapter = student.parts(params, frozen["base"])
        taught_by = models.merge(teacher, frozen["teacher"])
        inputs = layout.rows(rows.tokens, rows.lengths)
        own = model.hidden(**inputs, adapter=adapter, dropout_key=key)
        before, targets, counted, restored = predictions(own, rows, model.config.mesh)
        theirs = predictions(taught_by.hidden(**inputs), rows, taught_by.config.mesh).before
        per_token = token_divergences(
            model, taught_by, before, theirs, targets, counted, config=config, vocabulary=vocabulary
        )
        per_token = jax.tree.map(restored, per_token)
        metrics = {
            name: mean_of(getattr(per_token, name), rows.mask)
            for name in ("kl", "nll", "teacher_nll", "agreement")
        }
        metrics["completion_length"] = mean_of(rows.mask.sum(1), batch.valid)
        if key is not None:  # a step, not an evaluation
            metrics["sampled"] = mean_of(batch.sampled, batch.valid)
        return token_mean(per_token.loss * batch.weights, rows.mask, count=counts), metrics

    return loss


def train_distill(
    config: DistillConfig,
    *,
    model: Any = None,
    teacher: Any = None,
    tokenizer: Any = None,
    **live: Unpack[Live],
) -> TrainResult:
    """Distills a frozen teacher into a student that has the same tokenizer (GKD).

    Args:
      config: see `DistillConfig`.
      model: a live student to use in place of `config.model`; needs `tokenizer`.
      teacher: a live model to use in place of `config.teacher`, with the student's tokenizer.
      tokenizer: the student's tokenizer.
      live: train_dataset, eval_dataset, eval_reward, optimizer, callbacks and trackers; see `jaxalign.runs.Given`.

    Returns:
      The run folder, final metrics over held-out demonstrations (`eval/loss`; `eval/kl`, KL(teacher || student) at
        temperature 1; `eval/nll` and `eval/teacher_nll`, all in nats per token; `eval/agreement` of the most probable
        tokens) and the student.

    Raises:
      UserError: an invalid configuration, file or row, or tokenizers that differ; the message is one line.
    """
    others = {"model": model, "teacher": teacher, "tokenizer": tokenizer}
    given = Given.of(train_distill, live, others=others)

    def begin(run: OfflineRun) -> Task[TrainResult]:
        start, words = run.load_policy(model, tokenizer)
        definition, leaves = models.split(_teacher(run, teacher, words))
        data = run.load_data("demonstration", words, start.config)
        policy, trained, base = run.trained_parts(start)
        frozen = {"base": base, "teacher": leaves}
        vocabulary = min(vocabulary_size(words), start.config.vocab_size, definition.config.vocab_size)
        function = make_distill_loss(policy, definition, config.loss, vocabulary=vocabulary)
        feed = run.feed(data, run.collate(collate_with_prompts, data), DistillBatch)
        rows = None
        if config.on_policy:
            check_prompts(data.train, start.config.max_positions, config.sampling.max_new_tokens)
            generator = Generator(policy, base, config.sampling, words, run.fold(4))
            rows = StudentRows(
                generator, config.on_policy, config.run.seed, multiple=max(16, length_shards(run.mesh))
            )
        return Task(
            trained=trained,
            frozen=frozen,
            feed=feed,
            loss=function,
            counts=sft_counts,
            passes=[policy.training_pass, Pass(config=definition.config, learns="nothing")],
            draw=rows,
            evaluate=feed.evaluation(make_evaluation(function, sft_counts), frozen),
            generate=run.generated(policy, base, words, feed),
            sample=run.samples(policy, base, words, data),
            finish=run.export_policy(policy, base, words),
        )

    return fit("distill", config, given, begin)


def _teacher(run: OfflineRun, live: Any, tokenizer: Any) -> Any:
    """The teacher, whose tokenizer must be the student's.

    Raises:
      ModelError: it is another.
    """
    if live is not None:
        return run.placed(live, "teacher")
    config = run.config
    teacher, words = setup.load_model(
        config.teacher,
        run.mesh,
        seed=config.run.seed,
        section="teacher",
        run=run.run,
        packing=config.train.packing,
    )
    check_same_vocabulary(words, tokenizer, ("teacher", "student"))
    return teacher
