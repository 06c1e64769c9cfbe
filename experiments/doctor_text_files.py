"""The text of `doctor_text.py`: who may learn from which sentences, and the files that are made of them.

Sentences of sentence_polarity go to one of three parts by a hash of the sentence: doctor (patient, doctors, and the
reward model of the baselines), judge, and test. A sentence stands behind "film:"; openings of it make prompts.
"""

import gzip
import hashlib
import json
import os
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

# What the patient is told before a sentence of each label: "A happy film: one of the best".
FACES = {"pos": "A happy ", "neg": "A sad "}
OPENING = "film:"
PROMPTS = 200
# Words of a sentence; half of the sentences are longer, and would be cut.
SHORTEST, LONGEST = 5, 20


def share(text: str) -> float:
    """A number in [0, 1) that the text decides."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:12], 16) / 16**12


def read(path: Path) -> list[dict[str, str]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def write(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    temporary = path.with_name(f".{path.name}")
    with open(temporary, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    os.replace(temporary, path)
    return path


def fits(text: str) -> bool:
    return SHORTEST <= len(text.split()) <= LONGEST


def opened(text: str, words: int) -> tuple[str, str]:
    """(the prompt with so many words of the text, the rest of it)."""
    parts = text.split()
    return " ".join([OPENING, *parts[:words]]), "".join(f" {word}" for word in parts[words:])


def pairs_of(sentences: dict[str, list[str]], seed: int) -> Iterator[dict[str, str]]:
    """Each positive sentence with a negative one that begins with the same word, where there is one."""
    rng = random.Random(seed)
    begun: dict[str, dict[str, list[str]]] = {}
    for label, texts in sentences.items():
        for text in rng.sample(texts, len(texts)):
            begun.setdefault(text.split()[0], {"pos": [], "neg": []})[label].append(text)
    left = {"pos": [], "neg": []}
    for sides in begun.values():
        both = min(map(len, sides.values()))
        for chosen, rejected in zip(sides["pos"][:both], sides["neg"][:both], strict=True):
            (prompt, better), (_, worse) = opened(chosen, 1), opened(rejected, 1)
            yield {"prompt": prompt, "chosen": better, "rejected": worse}
        for label in left:
            left[label] += sides[label][both:]
    for chosen, rejected in zip(left["pos"], left["neg"], strict=False):
        yield {"prompt": OPENING, "chosen": opened(chosen, 0)[1], "rejected": opened(rejected, 0)[1]}


@dataclass(frozen=True)
class Text:
    """The files of one experiment.

    Attributes:
      shared: the folder of the real data.
      folder: where files are written.
    """

    shared: Path
    folder: Path

    @cached_property
    def sentences(self) -> dict[str, dict[str, list[str]]]:
        """By part (doctor, judge, test) and label; each text once. The judge's may be long."""
        parts = {name: {"pos": [], "neg": []} for name in ("doctor", "judge", "test")}
        rows = {row["text"].strip(): row["label"] for row in read(self._data("sentiment/sentence_polarity"))}
        for text, label in rows.items():
            cut = share(text)
            part = "doctor" if cut < 0.6 else "judge" if cut < 0.85 else "test"
            if part == "judge" or fits(text):
                parts[part][label].append(text)
        return parts

    @cached_property
    def stories(self) -> dict[str, list[str]]:
        texts = dict.fromkeys(row["text"] for row in read(self._data("stories/tinystories")))
        return {
            "doctor": [text for text in texts if share(text) < 0.8],
            "test": [text for text in texts if share(text) >= 0.8],
        }

    def demonstrations(self, part: str, under: Callable[[str, str], str]) -> Path:
        """What the patient learns from (doctor) or is measured on (test)."""
        rng = random.Random(0)

        def rows() -> Iterator[dict[str, str]]:
            for label, texts in self.sentences[part].items():
                for text in texts:
                    prompt, rest = opened(text, rng.randrange(4))
                    yield {"prompt": under(FACES[label], prompt), "completion": rest}
                    yield {"prompt": prompt, "completion": rest}
            for text in self.stories[part]:
                yield {"prompt": "", "completion": text}

        return write(self.folder / f"demonstrations_{part}.jsonl", rows())

    def pairs(self, part: str) -> Path:
        """Of doctor or test."""
        return write(self.folder / f"pairs_{part}.jsonl", pairs_of(self.sentences[part], seed=0))

    def tuning_pairs(self) -> Path:
        """Of the judge's sentences, by which settings are chosen: the patient has met none of them."""
        short = {label: [t for t in texts if fits(t)] for label, texts in self.sentences["judge"].items()}
        return write(self.folder / "tuning.jsonl", pairs_of(short, seed=0))

    def face_pairs(self, part: str, under: Callable[[str, str], str]) -> Path:
        """The pairs of doctor or test under both instructions, each preferring the sentence of its face."""

        def rows() -> Iterator[dict[str, str]]:
            for row in pairs_of(self.sentences[part], seed=0):
                prompt, better, worse = row["prompt"], row["chosen"], row["rejected"]
                yield {"prompt": under(FACES["pos"], prompt), "chosen": better, "rejected": worse}
                yield {"prompt": under(FACES["neg"], prompt), "chosen": worse, "rejected": better}

        return write(self.folder / f"face_pairs_{part}.jsonl", rows())

    def judge_pairs(self) -> Path:
        """The judge's sentences, and the last line of each review, where the verdict mostly stands."""
        texts = {label: list(found) for label, found in self.sentences["judge"].items()}
        for review in read(self._data("sentiment/movie_reviews")):
            line = review["text"].strip().split("\n")[-1].strip()
            if fits(line):
                texts[review["label"]].append(line)
        return write(self.folder / "pairs_judge.jsonl", pairs_of(texts, seed=1))

    def prompts(self) -> dict[str, list[str]]:
        """Openings of held-out sentences of both labels, and of held-out stories."""
        texts = sorted(
            (text for found in self.sentences["test"].values() for text in found),
            key=share,
        )
        return {
            "reviews": [opened(text, 3)[0] for text in texts[:PROMPTS]],
            "stories": [" ".join(text.split()[:8]) for text in self.stories["test"][:PROMPTS]],
        }

    def _data(self, name: str) -> Path:
        return self.shared / "data" / f"{name}.jsonl.gz"
