"""`jaxalign generate`: completions of prompts, from any model folder or run."""

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from jaxalign.cli.loading import (
    Dtype,
    Speaker,
    Stream,
    Template,
    decoding_text,
    load_speaker,
    printed,
    printed_aside,
)
from jaxalign.data.records import Text
from jaxalign.errors import ConfigError, DataError
from jaxalign.mesh import MeshConfig
from jaxalign.models.guided_folders import GuideConfig
from jaxalign.models.tensor_dtypes import ParamDtype
from jaxalign.rollout import SamplingConfig
from jaxalign.rollout.config import Storage


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(GuideConfig):
    """Completions of prompts.

    Attributes:
      model: a Hugging Face folder, a run folder (its export/ is taken) or a hub id; with doctors, their patient.
      tokenizer: folder or hub id of the tokenizer; empty takes the model's own.
      adapter: a PEFT folder to merge into the model.
      revision: revision of a hub id.
      prompt: prompts as text; more than one as [first, second].
      file: a file of prompts in any format that the trainers read; each of its rows is a prompt.
      limit: prompts taken from file at most; 0 takes all.
      template: how a prompt is written: by the tokenizer's chat template, by markers (Human:, Assistant:), or
        plain; auto does as the run that made the model, else by the tokenizer's template where it has one.
      system: a system message put before each prompt.
      sampling: length and randomness.
      batch_size: prompts decoded together.
      output: a jsonl file for prompt, completion, finish_reason and logp; empty prints to the terminal.
      seed: seed of the sampling.
      device: auto, cpu, gpu or tpu.
      param_dtype: dtype the parameters are kept in; auto takes bfloat16 on a GPU or TPU, whatever the files have, and
        float32 on a CPU.
      compute_dtype: dtype of the matrix products.
      weights: int8 rounds the weights (of a patient, not of its doctors) to 8-bit integers: less memory, slightly
        other answers; same keeps them.
      cache: int8 does so with the keys and values of the tokens seen; same keeps them.
      mesh: devices by axis, which the weights of all models are split over; prompts are so over data and fsdp.
    """

    model: str = ""
    tokenizer: str = ""
    adapter: str = ""
    revision: str = ""
    prompt: tuple[str, ...] = ()
    file: str = ""
    limit: int = 0
    template: Template = "auto"
    system: str = ""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    batch_size: int = 16
    output: str = ""
    seed: int = 0
    device: Literal["auto", "cpu", "gpu", "tpu"] = "auto"
    param_dtype: ParamDtype = "auto"
    compute_dtype: Dtype = "float32"
    weights: Storage = "same"
    cache: Storage = "same"
    mesh: MeshConfig = field(default_factory=MeshConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more, got {self.batch_size}")
        if self.limit < 0:
            raise ValueError(f"limit must not be negative, got {self.limit}")


def generate(config: GenerateConfig) -> list[dict[str, Any]]:
    """Writes completions of prompts, to the terminal or to a jsonl file.

    Args:
      config: see `GenerateConfig`.

    Returns:
      A row per completion: `prompt`, `completion`, `finish_reason` ("stop" or "length"),
      `logp` (nats, summed over the completion) and `tokens` (their number). Samples of a prompt
      are consecutive.

    Raises:
      UserError: no prompt, a file or model that is wrong, a prompt longer than the context.
    """
    prompts = [*config.prompt, *_prompts_of_file(config)]
    if not prompts:
        raise ConfigError('expected --prompt="some text" or --file=PROMPTS')
    if config.output and Path(config.output).is_dir():
        raise ConfigError(f"--output {config.output}: is a folder; generate writes one jsonl file")
    speaker = load_speaker(
        config.model,
        tokenizer=config.tokenizer,
        adapter=config.adapter,
        revision=config.revision,
        template=config.template,
        param_dtype=config.param_dtype,
        compute_dtype=config.compute_dtype,
        weights=config.weights,
        cache=config.cache,
        guide=config,
        device=config.device,
        mesh=config.mesh,
        tell=printed_aside,
    )
    ids = [speaker.encode(prompt, config.system) for prompt in prompts]
    printed_aside(
        decoding_text(
            speaker, min(len(ids), config.batch_size), max(map(len, ids)), config.sampling.arguments()
        )
    )
    rows: list[dict[str, Any]] = []
    # One completion is shown while it is made.
    streams = not config.output and len(prompts) == config.sampling.num_samples == 1
    for start in range(0, len(prompts), config.batch_size):
        batch = prompts[start : start + config.batch_size]
        if streams:
            print(f"> {_asked(prompts[0])}")
        done = complete(
            speaker,
            batch,
            config,
            ids=ids[start : start + config.batch_size],
            first_row=start,
            write=printed if streams else None,
        )
        if streams:
            print(f"\n{_note(done[0])}\n")
        elif not config.output:
            _print_rows(done)
        rows += done
    if config.output:
        _write_rows(Path(config.output), rows)
        print(f"{len(rows)} completions: {config.output}")
    return rows


def complete(
    speaker: Speaker,
    prompts: Sequence[Any],
    config: GenerateConfig,
    *,
    ids: Sequence[list[int]] | None = None,
    first_row: int = 0,
    write: Callable[[str], Any] | None = None,
) -> list[dict[str, Any]]:
    """Completions of one batch of prompts (text or messages), as rows; `write` gets the first one piece by piece.

    `ids` are those of the prompts, where they are known already.
    """
    import jax

    ids = [speaker.encode(p, config.system) for p in prompts] if ids is None else ids
    samples = config.sampling.num_samples
    # The randomness of a row depends on its place in the whole list, not on the batch size.
    row_ids = range(first_row * samples, (first_row + len(ids)) * samples)
    stream = None if write is None else Stream(speaker, ids[0], write)
    with stream or contextlib.nullcontext():
        done = speaker.sampler.generate(
            ids,
            key=jax.random.key(config.seed),
            row_ids=list(row_ids),
            told=stream,
            **config.sampling.arguments(),
        )
    texts = [speaker.continuation(ids[i // samples], c) for i, c in enumerate(done.token_lists())]
    if stream is not None:
        stream.end(texts[0])
    return [
        {
            "prompt": prompts[i // samples],
            "completion": text,
            "finish_reason": str(done.finish_reason[i]),
            "logp": round(float(done.logps[i][done.mask[i]].sum()), 4),
            "tokens": int(done.lengths[i]),
        }
        for i, text in enumerate(texts)
    ]


def _prompts_of_file(config: GenerateConfig) -> list[Any]:
    """The prompts of the rows of a file: text, or messages."""
    if not config.file:
        return []
    from jaxalign.data.readers import read_records

    records, _ = read_records(config.file, kind="prompt")
    if not records:
        raise DataError(f"{config.file}: there is no prompt in it")
    return [prompt_of(record) for record in records[: config.limit or None]]


def prompt_of(record: Any) -> Any:
    """The prompt of a record: text (what is to be continued is all prompt), or the messages before the last answer."""
    if isinstance(record, Text):
        return record.text
    if isinstance(record.prompt, str):
        return record.prompt
    turns = list(record.prompt)
    while turns and turns[-1].role == "assistant":
        turns.pop()
    return [{"role": turn.role, "content": turn.content} for turn in turns]


def _print_rows(rows: Sequence[dict[str, Any]]) -> None:
    for row in rows:
        print(f"> {_asked(row['prompt'])}\n{row['completion']}\n{_note(row)}\n")
    sys.stdout.flush()


def _asked(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]


def _note(row: Mapping[str, Any]) -> str:
    return f"[{row['finish_reason']}, {row['tokens']} tokens, logp {row['logp']}]"


def _write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """One JSON object a line; the file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
