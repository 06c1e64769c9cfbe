"""Rewards of single tokens, read off a frozen patient under two instructions (LLMdoctor, stage 1).

A patient that follows instructions likes the tokens that matter under the one and not under the other. The responses of
comparisons are scored under both, with the same completion ids; how much a token's log-prob differs, relative to its
response, is its importance, and the label gives the sign. What is scored is kept in files (`token_reward_store`), so
that other settings of the rewards need no forward pass.

Source: arXiv:2601.10416. Instructions, floor, quantile and the signed form are ours.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from jaxalign import models, processes
from jaxalign.data import ChatFormat, Comparison, Counts, DataConfig, Dataset, Example, chat_of, make_example
from jaxalign.data.examples import Filtered, Limits
from jaxalign.data.pipeline import fingerprint
from jaxalign.data.records import Prompt
from jaxalign.errors import ConfigError, DataError
from jaxalign.llmdoctor import token_reward_store as store
from jaxalign.llmdoctor.contrastive_prompts import ContrastiveFormat
from jaxalign.llmdoctor.token_reward_config import TokenRewardConfig
from jaxalign.llmdoctor.token_reward_rule import Rewarded, reward_facts, rewarded
from jaxalign.llmdoctor.token_reward_scores import FaceScorer, FaceTask
from jaxalign.llmdoctor.token_reward_store import FaceScores
from jaxalign.llmdoctor.token_reward_table import TokenRewardTable
from jaxalign.llmdoctor.token_view import PairView, ResponseView, token_texts, write_token_view
from jaxalign.mesh import make_mesh
from jaxalign.runs import Run
from jaxalign.training.core.setup import place_model
from jaxalign.training.preference.reference_cache import digest_of

__all__ = [
    "PreferenceExample",
    "ResponseRewards",
    "TokenRewardConfig",
    "TokenRewardTable",
    "TokenRewards",
    "Wanted",
    "process_preference_dataset",
    "token_reward_table",
    "token_reward_tables",
    "token_texts",
    "view_table",
]


def token_reward_table(
    config: TokenRewardConfig,
    data: Dataset,
    chat: ChatFormat,
    patient: Any,
    *,
    mesh: Mesh,
    folder: Path | None,
    packing: bool = True,
    run: Run | None = None,
) -> TokenRewardTable:
    """Token rewards of a data set; log-probs are read from files where they lie there, else computed and written.

    Files lie in `config.folder`, else in `folder`: those of `token_reward_store`, and token_rewards.html, which shows
    the first training pairs.

    Args:
      config: instructions, sparsity, place.
      data: comparisons.
      chat: how its rows were written (`data.chat_of`).
      patient: a causal model, live, whose tokenizer is that of the chat format.
      mesh: the devices.
      folder: of the files where config.folder is empty; None keeps none.
      packing: whether rows of a batch are packed into fewer, fuller ones; only rounding differs.
      run: is told how things stand; None where there is none.

    Raises:
      ConfigError: no training pair has a reward.
      DataError: a row that does not fit the patient's context.
      ModelError: the patient's vocabulary is too small for the tokenizer, or its log-probs are no numbers.
      CheckpointError: a damaged file.
    """
    wanted = Wanted(config, data, run=run)
    return token_reward_tables([wanted], chat, patient, mesh=mesh, folder=folder, packing=packing, run=run)[0]


@dataclass(frozen=True)
class Wanted:
    """Whose token rewards are wanted: those of one dimension.

    Attributes:
      config: instructions, sparsity, place.
      data: comparisons.
      view: name of the page that shows the first pairs.
      run: is told what came of it; None where there is none.
    """

    config: TokenRewardConfig
    data: Dataset
    view: str = "token_rewards.html"
    run: Run | None = None


def token_reward_tables(
    wanted: Sequence[Wanted],
    chat: ChatFormat,
    patient: Any,
    *,
    mesh: Mesh,
    folder: Path | None,
    packing: bool = True,
    run: Run | None = None,
) -> list[TokenRewardTable]:
    """Token rewards of several dimensions, in one pass of the patient over the data of all.

    Args and errors are those of `token_reward_table`; the files too, but for the pages' names.
    """
    tables = _tables(wanted, chat, patient, mesh=mesh, folder=folder, packing=packing, run=run)
    for each, table in zip(wanted, tables, strict=True):
        _check(table, each)
        if each.run is not None:
            _tell(table.facts, each.run)
    return tables


def _tables(
    wanted: Sequence[Wanted],
    chat: ChatFormat,
    patient: Any,
    *,
    mesh: Mesh,
    folder: Path | None,
    packing: bool,
    run: Run | None,
) -> list[TokenRewardTable]:
    models.check_vocabulary(patient.config, chat.tokenizer)
    config = wanted[0].config  # dimensions differ in their instructions alone
    folder = Path(config.folder) if config.folder else folder
    digest = digest_of(models.split(patient)[1])
    tasks, abouts = [], []
    for each in wanted:
        faces = ContrastiveFormat(chat, each.config.pair)
        about = _about(each.data, faces, patient, digest)
        place = None if folder is None else folder / f"scores-{_hash(about)}"
        if place is not None and not (place / "about.json").exists():
            store.write_json(place / "about.json", about)
        splits = {"train": each.data.train, "validation": each.data.validation}
        tasks.append(FaceTask(faces, splits, place))
        abouts.append(about)
    scorer = FaceScorer(patient, mesh, batch_size=config.batch_size, packing=packing, run=run)
    found = scorer.scores(tasks)
    return [
        _table(each, scores, task, about, folder, chat.tokenizer)
        for each, scores, task, about in zip(wanted, found, tasks, abouts, strict=True)
    ]


def _table(
    wanted: Wanted,
    scores: Mapping[str, FaceScores],
    task: FaceTask,
    about: Mapping[str, Any],
    folder: Path | None,
    tokenizer: Any,
) -> TokenRewardTable:
    """The rewards of what has been scored, written into the folder where there is one."""
    config, data = wanted.config, wanted.data
    train, validation, threshold = rewarded(scores["train"], scores["validation"], config)
    facts = reward_facts(train, validation, threshold, config) | task.facts()
    facts |= {"scores_folder": "", "rewards_folder": ""}
    table = TokenRewardTable(train, validation, config.on_zero == "skip", facts)
    if folder is not None:
        free = ("batch_size", "folder", "on_zero", "instructions")
        settings = {n: v for n, v in asdict(config).items() if n not in free}
        made = folder / f"rewards-{_hash(dict(about) | settings)}"
        for name, split, examples in (
            ("train", train, data.train),
            ("validation", validation, data.validation),
        ):
            columns = {"importance": split.importance, "rewards": split.rewards}
            store.write_scores(made / f"{name}.parquet", examples, split.scores, columns=columns)
        store.write_json(made / "about.json", dict(about) | settings | {"threshold": threshold})
        facts |= {"scores_folder": str(task.folder), "rewards_folder": str(made)}
        if processes.first():
            view_table(table, data.train, tokenizer, folder / wanted.view, title=config.dimension)
    return table


def _about(data: Dataset, faces: ContrastiveFormat, patient: Any, digest: str) -> dict[str, Any]:
    """What the log-probs depend on, but for rounding; `digest` is that of the patient's parameters."""
    instructions = asdict(faces.pair)
    # How a prompt comes to be written, by tokenizer, template and instruction.
    written = [faces.chat.prompt_ids(faces.prompt("Who is it?", text)) for text in instructions.values()]
    return instructions | {
        "data": data.fingerprint,
        "patient": digest,
        "compute_dtype": patient.config.compute_dtype,
        "context": patient.config.max_positions,
        "prompts": _hash(written),
        "part": store.PART,
    }


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:24]


