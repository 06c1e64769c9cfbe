"""`jaxalign evaluate`: how good one model is, on benchmarks whose files the user has."""

import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import jaxalign
from jaxalign.errors import ConfigError, DataError
from jaxalign.evaluation import asking, summary
from jaxalign.evaluation.benchmarks import BENCHMARKS, Benchmark, Shots, benchmark_of
from jaxalign.evaluation.kept_answers import KeptAnswers
from jaxalign.evaluation.subject import Subject
from jaxalign.inference.loading import Template, load_speaker
from jaxalign.llmdoctor.guided_folders import GuideConfig
from jaxalign.mesh import MeshConfig
from jaxalign.models.folders import model_folder
from jaxalign.models.tensor_dtypes import AutoDtype, ComputeDtype
from jaxalign.rollout import SamplingConfig

# What results say of the packages that they depend on.
PACKAGES = ("jax", "flax", "transformers", "sacrebleu", "rouge-score")


@dataclass(frozen=True, kw_only=True)
class AnswerConfig:
    """How answers are sampled.

    Attributes:
      max_new_tokens: maximum length of an answer in tokens; 0 takes the task's own.
      temperature: sampling temperature; 0 decodes greedily.
      top_p: sample from the smallest set of most probable tokens whose probabilities sum to at least p; 1 uses all.
      num_samples: answers per question; with several, scores are means over them, and pass@k is reported too.
    """

    max_new_tokens: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    num_samples: int = 1

    def __post_init__(self) -> None:
        if self.max_new_tokens < 0:
            raise ValueError(f"sampling.max_new_tokens must not be negative, got {self.max_new_tokens}")
        if self.num_samples > 1 and self.temperature == 0:
            raise ValueError(
                f"sampling.num_samples={self.num_samples}: greedy answers are all alike; set sampling.temperature"
            )
        self.of(1)

    def of(self, longest: int) -> SamplingConfig:
        """The arguments of sampling, for a task whose answers have so many tokens."""
        return SamplingConfig(
            max_new_tokens=self.max_new_tokens or longest,
            temperature=self.temperature,
            top_p=self.top_p,
            num_samples=self.num_samples,
        )


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(GuideConfig):
    """An evaluation of one model.

    Attributes:
      model: a Hugging Face folder, a GGUF file, a run folder (its export/ is used) or a hub id; with doctors, their
        patient.
      tokenizer: folder or hub id of the tokenizer; empty uses the model's own.
      adapter: a PEFT folder to merge into the model.
      revision: revision of a hub id; empty uses the newest.
      context: longest row in tokens; 0 takes the model's own.
      tasks: the file of each task, as {gsm8k: test.jsonl, "prompts:safety": prompts.jsonl}; a label after a colon
        tells two files of one task apart. Tasks: see docs/evaluation.md.
      shots: for tasks that take solved problems, the file that they are from.
      num_shots: how many of them stand before each question.
      limit: questions of each task to ask, from the beginning of its file; 0 asks all.
      training: files that the model was trained on: questions that share 13 words in a row with them are counted.
      sampling: how answers are sampled.
      template: how turns become a prompt: tokenizer (its chat template), markers (Human:, Assistant:) or plain; auto
        uses the format of the run that trained the model, else the chat template if the tokenizer has one. Tasks that
        continue a text use none.
      system: system message before each conversation.
      batch_size: questions at once.
      output: folder for results.json, report.html, answers and items; answers that it holds are not asked for again.
      name: name of the model in the report; empty uses the model folder's name.
      compare: folders of other evaluations, shown beside this one in the report.
      seed: seed for sampling and for intervals.
      device: device to run on: cpu, gpu or tpu; auto uses JAX's default.
      param_dtype: dtype in which parameters are stored; auto uses bfloat16 on a GPU or TPU, and float32 on a CPU.
      compute_dtype: dtype of matrix products; auto uses bfloat16 on a GPU or TPU and float32 on a CPU.
      mesh: number of devices along each mesh axis.
    """

    model: str = ""
    tokenizer: str = ""
    adapter: str = ""
    revision: str = ""
    context: int = 0
    tasks: Mapping[str, str] = field(default_factory=dict)
    shots: Mapping[str, str] = field(default_factory=dict)
    num_shots: int = 5
    limit: int = 0
    training: tuple[str, ...] = ()
    sampling: AnswerConfig = field(default_factory=AnswerConfig)
    template: Template = "auto"
    system: str = ""
    batch_size: int = 16
    output: str = "runs/evaluation"
    name: str = ""
    compare: tuple[str, ...] = ()
    seed: int = 0
    device: Literal["auto", "cpu", "gpu", "tpu"] = "auto"
    param_dtype: AutoDtype = "auto"
    compute_dtype: ComputeDtype = "auto"
    mesh: MeshConfig = field(default_factory=MeshConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("batch_size", "num_shots"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if self.limit < 0:
            raise ValueError(f"limit must not be negative, got {self.limit}")


# What does not change answers.
_FREE = {"tasks", "limit", "batch_size", "output", "name", "compare", "training", "shots", "num_shots"}


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Asks a model the questions of benchmarks, scores its answers, and writes a report.

    Args:
      config: see `EvaluateConfig`.

    Returns:
      What results.json holds: the model, and of each task its figures with intervals.

    Raises:
      UserError: no or an unknown task, a file or model that is wrong, or an output folder with other answers.
    """
    asked = _questions(config)
    folder = Path(config.output)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--output {folder}: is a file; expected a folder")
    speaker = load_speaker(
        config.model,
        tokenizer=config.tokenizer,
        adapter=config.adapter,
        revision=config.revision,
        context=config.context,
        template=config.template,
        param_dtype=config.param_dtype,
        compute_dtype=config.compute_dtype,
        guide=config,
        device=config.device,
        mesh=config.mesh,
        tell=_told,
    )
    subject = Subject(speaker, config.batch_size)
    results: dict[str, Any] = {
        "model": config.name or config.model,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": _plain(config),
        "versions": {"jaxalign": jaxalign.__version__, **_versions()},
        "device": _device(),
        "tasks": {},
    }
    for task, (benchmark, questions, total) in asked.items():
        began = time.monotonic()
        kept = KeptAnswers(folder / "answers" / f"{_file_name(task)}.jsonl", _identity(config, task))
        counter = asking.Counter(
            task, len(questions), len(questions) - len(kept.missing(len(questions))), _told
        )
        if counter.done:
            _told(f"{task}: {counter.done:,} of {counter.total:,} answers are there")
        _ask(subject, benchmark, questions, kept, counter, config)
        items, found, notes = _scored(benchmark, questions, kept.rows, config)
        results["tasks"][task] = {
            "about": benchmark.about,
            "source": benchmark.source,
            "file": config.tasks[task],
            "sha256": _sha256(config.tasks[task]),
            "kind": benchmark.kind,
            "items": len(questions),
            "of": total,
            "seconds": round(time.monotonic() - began, 1),
            "judge": "",
            "notes": notes,
            **found,
        }
        _write(folder / "items" / f"{_file_name(task)}.jsonl", "".join(map(_line, items)))
        _write(folder / "results.json", json.dumps(results, indent=1))
    return results


def _questions(config: EvaluateConfig) -> dict[str, tuple[Benchmark, Sequence[Any], int]]:
    """Of each task the benchmark, the questions that are asked, and how many its file has: all are read before any."""
    if not config.tasks:
        raise ConfigError(
            f"--tasks: expected at least one, as --tasks.gsm8k=FILE; there are {', '.join(BENCHMARKS)}"
        )
    if lacking := [task for task in config.shots if task not in config.tasks]:
        raise ConfigError(f"shots.{lacking[0]}: there is no such task in tasks")
    found = {}
    for task, file in config.tasks.items():
        benchmark = benchmark_of(task)
        if task in config.shots and not benchmark.takes_shots:
            raise ConfigError(f"shots.{task}: this task takes no solved problems")
        questions = benchmark.read(file, Shots(file=config.shots.get(task, ""), count=config.num_shots))
        if not questions:
            raise DataError(f"{file}: no questions in the file")
        found[task] = (benchmark, questions[: config.limit or None], len(questions))
    return found


def _ask(
    subject: Subject,
    benchmark: Benchmark,
    questions: Sequence[Any],
    kept: KeptAnswers,
    counter: asking.Counter,
    config: EvaluateConfig,
) -> None:
    if benchmark.kind == "choices":
        asking.ask_choices(subject, questions, kept, counter)
    elif benchmark.kind == "text":
        asking.ask_texts(subject, questions, kept, counter)
    else:
        asking.ask_written(
            subject,
            questions,
            kept,
            counter,
            sampling=config.sampling.of(benchmark.max_new_tokens).arguments(),
            stops=benchmark.stops,
            system=config.system,
            seed=config.seed,
        )


def _scored(
    benchmark: Benchmark, questions: Sequence[Any], rows: Mapping[int, Any], config: EvaluateConfig
) -> tuple[list[summary.Item], dict[str, Any], list[str]]:
    """Items, figures (of all and by group) and what a reader must know."""
    if benchmark.kind == "text":
        items = [
            {"index": i, "place": q.place, "group": "", "prompt": q.prompt, "scores": dict(rows[i])}
            for i, q in enumerate(questions)
        ]
        metrics = summary.text_figures(questions, rows, benchmark.measures, seed=config.seed)
        return items, {"metrics": metrics, "groups": {}}, []
    notes = []
    if benchmark.kind == "choices":
        items = summary.choice_items(questions, rows)
        scored = summary.with_chance(items, questions)
    else:
        items = scored = summary.written_items(questions, rows, benchmark.score)
        if cut := sum(rows[i]["prompt_cut"] > 0 for i in range(len(questions))):
            notes.append(f"{cut} prompts were longer than the context: their beginning was left out")
        if unfinished := sum(
            reason == "length" for i in range(len(questions)) for reason in rows[i]["finish_reason"]
        ):
            notes.append(f"{unfinished} answers were cut at the longest length")
    measures = summary.measures_of(benchmark, items)
    metrics = summary.figures(scored, measures, seed=config.seed)
    groups = summary.by_group(scored, measures, seed=config.seed)
    return items, {"metrics": metrics, "groups": groups}, notes


def _identity(config: EvaluateConfig, task: str) -> dict[str, Any]:
    """What the answers of a task depend on."""
    settings = {name: value for name, value in _plain(config).items() if name.split(".")[0] not in _FREE}
    if benchmark_of(task).kind in ("choices", "text"):
        settings = {name: value for name, value in settings.items() if not name.startswith("sampling.")}
    if file := config.shots.get(task):
        settings |= {"shots": file, "shots sha256": _sha256(file), "num_shots": config.num_shots}
    return {**settings, "model files": _fingerprint(config.model), "file sha256": _sha256(config.tasks[task])}


def _fingerprint(model: str) -> str:
    """Names, sizes and times of a model's files, as one word; empty where it is no folder or file here."""
    place = Path(model_folder(model)) if model else Path()
    if not model or not place.exists():
        return ""
    files = [place] if place.is_file() else sorted(x for x in place.iterdir() if x.is_file())
    facts = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _plain(config: Any, prefix: str = "") -> dict[str, Any]:
    """The settings by dotted name, as they can be written."""
    found: dict[str, Any] = {}
    for one in fields(config):
        value = getattr(config, one.name)
        if hasattr(value, "__dataclass_fields__"):
            found |= _plain(value, f"{prefix}{one.name}.")
        else:
            found[f"{prefix}{one.name}"] = dict(value) if isinstance(value, Mapping) else value
    return found


def _sha256(file: str) -> str:
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _device() -> str:
    import jax

    devices = jax.devices()
    return f"{len(devices)} x {devices[0].platform} ({devices[0].device_kind})"


def _file_name(task: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in task)


def _line(item: Mapping[str, Any]) -> str:
    return json.dumps(item, ensure_ascii=False) + "\n"


def _write(path: Path, text: str) -> None:
    """A file that appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _told(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
