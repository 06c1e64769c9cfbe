"""`jaxalign evaluate`: how good one model is, on benchmarks whose files the user has."""

import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jaxalign import models
from jaxalign.errors import ConfigError, DataError
from jaxalign.evaluation import answer_measures, asking, judged, provenance, summary
from jaxalign.evaluation.benchmarks import BENCHMARKS, Benchmark, Shots, benchmark_of
from jaxalign.evaluation.best_of import BestOf, best_of_note
from jaxalign.evaluation.evaluate_config import EvaluateConfig
from jaxalign.evaluation.judging.config import Judge
from jaxalign.evaluation.judging.endpoint_config import EndpointConfig
from jaxalign.evaluation.judging.mt_bench import read_judge_prompts, read_questions
from jaxalign.evaluation.kept_answers import KeptAnswers
from jaxalign.evaluation.metrics.toxicity import read_word_list
from jaxalign.evaluation.pair_scoring import (
    PairSubject,
    ask_pairs,
    pair_results,
    policy_subject,
    reward_subject,
)
from jaxalign.evaluation.report import write_report
from jaxalign.evaluation.results import read_results
from jaxalign.evaluation.subject import EndpointSubject, Subject
from jaxalign.evaluation.tables import results_table
from jaxalign.inference.loading import load_speaker
from jaxalign.inference.questions import model_name
from jaxalign.mesh import make_mesh
from jaxalign.models.folders import model_folder
from jaxalign.models.reward_folders import is_reward_model
from jaxalign.rewards import ModelReward
from jaxalign.runs.records import write_whole
from jaxalign.training.core.reward_source import RewardSource, build_reward


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Asks a model the questions of benchmarks, scores its answers, and writes a report.

    Args:
      config: see `EvaluateConfig`.

    Returns:
      What results.json holds: the model, and of each task its figures with intervals.

    Raises:
      UserError: no or an unknown task, a file or model that is wrong, or an output folder with other answers.
    """
    for other in config.compare:
        read_results(Path(other))
    asked = _questions(config)
    folder = Path(config.output)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--output {folder}: is a file; expected a folder")
    kept = {
        task: KeptAnswers(folder / "answers" / f"{task}.jsonl", provenance.identity(config, task))
        for task in asked
    }
    with Tools(config) as tools:
        results: dict[str, Any] = {
            "model": config.name
            or config.endpoint_model
            or model_name(config.model, config.patient, config.doctor),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "settings": provenance.plain(config),
            "versions": provenance.versions(),
            "device": provenance.device(),
            "tasks": {},
        }
        for task, (benchmark, questions, total) in asked.items():
            began = time.monotonic()
            there = len(questions) - len(kept[task].missing(len(questions)))
            if there:
                _told(f"{task}: {there:,} of {len(questions):,} answers are there")
            counter = asking.Counter(task, len(questions), there, _told)
            if there < len(questions):
                _ask(tools, benchmark, questions, kept[task], counter)
            items, found, notes = _scored(tools, task, benchmark, questions, kept[task].rows)
            metrics, found["metrics"] = found["metrics"], _defined(found["metrics"])
            if undefined := [name for name in metrics if name not in found["metrics"]]:
                notes.append(f"nothing to compute from: {', '.join(undefined)}")
            found["groups"] = {name: _defined(group) for name, group in found["groups"].items()}
            if config.training:
                shared = answer_measures.contamination(_prompts(items), config.training)
                notes += shared
                if not shared:
                    _told(f"{task}: no question shares 13 words in a row with {', '.join(config.training)}")
            results["tasks"][task] = {
                "about": benchmark.about,
                "source": benchmark.source,
                "file": config.tasks[task],
                "sha256": provenance.sha256(config.tasks[task]),
                "kind": benchmark.kind,
                "items": len(questions),
                "of": total,
                "seconds": round(time.monotonic() - began, 1),
                "judge": tools.judge.about if benchmark.kind == "judged" else "",
                "notes": notes,
                **found,
            }
            write_whole(folder / "items" / f"{task}.jsonl", "".join(map(_line, items)))
            write_whole(folder / "results.json", json.dumps(results, indent=1, ensure_ascii=False))
    others = [json.loads((Path(other) / "results.json").read_text("utf-8")) for other in config.compare]
    print(results_table(results, others=others))
    print(f"report: {write_report(folder, others=config.compare)}")
    return results


class Tools:
    """The models that an evaluation needs, each loaded when it is first used; a context manager.

    Args:
      config: names them.

    Raises:
      UserError: the judge is the model itself.
    """

    def __init__(self, config: EvaluateConfig) -> None:
        self.config, self._stack = config, ExitStack()

    def __enter__(self) -> "Tools":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @cached_property
    def subject(self) -> Any:
        """The model under evaluation."""
        config = self.config
        if config.remote:
            cache = str(Path(config.output) / "replies.jsonl")
            endpoint = EndpointConfig(
                base_url=config.model,
                model=config.endpoint_model,
                api_key_env=config.api_key_env,
                parameters={},
                cache=cache,
            )
            return EndpointSubject(endpoint, config.batch_size)
        speaker = load_speaker(
            config.model,
            tokenizer=config.tokenizer,
            adapter=config.adapter,
            revision=config.revision,
            context=config.context,
            template=config.template,
            guide=config,
            **self._loading,
        )
        subject = Subject(speaker, config.batch_size)
        if config.best_of == 1:
            return subject
        return BestOf(subject, self._reward(config.reward, speaker), config.best_of)

    @cached_property
    def pairs(self) -> PairSubject:
        """Who scores pairs: the reward model under evaluation, or the policy by its log-probs."""
        config = self.config
        if config.scores_alone:
            return reward_subject(
                config.source.path,
                template=config.template,
                context=config.context,
                batch_size=config.batch_size,
            )
        chat_model = self.subject.chat_model
        return policy_subject(
            self.subject.texts.scorer,
            chat_model.format,
            reference=self.reference if config.reference else None,
            batch_size=config.batch_size,
        )

    @cached_property
    def judge(self) -> Judge:
        """Who judges."""
        judge = Judge(
            self.config.judge,
            judged=self.config.source,
            cache=Path(self.config.output) / "judge.jsonl",
            loading=self._loading,
            batch_size=self.config.batch_size,
        )
        return self._stack.enter_context(judge)

    @cached_property
    def reference(self) -> Any:
        """What the KL is from."""
        return Subject(load_speaker(self.config.reference, **self._loading)).model

    @cached_property
    def encoder(self) -> tuple[Any, Any]:
        """Whose hidden states compare answers with references, and its tokenizer."""
        folder = model_folder(self.config.encoder)
        return models.load_pretrained(folder), models.load_tokenizer(folder)

    @cached_property
    def reward(self) -> Any:
        """The reward of answers; None where the settings name none."""
        return self._named(self.config.reward, "reward")

    @cached_property
    def gold(self) -> Any:
        """The second reward; None where the settings name none."""
        return self._named(self.config.gold, "gold")

    def _named(self, source: RewardSource, key: str) -> Any:
        if not source.named:
            return None
        if self.config.remote and (source.model or source.models):
            raise ConfigError(f"{key}.model: reads token ids, which an endpoint does not tell; use functions")
        return self._reward(source, None if self.config.remote else self.subject.chat_model)

    def _reward(self, source: RewardSource, local: Any) -> Any:
        return build_reward(
            source,
            None,
            mesh=make_mesh(self.config.mesh),
            batch_size=self.config.batch_size,
            vocabulary=0 if local is None else int(local.sampler.config.vocab_size),
            tokenizer=None if local is None else local.tokenizer,
        )[0]

    @cached_property
    def toxicity(self) -> Any:
        """The classifier of toxicity."""
        return ModelReward(
            models.load_reward_model(model_folder(self.config.toxicity)), batch_size=self.config.batch_size
        )

    @cached_property
    def words(self) -> Sequence[str]:
        """The list of words."""
        return read_word_list(self.config.words)

    @cached_property
    def has_eval_extra(self) -> bool:
        """Whether the packages of the extra `eval` are there: what needs them is left out of tasks that do not."""
        return all(find_spec(name) is not None for name in ("sacrebleu", "rouge_score"))

    @property
    def _loading(self) -> dict[str, Any]:
        config = self.config
        return {
            "param_dtype": config.param_dtype,
            "compute_dtype": config.compute_dtype,
            "device": config.device,
            "mesh": config.mesh,
            "tell": _told,
        }


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
        if benchmark.kind != "pairs" and config.scores_alone:
            raise ConfigError(f"tasks.{task}: {config.model} is a reward model, which scores pairs alone")
        if benchmark.kind in ("choices", "text", "pairs") and config.remote:
            raise ConfigError(f"tasks.{task}: needs log-probs, which an endpoint does not tell")
        if benchmark.kind == "judged" and not config.judge.model:
            raise ConfigError(f"tasks.{task}: expected a judge in judge.model")
        if task.startswith("mt_bench"):
            if not config.judge.remote and is_reward_model(model_folder(config.judge.model)):
                raise ConfigError(
                    f"tasks.{task}: needs a judge that writes ratings; judge.model is a reward model"
                )
            if not config.judge.prompts:
                raise ConfigError(f"tasks.{task}: expected MT-bench's judge prompts in judge.prompts")
            questions: Sequence[Any] = read_questions(file, config.judge.references)
        else:
            questions = benchmark.read(file, Shots(file=config.shots.get(task, ""), count=config.num_shots))
        if not questions:
            raise DataError(f"{file}: no questions in the file")
        found[task] = (benchmark, questions[: config.limit or None], len(questions))
    _check_read(config)
    return found


# Kinds of tasks, and tasks, that measure answers; and which of them read a key.
_ANSWERS = ("written", "alpaca_eval")
_READ_BY = {
    "reference": (*_ANSWERS, "pairs"),
    "reward": _ANSWERS,
    "gold": _ANSWERS,
    "words": _ANSWERS,
    "toxicity": _ANSWERS,
    "encoder": ("prompts",),
    "judge": ("prompts", "judged"),
    "system": ("prompts", "judged"),
}


def _check_read(config: EvaluateConfig) -> None:
    """Raises ConfigError where a setting is given that none of the tasks reads."""
    there = {task.partition("-")[0] for task in config.tasks}
    there |= {benchmark_of(task).kind for task in config.tasks}
    for key, readers in _READ_BY.items():
        value = getattr(config, key)
        given = value.named if isinstance(value, RewardSource) else getattr(value, "model", value)
        if given and not there.intersection(readers):
            raise ConfigError(f"{key}: none of the tasks ({', '.join(config.tasks)}) reads it")


def _ask(
    tools: Tools, benchmark: Benchmark, questions: Sequence[Any], kept: KeptAnswers, counter: asking.Counter
) -> None:
    if benchmark.kind == "pairs":
        ask_pairs(tools.pairs, questions, kept, counter)
        return
    config, subject = tools.config, tools.subject
    if benchmark.kind == "choices":
        asking.ask_choices(subject, questions, kept, counter)
        return
    if benchmark.kind == "text":
        asking.ask_texts(subject, questions, kept, counter)
        return
    sampling = config.sampling.of(benchmark.max_new_tokens).arguments()
    options: dict[str, Any] = {"sampling": sampling, "system": config.system, "seed": config.seed}
    if benchmark is BENCHMARKS["mt_bench"]:
        asking.ask_turns(subject, questions, kept, counter, **options)
    else:
        asking.ask_written(subject, questions, kept, counter, stops=benchmark.stops, **options)


def _scored(
    tools: Tools, task: str, benchmark: Benchmark, questions: Sequence[Any], rows: Mapping[int, Any]
) -> tuple[list[summary.Item], dict[str, Any], list[str]]:
    """Items, figures (of all and by group) and what a reader must know."""
    seed = tools.config.seed
    if benchmark.kind == "text":
        items = [
            {"index": i, "place": q.place, "group": "", "prompt": q.prompt, "scores": dict(rows[i])}
            for i, q in enumerate(questions)
        ]
        figures = summary.text_figures(questions, rows, benchmark.measures, seed=seed)
        return items, {"metrics": figures, "groups": {}}, []
    if benchmark.kind == "pairs":
        return pair_results(questions, rows, calibrated=tools.config.scores_alone, seed=seed)
    if benchmark is BENCHMARKS["mt_bench"]:
        prompts = read_judge_prompts(tools.config.judge.prompts)
        return judged.judge_turns(questions, rows, prompts, tools.judge.ask, seed=seed)
    known, notes, more = dict(benchmark.measures), [], {}
    if benchmark.kind == "choices":
        items = summary.choice_items(questions, rows)
        scored = summary.with_chance(items, questions)
    else:
        items = scored = summary.written_items(questions, rows, benchmark.score)
        known |= answer_measures.MEASURES | summary.FACTS
        notes += _cuts(rows, len(questions))
        notes += _measured(tools, task, questions, rows, items)
        if benchmark is BENCHMARKS["alpaca_eval"]:
            more["length_controlled"], said = judged.length_controlled_figure(items, questions, seed=seed)
            notes += said
        if benchmark in (BENCHMARKS["prompts"], BENCHMARKS["alpaca_eval"]):
            more |= answer_measures.corpus_figures(items, with_bleu=tools.has_eval_extra, seed=seed)
    measures = summary.measures_of(known, items)
    figures = summary.figures(scored, measures, seed=seed)
    # The headline first, then what belongs to it.
    order = [*benchmark.measures, *figures, *more]
    figures = {name: (figures | more)[name] for name in dict.fromkeys(order) if name in figures | more}
    return items, {"metrics": figures, "groups": summary.by_group(scored, measures, seed=seed)}, notes


def _measured(
    tools: Tools, task: str, questions: Sequence[Any], rows: Mapping[int, Any], items: list[summary.Item]
) -> list[str]:
    """Adds to written answers whatever the settings ask for; returns what a reader must know."""
    config, notes = tools.config, []
    name = task.partition("-")[0]
    if config.sampling.num_samples > 1:
        notes.append(
            "judges, references and the distance from a model are of the first answer to each question"
        )
    if name == "alpaca_eval":
        notes += judged.judge_pairs(questions, items, tools.judge.pairs, seed=config.seed)
    elif name == "prompts" and config.judge.model:
        notes += judged.rate(questions, items, tools.judge.pairs)
    if tools.reward is not None:
        notes += answer_measures.add_rewards(questions, items, tools.reward, tools.subject)
    if tools.gold is not None:
        notes += answer_measures.add_rewards(questions, items, tools.gold, tools.subject, name="gold")
    if config.toxicity:
        notes += answer_measures.add_rewards(questions, items, tools.toxicity, tools.subject, name="toxicity")
    if config.words:
        answer_measures.add_listed_words(items, tools.words)
    if config.best_of > 1:
        notes.append(best_of_note(config.best_of))
    elif config.reference:
        answer_measures.add_distance(questions, rows, items, tools.subject, tools.reference)
        if config.sampling.temperature != 1 or config.sampling.top_p != 1:
            notes.append(
                "kl is along answers that were not sampled from the policy itself (temperature, top_p)"
            )
    if name == "prompts" and tools.has_eval_extra:
        answer_measures.add_overlap(questions, items)
    if name == "prompts" and config.encoder:
        answer_measures.add_similarity(questions, items, *tools.encoder)
    return notes


def _defined(figures: Mapping[str, summary.Figure]) -> dict[str, summary.Figure]:
    """Those that have a value."""
    return {name: figure for name, figure in figures.items() if figure["value"] is not None}


def _cuts(rows: Mapping[int, Any], count: int) -> list[str]:
    cut = sum(rows[i]["prompt_cut"] > 0 for i in range(count))
    unfinished = sum(reason == "length" for i in range(count) for reason in rows[i]["finish_reason"])
    return [
        *[f"{cut} prompts were longer than the context: their beginning was left out"] * bool(cut),
        *[f"{unfinished} answers were cut at the longest length"] * bool(unfinished),
    ]


def _prompts(items: Sequence[summary.Item]) -> list[str]:
    """The questions as texts."""
    return [
        item["prompt"] if isinstance(item["prompt"], str) else "\n".join(t["content"] for t in item["prompt"])
        for item in items
    ]


def _sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit)) if logit > -700 else 0.0


def _line(item: Mapping[str, Any]) -> str:
    return json.dumps(item, ensure_ascii=False) + "\n"


def _told(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