def _check(table: TokenRewardTable, wanted: Wanted) -> None:
    facts, config = table.facts, wanted.config
    if facts["zero_rows"] == facts["rows"]:
        view = f"; {Path(facts['rewards_folder']).parent / wanted.view} shows them"
        raise ConfigError(
            f"rewards ({config.dimension}): no token of the {facts['rows']} training pairs has a reward: under the "
            f"two instructions log-probs differ by {facts['mean_delta']:.3g} nats per token on average, importance "
            f"must exceed {facts['threshold']:.3g}, {facts['floored_responses']} completions are below "
            f"rewards.min_mean_delta={config.min_mean_delta:g}; lower these, or use instructions that differ more "
            f"or a patient that follows them{view if facts['rewards_folder'] else ''}"
        )


def _tell(facts: Mapping[str, Any], run: Run) -> None:
    run.info(
        f"token rewards: {facts['kept_fraction']:.1%} of {facts['tokens']} tokens, {facts['zero_rows']} of "
        f"{facts['rows']} pairs without any; under the two instructions log-probs differ by "
        f"{facts['mean_delta']:.3g} nats per token"
    )
    if facts["agreement_low"] <= 0.5:
        run.warn(
            "token rewards may be noise: compared with the negative instruction, the positive one raises the "
            f"chosen completion more in {facts['agreement']:.1%} of the pairs (95% interval "
            f"{facts['agreement_low']:.1%} to {facts['agreement_high']:.1%}), no better than chance; does the "
            "patient follow instructions?"
        )


@dataclass(frozen=True)
class PreferenceExample:
    """A prompt (text or turns) with two responses, of which people preferred the first."""

    prompt: Prompt
    preferred_response: str
    non_preferred_response: str


