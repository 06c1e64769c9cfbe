"""Which prompts an evaluation of a run completes: held-out rows' own, or those of a file."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

from jaxalign.data import DataConfig, Dataset, Example, load_dataset
from jaxalign.errors import ConfigError
from jaxalign.runs import Run
from jaxalign.training.core.eval_config import GenerateEvalConfig
from jaxalign.training.core.loading import check_same_everywhere, dated

Item = TypeVar("Item")
# Of `data`: which rows of the training files are used, and how; a file of prompts has none of this.
OF_TRAINING = (
    "format", "columns", "ignore_columns", "keep", "weights", "limit", "streaming", "min_score", "types",
)  # fmt: skip


def spread(examples: Sequence[Item], most: int) -> list[Item]:
    """At most so many examples, evenly from all of them."""
    count = min(most, len(examples))
    return [examples[i * len(examples) // count] for i in range(count)]


def eval_prompts(
    run: Run,
    config: GenerateEvalConfig,
    section: DataConfig,
    held_out: Sequence[Example],
    tokenizer: Any,
    shape: Any,
    *,
    seed: int,
) -> list[Example]:
    """The prompts that are completed at every evaluation of a run.

    Args:
      run: is told of prompts that are left out; its metadata holds what a file of prompts had, for the resume.
      config: what the evaluation asks for.
      section: the section `data`, by which text becomes tokens.
      held_out: rows that are not trained on; read where the evaluation names no file. Of equal prompts one is taken.
      tokenizer: of the model.
      shape: the model's `ModelConfig`.
      seed: see `load_dataset`.

    Raises:
      ConfigError: there are no prompts, none leaves room for an answer, or on resume the file has changed.
      DataError: a file or row that is wrong.
    """
    room = shape.max_positions - config.sampling.max_new_tokens
    if config.prompts:
        rows = _of_file(run, config.prompts, section.within(max(room, 2)), tokenizer, seed)
    else:
        rows = held_out
    chosen = list({tuple(e.prompt_tokens): e for e in spread(rows, config.count) if e.prompt_tokens}.values())
    if not chosen:
        raise ConfigError(
            f"eval.generate.every={config.every}: no held-out prompts; set eval.generate.prompts to a file of prompts, "
            "or data.validation or data.validation_fraction"
        )
    fitting = [e for e in chosen if len(e.prompt_tokens) <= room]
    if not fitting:
        raise ConfigError(
            f"eval.generate.sampling.max_new_tokens={config.sampling.max_new_tokens}: no prompt leaves room for so "
            f"many in the model's context of {shape.max_positions}"
        )
    if len(fitting) < len(chosen):
        run.warn(
            f"eval.generate: {len(chosen) - len(fitting)} of {len(chosen)} prompts are left out: they leave no room "
            f"for max_new_tokens={config.sampling.max_new_tokens} in the model's context of {shape.max_positions}"
        )
    return fitting


def _of_file(run: Run, path: str, section: DataConfig, tokenizer: Any, seed: int) -> Sequence[Example]:
    plain = DataConfig()
    section = replace(
        dated(run, section),
        train=(path,),
        validation=(),
        validation_fraction=0.0,
        **{name: getattr(plain, name) for name in OF_TRAINING},
    )
    data: Dataset = load_dataset(section, "prompt", tokenizer, seed=seed, say=run.info)
    check_same_everywhere(data)
    before = run.metadata().get("eval_prompts", {})
    if before.get("file") == path and before["fingerprint"] != data.fingerprint:
        raise ConfigError(
            f"--resume: {path} (eval.generate.prompts) or the tokenizer has changed since the run started; a resumed "
            "run must read the same prompts"
        )
    run.add_metadata(eval_prompts={"file": path, "rows": len(data.train), "fingerprint": data.fingerprint})
    return data.train
