"""`jaxalign generate`: completions of prompts, from any model folder or run."""

import contextlib
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from jaxalign.data.records import Text
from jaxalign.errors import ConfigError, DataError
from jaxalign.inference.loading import (
    ChatModel,
    Stream,
    Template,
    decoding_text,
    load_speaker,
    printed,
    printed_aside,
)
from jaxalign.inference.questions import Question, answer_rows, model_name, next_prompt, questions_of
from jaxalign.llmdoctor.guided_folders import GuideConfig
from jaxalign.mesh import MeshConfig
from jaxalign.models.tensor_dtypes import AutoDtype, ComputeDtype
from jaxalign.rollout import SamplingConfig
from jaxalign.rollout.config import Storage
from jaxalign.runs.records import write_whole


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(GuideConfig):
    """Completions of prompts.

    Attributes:
      model: a Hugging Face folder, a GGUF file, a run folder (its export/ is used) or a hub id; with doctors, their
        patient.
      tokenizer: folder or hub id of the tokenizer; empty uses the model's own.
      adapter: a PEFT folder to merge into the model.
      revision: revision of a hub id; empty uses the newest.
      context: longest row in tokens, as `model.context` in training; 0 takes the model's own.
      prompt: prompts as text; list several as [first, second].
      file: a file of prompts in any layout that training reads, one prompt per row, or of questions as published by
        AlpacaEval and MT-bench (every MT-bench turn is answered, in order).
      limit: maximum number of prompts to read from `file`; 0 reads all.
      template: how to format a prompt: tokenizer (its chat template), markers (Human:, Assistant:) or plain; auto
        uses the format of the run that trained the model, else the chat template if the tokenizer has one.
      system: system message to put before each prompt.
      sampling: length of completions, and how tokens are sampled.
      batch_size: prompts to decode at once.
      output: a .jsonl file for prompt, completion, finish_reason and logp (one JSON list if it ends in .json); empty
        prints to the terminal. For AlpacaEval and MT-bench questions, its rows have the columns that their tools
        read.
      name: name of the model in those rows; empty uses the model folder's name.
      seed: seed for sampling.
      device: device to run on: cpu, gpu or tpu; auto uses JAX's default.
      param_dtype: dtype in which parameters are stored; auto uses bfloat16 on a GPU or TPU, regardless of the files'
        dtype, and float32 on a CPU.
      compute_dtype: dtype of matrix products; auto uses bfloat16 on a GPU or TPU and float32 on a CPU.
      weights: int8 rounds the weights (of a patient, not of its doctors) to 8-bit integers, which saves memory and
        changes completions slightly; same keeps their dtype.
      cache: int8 stores the cached keys and values as 8-bit integers; same keeps their dtype.
      mesh: number of devices along each mesh axis; the weights of all models are sharded over it, and
        gathered over fsdp to decode; prompts are sharded over data and fsdp.
    """

    model: str = ""
    tokenizer: str = ""
    adapter: str = ""
    revision: str = ""
    context: int = 0
    prompt: tuple[str, ...] = ()
    file: str = ""
    limit: int = 0
    template: Template = "auto"
    system: str = ""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    batch_size: int = 16
    output: str = ""
    name: str = ""
    seed: int = 0
    device: Literal["auto", "cpu", "gpu", "tpu"] = "auto"
    param_dtype: AutoDtype = "auto"
    compute_dtype: ComputeDtype = "auto"
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
    """Generates completions of prompts, and prints them or writes them to a .jsonl file.

    Args:
      config: see `GenerateConfig`.

    Returns:
      A row per completion: `prompt`, `completion`, `finish_reason` ("stop" or "length"),
      `logp` (nats, summed over the completion) and `tokens` (their number). Samples of a prompt
      are consecutive. For questions of AlpacaEval and MT-bench see `questions.answer_rows`.

    Raises:
      UserError: no prompt, a file or model that is wrong, a prompt longer than the context.
    """
    questions = [*(Question((prompt,)) for prompt in config.prompt), *_questions_of_file(config)]
    if not questions:
        raise ConfigError('expected --prompt="some text" or --file=PROMPTS')
    if config.prompt and questions[-1].layout == "mt_bench":
        raise ConfigError(
            "--prompt: cannot be combined with MT-bench questions, whose output has another layout; "
            "set --prompt or --file"
        )
    if config.output and Path(config.output).is_dir():
        raise ConfigError(f"--output {config.output}: is a folder; expected a .jsonl file")
    chat_model = load_speaker(
        config.model,
        tokenizer=config.tokenizer,
        adapter=config.adapter,
        revision=config.revision,
        context=config.context,
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
    longest = max(len(chat_model.encode(question.turns[0], config.system)) for question in questions)
    batch_size = min(len(questions), config.batch_size)
    printed_aside(decoding_text(chat_model, batch_size, longest, config.sampling.arguments()))
    name = config.name or model_name(config.model, config.patient, config.doctor)
    rows: list[dict[str, Any]] = []
    left_out = 0
    # One completion is shown while it is made.
    streams = (
        not config.output and len(questions) == config.sampling.num_samples == len(questions[0].turns) == 1
    )
    for start in range(0, len(questions), config.batch_size):
        batch = questions[start : start + config.batch_size]
        if streams:
            print(f"> {_last_turn(questions[0].turns[0])}")
        done = converse(chat_model, batch, config, start, len(questions), write=printed if streams else None)
        if streams:
            print(f"\n{_note(done[0][0][0])}\n")
        elif not config.output:
            _print_rows(turn for samples in done for turns in samples for turn in turns)
        for question, samples in zip(batch, done, strict=True):
            rows += answer_rows(question, samples, name)
            left_out += sum("left_out" in turn for turns in samples for turn in turns)
    if left_out:
        print(
            f"warning: {left_out} questions were asked without their earlier turns, as the context of "
            f"{chat_model.context} tokens has no room for them with "
            f"--sampling.max_new_tokens={config.sampling.max_new_tokens}",
            file=sys.stderr,
        )
    if config.output:
        _write_rows(Path(config.output), rows)
        print(f"{len(rows)} {'answers' if questions[-1].layout else 'completions'}: {config.output}")
    return rows


def converse(
    chat_model: ChatModel,
    questions: Sequence[Question],
    config: GenerateConfig,
    first: int,
    total: int,
    *,
    write: Callable[[str], Any] | None = None,
) -> list[list[list[dict[str, Any]]]]:
    """The turns of each sample of each question of a batch, as rows of `complete`.

    Args:
      chat_model: the model.
      questions: of the batch.
      config: see `GenerateConfig`.
      first, total: the place of the first among all questions, and their number: by them, and by the turn, each
        answer has randomness of its own, whatever the batches.
      write: gets the first answer piece by piece.
    """
    samples = config.sampling.num_samples
    prompts = [question.turns[0] for question in questions]
    rows = complete(chat_model, prompts, config, first_row=first * samples, write=write)
    # A conversation for each sample: its question with the rows so far, and what was said.
    talks = [(questions[i // samples], [row]) for i, row in enumerate(rows)]
    said = [[row["prompt"], row["completion"]] for row in rows]
    alone = replace(config, sampling=replace(config.sampling, num_samples=1))
    for turn in range(1, max(len(question.turns) for question in questions)):
        places = [place for place, (question, _) in enumerate(talks) if len(question.turns) > turn]
        dialogues = [(said[place], talks[place][0].turns[turn]) for place in places]
        fitting = [_fitting(chat_model, before, question, config) for before, question in dialogues]
        of_turn = [(turn * total + first) * samples + place for place in places]
        answers = complete(chat_model, [prompt for prompt, _ in fitting], alone, row_ids=of_turn)
        for place, row, (_, left_out) in zip(places, answers, fitting, strict=True):
            question, turns = talks[place]
            said[place] += [question.turns[turn], row["completion"]]
            turns.append(row | ({"left_out": left_out} if left_out else {}))
    turns = [turns for _, turns in talks]
    return [turns[i : i + samples] for i in range(0, len(turns), samples)]


def _fitting(
    chat_model: ChatModel, said: Sequence[str], question: str, config: GenerateConfig
) -> tuple[Any, int]:
    """The prompt for the next question, and how many turns at its beginning the context has no room for."""
    plain, room = chat_model.format.template == "plain", chat_model.context - config.sampling.max_new_tokens
    left_out, prompt = 0, next_prompt(said, question, plain=plain)
    while left_out < len(said) and len(chat_model.encode(prompt, config.system)) > room:
        left_out += 2
        prompt = next_prompt(said[left_out:], question, plain=plain)
    return prompt, left_out


def complete(
    chat_model: ChatModel,
    prompts: Sequence[Any],
    config: GenerateConfig,
    *,
    first_row: int = 0,
    row_ids: Sequence[int] = (),
    write: Callable[[str], Any] | None = None,
) -> list[dict[str, Any]]:
    """Completions of one batch of prompts (text or messages), as rows; `write` gets the first one piece by piece.

    The randomness of each is that of its row id; without `row_ids` they go on from `first_row`.
    """
    import jax

    ids = [chat_model.encode(p, config.system) for p in prompts]
    samples = config.sampling.num_samples
    # The randomness of a row depends on its place in the whole list, not on the batch size.
    row_ids = row_ids or range(first_row, first_row + len(ids) * samples)
    stream = None if write is None else Stream(chat_model, ids[0], write)
    with stream or contextlib.nullcontext():
        done = chat_model.sampler.generate(
            ids,
            key=jax.random.key(config.seed),
            row_ids=list(row_ids),
            on_tokens=stream,
            **config.sampling.arguments(),
        )
    texts = [chat_model.continuation(ids[i // samples], c) for i, c in enumerate(done.token_lists())]
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


def _questions_of_file(config: GenerateConfig) -> list[Question]:
    """The questions of a file: of AlpacaEval, of MT-bench, or the prompts of rows that the trainers read."""
    if not config.file:
        return []
    from jaxalign.data.readers import read_records

    questions = questions_of(config.file)
    if questions is None:
        records, _ = read_records(config.file, kind="prompt")
        questions = [Question((prompt_of(record),)) for record in records]
    if not questions:
        raise DataError(f"{config.file}: no prompts in the file")
    return questions[: config.limit or None]


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


def _print_rows(rows: Iterable[dict[str, Any]]) -> None:
    for row in rows:
        print(f"> {_last_turn(row['prompt'])}\n{row['completion']}\n{_note(row)}\n")
    sys.stdout.flush()


def _last_turn(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]


def _note(row: Mapping[str, Any]) -> str:
    return f"[{row['finish_reason']}, {row['tokens']} tokens, logp {row['logp']}]"


def _write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """One JSON object a line, or a list of them where the name ends in .json; the file appears whole or not at all."""
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    write_whole(path, f"[\n{','.join(lines)}]\n" if path.suffix == ".json" else "".join(lines))