@dataclass(frozen=True)
class ResponseRewards(ResponseView):
    """A response's tokens with what was read off the faces: `ResponseView`'s lists, and the ids."""

    tokens: Sequence[int]


@dataclass(frozen=True)
class TokenRewards:
    """Both responses of a `PreferenceExample`."""

    preferred: ResponseRewards
    non_preferred: ResponseRewards


def process_preference_dataset(
    examples: Sequence[PreferenceExample],
    patient: Any,
    tokenizer: Any,
    *,
    config: TokenRewardConfig | None = None,
    data: DataConfig | None = None,
    mesh: Mesh | None = None,
    packing: bool = True,
) -> list[TokenRewards]:
    """Token rewards of examples at hand: what `token_reward_table` makes of them as a training set.

    Args:
      examples: at least one.
      patient: a causal model, live.
      tokenizer: its tokenizer.
      config: instructions and sparsity; None for the defaults. Files are kept only where it names a folder.
      data: how rows are written and how long they may be; None for the defaults. Its files are not read.
      mesh: the devices; None for one.
      packing: as for `token_reward_table`.

    Returns:
      One for each example, in order.

    Raises:
      UserError: as `token_reward_table`; DataError for an example that `data` would leave out, by its number. Rewards
        that are all zero are an error unless config.on_zero is skip.
    """
    # An answer is rewarded whole, unless it is asked to be cut.
    config, data = config or TokenRewardConfig(), data or DataConfig(truncation="filter")
    data = data.within(patient.config.max_positions)
    if not examples:
        raise DataError("expected at least one example")
    chat = chat_of(data, tokenizer)
    limits = Limits(data.max_length, data.max_prompt_length, data.truncation)
    rows = [_example(number, example, chat, limits) for number, example in enumerate(examples)]
    dataset = Dataset(rows, [], Counts(len(rows), len(rows)), fingerprint(data, "comparison", rows, []))
    mesh = mesh or make_mesh(devices=jax.devices()[:1])
    patient = place_model(patient, mesh)
    wanted = Wanted(config.of(config.dimension), dataset)
    [table] = _tables([wanted], chat, patient, mesh=mesh, folder=None, packing=packing, run=None)
    if config.on_zero == "stop":
        _check(table, wanted)
    return [
        TokenRewards(*(_response(table.train, 2 * number + side, tokenizer) for side in (0, 1)))
        for number in range(len(rows))
    ]


def _example(number: int, example: PreferenceExample, chat: ChatFormat, limits: Limits) -> Example:
    source = f"examples[{number}]"
    record = Comparison(
        example.prompt, example.preferred_response, example.non_preferred_response, source=source
    )
    try:
        return make_example(record, "comparison", chat, limits)
    except Filtered as reason:
        raise DataError(f"{source}: {reason} (data.max_length={limits.max_length})") from None
    except DataError as error:
        raise DataError(f"{source}: {error}") from None


def _response(split: Rewarded, index: int, tokenizer: Any) -> ResponseRewards:
    scores = split.scores
    span = slice(scores.offsets[index], scores.offsets[index + 1])
    ids = scores.token_ids[span].tolist()
    return ResponseRewards(
        texts=token_texts(tokenizer, ids),
        positive_logps=scores.positive_logps[span].tolist(),
        negative_logps=scores.negative_logps[span].tolist(),
        importances=split.importance[span].tolist(),
        rewards=split.rewards[span].tolist(),
        tokens=ids,
    )


def view_table(
    table: TokenRewardTable,
    examples: Sequence[Example],
    tokenizer: Any,
    path: Path,
    *,
    title: str,
    count: int = 20,
) -> Path:
    """Writes an HTML page that shows the rewards of the first training pairs on their text.

    Args:
      table: the rewards.
      examples: the training set that they are of.
      tokenizer: of its ids.
      path: the file.
      title: of the page, the dimension of the preferences, say.
      count: pairs at most.
    """
    pairs = [
        PairView(
            example.prompt_text,
            *(_response(table.train, 2 * number + side, tokenizer) for side in (0, 1)),
            source=example.source,
        )
        for number, example in enumerate(examples[:count])
    ]
    facts = table.facts
    return write_token_view(
        path,
        pairs,
        title=f"Token rewards: {title}",
        subtitle=f"the first {len(pairs)} of {facts['rows']} training pairs",
        notes=(
            f"{facts['kept_fraction']:.1%} of all tokens have a reward (importance above {facts['threshold']:.3g}); "
            f"log-probs differ by {facts['mean_delta']:.3g} nats per token. The positive instruction raises the "
            f"chosen completion more in {facts['agreement']:.1%} of the pairs; 50% is chance.",
        ),
    )
