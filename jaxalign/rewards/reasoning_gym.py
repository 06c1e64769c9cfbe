"""Tasks of reasoning-gym, made and scored by that package (the extra `reasoning-gym`).

Rows are written by:

    from jaxalign.rewards.reasoning_gym import write_tasks

    write_tasks("chain_sum", "sums.jsonl", rows=2000, seed=0, min_terms=2, max_terms=3)

And trained on by:

    jaxalign grpo --data.train='[sums.jsonl]' --reward.functions='[jaxalign.rewards.reasoning_gym:task_score]' ...
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxalign.errors import UserError

_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def task_score(
    prompts: Sequence[str],
    completions: Sequence[str],
    *,
    completion_ids: Sequence[Sequence[int]],
    columns: Mapping[str, Sequence[Any]],
) -> list[float]:
    """reasoning-gym's score, 0 to 1, of each answer: what the last <answer> tags hold, or else the whole completion.

    Rows need the package's fields `answer` and `metadata` (with `source_dataset`).

    Raises:
      UserError: the package is missing; the data lacks a column; the package knows no such task.
    """
    del completion_ids
    package = _package()
    for name in ("answer", "metadata"):
        if name not in columns:
            raise UserError(
                f"reward task_score: the data has no column '{name}'; columns: {sorted(columns) or 'none'}"
            )
    scores = []
    for prompt, completion, answer, metadata in zip(
        prompts, completions, columns["answer"], columns["metadata"], strict=True
    ):
        name = metadata.get("source_dataset") if isinstance(metadata, dict) else None
        if name is None:
            raise UserError(
                "reward task_score: expected 'source_dataset' in the column 'metadata', as reasoning-gym writes it"
            )
        try:
            score = package.get_score_answer_fn(name)
        except ValueError as error:
            raise UserError(f"reward task_score: {error}") from None
        tagged = _ANSWER.findall(completion)
        text = (tagged[-1] if tagged else completion).strip()
        scores.append(float(score(text, {"question": prompt, "answer": answer, "metadata": metadata})))
    return scores


def write_tasks(
    name: str, path: str | Path, *, rows: int, seed: int, instruction: str = "", **options: Any
) -> None:
    """Writes rows of a task as JSON lines: `prompt` (with the instruction after it), `answer`, `metadata`.

    Args:
      name: of the task, as `chain_sum`.
      path: the file, which must not exist.
      rows: how many.
      seed: the package's, which draws row i by seed + i: two files share rows unless their seeds are at least `rows`
        apart.
      instruction: a sentence on how to answer, say: "Answer between <answer> and </answer>."
      options: of the task's configuration.

    Raises:
      UserError: the package is missing, the file exists, task or options are unknown, or the task's
        metadata is not JSON.
    """
    try:
        tasks = _package().create_dataset(name, size=rows, seed=seed, **options)
    except (TypeError, ValueError, AssertionError) as error:
        raise UserError(f"reasoning-gym task {name}: {error}") from None
    try:
        lines = [
            json.dumps(
                {
                    "prompt": f"{task['question']}\n{instruction}".strip(),
                    "answer": task["answer"],
                    "metadata": task["metadata"],
                }
            )
            for task in tasks
        ]
    except TypeError as error:
        raise UserError(
            f"reasoning-gym task {name}: its metadata cannot be written as JSON ({error})"
        ) from None
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
    except FileExistsError:
        raise UserError(f"{path}: exists; choose another file") from None


def _package() -> Any:
    try:
        import reasoning_gym
    except ImportError as error:
        raise UserError(
            f"reasoning-gym is not installed ({error}): pip install 'jaxalign[reasoning-gym]'"
        ) from None
    return reasoning_gym
