"""The medical files of `configs/medical.yaml`: split by question, so that no method trains on what measures it.

Claim: none; it writes files for `jaxalign compare --config experiments/configs/medical.yaml --model MODEL`.
Command: python experiments/medical_files.py --shared ../shared --output runs/medical
  demonstrations.jsonl  3,000 questions of MedQuAD with their answers
  pairs.jsonl           of two thirds of the judged questions the pairs of answers, better and worse by hand
  feedback.jsonl        of the same questions every judged answer; good are 3 (incomplete) and 4 (excellent) of 4
  held_out.jsonl        the other third, and 180 more of MedQuAD's, each with a reference answer
Needs: medquad.jsonl.gz, medical_preference_pairs.jsonl.gz and medical_judged_answers.jsonl.gz under SHARED/data.
Time: a second. `overlap` is the gold reward of the comparison: no method reads the references.
"""

import argparse
import gzip
import json
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

DEMONSTRATIONS, MORE = 3000, 180
# As many words of a reference as an answer of 128 tokens can have.
WORDS = 100
GOOD = 3


def overlap(
    prompts: list[str], completions: list[str], reference: list[str | None] | None = None, **columns: Any
) -> list[float | None]:
    """F1 of the words of answer and reference, counted with multiplicity (SQuAD's, arXiv:1606.05250, section 6.1).

    None where a row has no reference, as the training prompts.
    """
    del columns
    return [
        None if not text else _f1(completion, text)
        for completion, text in zip(completions, reference or [None] * len(prompts), strict=True)
    ]


def _f1(answer: str, reference: str) -> float:
    ours, theirs = (Counter(re.findall(r"[a-z0-9]+", text.lower())) for text in (answer, reference))
    same = (ours & theirs).total()
    return 2 * same / (ours.total() + theirs.total()) if same else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--output", type=Path, default=Path("runs/medical"))
    given = parser.parse_args()
    data = given.shared / "data"
    judged = _read(data / "preferences/medical_judged_answers.jsonl.gz")
    pairs = _read(data / "preferences/medical_preference_pairs.jsonl.gz")
    medquad = _read(data / "sft/medquad.jsonl.gz")
    rng = random.Random(0)
    questions = sorted({row["question"] for row in judged})
    rng.shuffle(questions)
    kept = set(questions[len(questions) // 3 :])
    best: dict[str, dict[str, Any]] = {}
    for row in judged:
        if (
            row["question"] not in kept
            and row["judgment"] > best.get(row["question"], {"judgment": 0})["judgment"]
        ):
            best[row["question"]] = row
    # One answer a question, and no question twice.
    alone = list({" ".join(row["question"].split()).casefold(): row for row in medquad}.values())
    rng.shuffle(alone)
    held_out = [row for row in best.values() if row["judgment"] >= GOOD] + alone[:MORE]
    files = {
        "demonstrations": [
            {"prompt": row["question"], "completion": row["answer"]} for row in alone[MORE:][:DEMONSTRATIONS]
        ],
        "pairs": [row for row in pairs if row["prompt"] in kept],
        "feedback": [
            {"prompt": row["question"], "completion": row["answer"], "label": row["judgment"] >= GOOD}
            for row in judged
            if row["question"] in kept
        ],
        "held_out": [
            {"prompt": row["question"], "reference": " ".join(row["answer"].split()[:WORDS])}
            for row in held_out
        ],
    }
    given.output.mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
        (given.output / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        print(f"{given.output / name}.jsonl: {len(rows):,} rows")


def _read(file: Path) -> list[dict[str, Any]]:
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


if __name__ == "__main__":
    main()
