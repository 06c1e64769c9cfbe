"""The task of `llmdoctor.py`: micro-stories whose truth is known, written under instructions that can be followed.

The stories are those of `jaxalign.pipelines.story_world`. "Tell a kind story ." asks for a story of high quality and
"Tell a mean story ." for one of low quality; "Tell a short story ." and "Tell a long story ." ask for the shortest and
the longest of three. Without an instruction quality and length are mixed. Two dimensions of preference:

    kindness   truth: `story_world.true_reward`, in points, at most 6
    brevity    truth: words of the completion, the fewer the better

They disagree: a story with every kind deed that counts, the wish granted and an ending has six sentences.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jaxalign import models
from jaxalign.data import DataConfig
from jaxalign.pipelines import demo, story_world

MAX_LENGTH, MAX_NEW_TOKENS, MAX_POSITIONS = 72, 56, 96
INSTRUCTION_PAIRS = ("kind", "mean", "short", "long")
# In the end the patient has read as many stories without an instruction as with one.
SHARE_PLAIN = 0.5
INSTRUCTION_WORDS = ("Tell", "kind", "mean", "short", "story")
LABEL_NOISE = 0.05


@dataclass(frozen=True)
class Dimension:
    """What people may prefer.

    Attributes:
      positive, negative: the instructions of the two faces.
      truth: whole story -> how good it is, in points (kindness) or words (brevity, negative).
    """

    positive: str
    negative: str
    truth: Callable[[str], float]


def instruction(face: str) -> str:
    return f"Tell a {face} story ."


def words_told(text: str) -> int:
    """Words of the completion in a whole story; full stops are words."""
    return len(text.split()) - len(story_world.OPENING.split())


DIMENSIONS = {
    "kindness": Dimension(instruction("kind"), instruction("mean"), story_world.true_reward),
    "brevity": Dimension(instruction("short"), instruction("long"), lambda text: -float(words_told(text))),
}


def write_story(rng: random.Random, prompt: str, face: str = "") -> str:
    """A completion as the face wants it, or a mixed one."""

    def one() -> str:
        low, high = {"kind": (0.75, 1.0), "mean": (0.0, 0.25)}.get(face, (0.0, 1.0))
        return story_world.write_completion(rng, prompt, rng.uniform(low, high))

    if face not in ("short", "long"):
        return one()
    return sorted((one() for _ in range(3)), key=lambda story: len(story.split()))[
        0 if face == "short" else -1
    ]


# --- which words matter -----------------------------------------------------------------------

_KINDS = {
    template: kind
    for kind, templates in {
        "meeting": (story_world.MEETING,),
        "kind": story_world.KIND,
        "mean": story_world.MEAN,
        "neutral": story_world.NEUTRAL,
        "granted": (story_world.GRANTED,),
        "happy": story_world.HAPPY,
        "sad": story_world.SAD,
    }.items()
    for template in templates
}
# The word that tells what kind of sentence it is: "Mia HELPED it .", "THEY were happy ever after ."
_TELLING = {"meeting": 0, "happy": 0}


def matters(prompt: str, completion: str) -> list[bool]:
    """Whether each word of a completion (full stops are words), and then its end, decides on what the truth pays for.

    True at the word that tells a kind or mean deed, a gift or an ending, at the thing given, at a name that is not
    the hero's, and at the word that tells a sentence said before or a second meeting. The two faces of kindness make
    the same neutral sentences, and end at the same places, with (nearly) the same chances.
    """
    hero = story_world.OPENING.split().index("{h}")
    hero = prompt.split()[hero]
    found, seen, sentence = [], set(), []
    for word in completion.split():
        sentence.append(word)
        if word == ".":
            found += _sentence_matters(sentence, hero, seen)
            sentence = []
    return [*found, *_sentence_matters(sentence, hero, seen), False]


def _sentence_matters(sentence: list[str], hero: str, seen: set[str]) -> list[bool]:
    kind = _KINDS.get(" ".join(map(_mark, sentence)))
    marks = [word in story_world.NAMES and word != hero for word in sentence]
    if kind is None:
        return marks
    said = " ".join(sentence)
    again = said in seen or (kind == "meeting" and "meeting" in seen)
    seen |= {said, kind}
    if again or kind not in ("meeting", "neutral"):
        marks[_TELLING.get(kind, 1)] = True
    if kind == "granted":
        marks = [mark or word in story_world.WISHES for mark, word in zip(marks, sentence, strict=True)]
    return marks


def _mark(word: str) -> str:
    for mark, words in (
        ("{h}", story_world.NAMES),
        ("{s}", story_world.STRANGERS),
        ("{w}", story_world.WISHES),
    ):
        if word in words:
            return mark
    return word


# --- tokenizer, shapes, files -----------------------------------------------------------------


def build_tokenizer() -> Any:
    """The tokenizer of the story world, with the words of the instructions."""
    from tokenizers import AddedToken

    tokenizer = story_world.build_tokenizer()
    tokenizer.add_tokens([AddedToken(w, single_word=True, normalized=False) for w in INSTRUCTION_WORDS])
    return tokenizer


def shape(tokenizer: Any, size: str = "same") -> models.ModelConfig:
    """`same`: patient and doctor of most stages; `strong` and `weak`: patient and doctor of weak-to-strong."""
    wider = {
        "same": {},
        "strong": {"hidden_size": 96, "intermediate_size": 288, "num_layers": 3, "head_dim": 24},
        "weak": {"hidden_size": 32, "intermediate_size": 96, "num_heads": 2, "num_kv_heads": 2},
    }[size]
    return replace(demo.model_shape(tokenizer), max_positions=MAX_POSITIONS, **wider)


@dataclass(frozen=True)
class Files:
    """JSON lines: `loose` sentences, `stories` under all faces, `pairs` of each dimension; and what is held out."""

    loose: Path
    stories: Path
    held_out_stories: Path
    pairs: dict[str, Path]
    held_out_pairs: dict[str, Path]
    prompts: list[str]


def write_files(
    folder: Path, *, seed: int, under: Callable[[str, str], str], stories: int, pairs: int, prompts: int
) -> Files:
    """Writes what a seed learns from; the same arguments write the same bytes.

    Args:
      folder: made where it is not there.
      seed: of everything random.
      under: (instruction, prompt) -> the prompt as the token rewards' faces write it.
      stories: demonstrations, and loose ones.
      pairs: of each dimension; half as many, of held-out prompts and with right labels, apart.
      prompts: held-out prompts, the last ones of 200.
    """
    everything = story_world.all_prompts(seed)
    apart, known = everything[:200], everything[200:]
    folder.mkdir(parents=True, exist_ok=True)

    def demonstrations(name: str, pool: Sequence[str], count: int) -> Iterator[dict[str, Any]]:
        rng = random.Random(f"{seed} {name}")
        for index in range(count):
            prompt = pool[index % len(pool)]
            face = "" if rng.random() < SHARE_PLAIN else rng.choice(INSTRUCTION_PAIRS)
            story = write_story(rng, prompt, face)
            yield {"prompt": under(instruction(face), prompt) if face else prompt, "completion": story}

    def loose() -> Iterator[dict[str, Any]]:
        rng = random.Random(f"{seed} loose")
        for index in range(stories):
            prompt = known[index % len(known)]
            yield {"prompt": prompt, "completion": story_world.loose_sentences(rng, prompt)}

    def ranked(name: str, pool: Sequence[str], count: int, noise: float) -> Iterator[dict[str, Any]]:
        rng = random.Random(f"{seed} pairs {name} {noise}")
        for index in range(count):
            yield preference(rng, pool[index % len(pool)], DIMENSIONS[name].truth, noise)

    return Files(
        loose=story_world.write_rows(folder / "loose.jsonl", loose()),
        stories=story_world.write_rows(folder / "stories.jsonl", demonstrations("train", known, stories)),
        held_out_stories=story_world.write_rows(
            folder / "held_out_stories.jsonl", demonstrations("held out", apart, 200)
        ),
        pairs={
            name: story_world.write_rows(folder / f"{name}.jsonl", ranked(name, known, pairs, LABEL_NOISE))
            for name in DIMENSIONS
        },
        held_out_pairs={
            name: story_world.write_rows(
                folder / f"held_out_{name}.jsonl", ranked(name, apart, pairs // 2, 0.0)
            )
            for name in DIMENSIONS
        },
        prompts=apart[-prompts:],
    )


def preference(
    rng: random.Random, prompt: str, truth: Callable[[str], float], noise: float
) -> dict[str, Any]:
    """Two mixed stories, ranked by the truth; with chance `noise` the label is wrong."""
    while True:
        pair = [write_story(rng, prompt) for _ in range(2)]
        scores = [truth(f"{prompt} {story}") for story in pair]
        if scores[0] != scores[1]:
            break
    if (scores[0] < scores[1]) != (rng.random() < noise):
        pair.reverse()
    return {"prompt": prompt, "chosen": pair[0], "rejected": pair[1]}


def data_config(train: Path, validation: Path | None = None) -> DataConfig:
    return DataConfig(
        train=(str(train),),
        validation=(str(validation),) if validation else (),
        validation_fraction=0.0,
        max_length=MAX_LENGTH,
        truncation="filter",
        template="plain",
    )
