"""A small world of micro-stories whose true quality is known.

A prompt names a hero and a wish; a completion continues with a meeting, kind and mean
deeds, perhaps the wish, and an ending:

    Once there was a fox named Mia . Mia wanted a kite .
    One day Mia met a bird . Mia helped it . It gave Mia the kite . They were happy ever after .

`true_reward` reads such a text back by the same grammar, so that a learned reward
(the proxy) can be compared with the truth. Stories are written with a spread of
qualities, so that there is much to learn beyond imitating them.
"""

import json
import os
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NAMES = ("Mia", "Leo", "Ana", "Ben", "Zoe", "Max", "Eva", "Sam")
ANIMALS = ("fox", "bear", "cat", "duck", "frog", "goat", "hare", "mouse", "owl", "pig")
STRANGERS = ("bird", "hen", "lamb", "mole", "swan", "toad")
WISHES = ("ball", "kite", "drum", "boat", "cake", "hat", "lamp", "book", "bell", "doll")

# {h} is the hero; whom he met is "it".
KIND = (
    "{h} helped it .",
    "{h} hugged it .",
    "{h} sang for it .",
    "{h} gave it bread .",
    "{h} carried it home .",
    "{h} told it a joke .",
)
MEAN = (
    "{h} pushed it .",
    "{h} lied to it .",
    "{h} laughed at it .",
    "{h} threw mud at it .",
    "{h} broke its cup .",
)
NEUTRAL = (
    "{h} ate an apple .",
    "{h} saw a cloud .",
    "{h} slept under a tree .",
    "{h} walked to the river .",
    "The day was long .",
    "The sun was warm .",
)
MEETING = "One day {h} met a {s} ."
GRANTED = "It gave {h} the {w} ."
HAPPY = ("They were happy ever after .", "They became good friends .")
SAD = ("{h} went home and cried .", "It never came back .")
OPENING = "Once there was a {a} named {h} . {h} wanted a {w} ."

MEETING_POINTS = 0.5
KIND_POINTS = 1.0
KIND_COUNTED = 3
MEAN_POINTS = -1.0
GRANTED_POINTS = 1.0
WRONG_WISH_POINTS = -1.0
HAPPY_POINTS = 1.5
SAD_POINTS = -1.0
FAULT_POINTS = -1.0
REPEAT_POINTS = -0.5
SENTENCES_ALLOWED = 6
LONG_POINTS = -0.5
UNFINISHED_POINTS = -1.0
EMPTY_REWARD = -4.0
# One meeting, three different kind deeds, the wish granted, a happy ending.
BEST_REWARD = MEETING_POINTS + KIND_COUNTED * KIND_POINTS + GRANTED_POINTS + HAPPY_POINTS


@dataclass(frozen=True)
class Judgement:
    """What a text was found to hold.

    Attributes:
      meeting: the hero meets somebody.
      kind: different kind deeds of the hero to whom he met.
      mean: mean deeds.
      granted: the hero gets what he wished for, after a kind deed.
      wrong_wish: gifts of something else.
      ending: `happy`, `sad` or `none`; only the last sentence can be an ending.
      strays: sentences about somebody who is not in the story (or not yet), and second meetings.
      repeats: sentences that were there before.
      unreadable: sentences that the grammar does not have.
      too_late: sentences after an ending.
      too_long: sentences beyond the allowed number.
      unfinished: the last sentence has no full stop.
      empty: there is no completion.
    """

    meeting: bool = False
    kind: int = 0
    mean: int = 0
    granted: bool = False
    wrong_wish: int = 0
    ending: str = "none"
    strays: int = 0
    repeats: int = 0
    unreadable: int = 0
    too_late: int = 0
    too_long: int = 0
    unfinished: bool = False
    empty: bool = False

    @property
    def reward(self) -> float:
        """The true quality; at most `BEST_REWARD`, without a lower bound."""
        if self.empty:
            return EMPTY_REWARD
        faults = self.strays + self.unreadable + self.too_late
        return (
            MEETING_POINTS * self.meeting
            + KIND_POINTS * min(self.kind, KIND_COUNTED)
            + MEAN_POINTS * self.mean
            + GRANTED_POINTS * self.granted
            + WRONG_WISH_POINTS * self.wrong_wish
            + {"happy": HAPPY_POINTS, "sad": SAD_POINTS, "none": 0.0}[self.ending]
            + FAULT_POINTS * faults
            + REPEAT_POINTS * self.repeats
            + LONG_POINTS * self.too_long
            + UNFINISHED_POINTS * self.unfinished
        )


def _pattern(template: str) -> re.Pattern[str]:
    text = re.escape(template.removesuffix(" .")).replace(r"\{", "{").replace(r"\}", "}")
    for mark, words in (("h", NAMES), ("s", STRANGERS), ("w", WISHES)):
        text = text.replace("{" + mark + "}", f"(?P<{mark}>{'|'.join(words)})")
    return re.compile(text)


_PATTERNS = [
    (kind, _pattern(template))
    for kind, templates in (
        ("meeting", (MEETING,)),
        ("kind", KIND),
        ("mean", MEAN),
        ("neutral", NEUTRAL),
        ("granted", (GRANTED,)),
        ("happy", HAPPY),
        ("sad", SAD),
    )
    for template in templates
]
_SOMEBODY = {"it", "its", "It", "They"}
_OPENING = re.compile(
    rf"\s*Once there was a (?:{'|'.join(ANIMALS)}) named (?P<h>{'|'.join(NAMES)}) \. "
    rf"(?P=h) wanted a (?P<w>{'|'.join(WISHES)}) \."
)


def judge(text: str) -> Judgement:
    """Reads a whole story (prompt and completion, words apart by single spaces).

    Raises:
      ValueError: the text does not begin with an opening of this world.
    """
    opening = _OPENING.match(text)
    if opening is None:
        raise ValueError(f"not an opening of the story world: {text[:60]!r}")
    body = text[opening.end() :].strip()
    if not body:
        return Judgement(empty=True)
    sentences, words = [], []
    for word in body.split():
        if word == ".":
            sentences.append(" ".join(words))
            words = []
        else:
            words.append(word)
    unfinished = bool(words)
    if unfinished:
        sentences.append(" ".join(words))
    counts = dict.fromkeys(("mean", "wrong_wish", "strays", "repeats", "unreadable", "too_late"), 0)
    hero, wish = opening["h"], opening["w"]
    met, kind, granted, ending = False, 0, False, "none"
    seen: set[str] = set()
    for sentence in sentences:
        what, match = _read(sentence)
        if ending != "none":
            # A story that goes on had no ending.
            counts["too_late"] += 1
            ending = "none"
        if sentence in seen:
            counts["repeats"] += 1
            continue
        seen.add(sentence)
        if match is None:
            counts["unreadable"] += 1
            continue
        names = match.groupdict()
        # Without a meeting "it" and "they" are nobody.
        nobody = not met and bool(_SOMEBODY.intersection(sentence.split()))
        if names.get("h", hero) != hero or nobody or (what == "meeting" and met):
            counts["strays"] += 1
        elif what == "meeting":
            met = True
        elif what == "kind":
            kind += 1
        elif what == "mean":
            counts["mean"] += 1
        elif what == "granted" and names["w"] != wish:
            counts["wrong_wish"] += 1
        elif what == "granted":
            granted = granted or kind > 0
        elif what in ("happy", "sad"):
            ending = what
    return Judgement(
        meeting=met,
        kind=kind,
        granted=granted,
        ending=ending,
        too_long=max(0, len(sentences) - SENTENCES_ALLOWED),
        unfinished=unfinished,
        **counts,
    )


def _read(sentence: str) -> tuple[str, re.Match[str] | None]:
    for what, pattern in _PATTERNS:
        match = pattern.fullmatch(sentence)
        if match:
            return what, match
    return "unreadable", None


def true_reward(text: str) -> float:
    """The true quality of a whole story (prompt and completion), in points.

    +0.5 for a meeting, +1 for each different kind deed of the hero to whom he met (three
    count), +1 for the wish granted after a kind deed, +1.5 for a happy ending; -1 for a
    sad ending, each mean deed, each gift of something else, each sentence that is about
    somebody else (or about "it" before a meeting), follows an ending, or is not of the
    grammar; -0.5 for each repeated sentence and each above six; -1 for an unfinished last
    sentence; -4 for no story at all.

    Returns:
      At most `BEST_REWARD` (6 points).

    Raises:
      ValueError: the text does not begin with an opening of this world.
    """
    return judge(text).reward


def all_prompts(seed: int) -> list[str]:
    """Every opening of the world (800), shuffled by the seed."""
    prompts = [OPENING.format(a=a, h=h, w=w) for h in NAMES for a in ANIMALS for w in WISHES]
    random.Random(seed).shuffle(prompts)
    return prompts


def write_completion(rng: random.Random, prompt: str, quality: float) -> str:
    """One way for a story to go on; `quality` in [0, 1] makes good turns likelier and faults rarer."""
    opening = _OPENING.match(prompt)
    assert opening is not None
    hero, wish = opening["h"], opening["w"]
    bad = 1.0 - quality

    def say(template: str) -> str:
        strange = rng.random() < 0.2 * bad
        return template.format(
            h=rng.choice(NAMES) if strange else hero,
            s=rng.choice(STRANGERS),
            w=wish if rng.random() < 0.4 + 0.6 * quality else rng.choice(WISHES),
        )

    story = [say(MEETING)] if rng.random() < 0.95 else []
    for _ in range(rng.randint(1, 4)):
        draw = rng.random()
        kind_chance = 0.15 + 0.6 * quality
        group = KIND if draw < kind_chance else MEAN if draw < kind_chance + 0.65 * bad else NEUTRAL
        # Second meetings are a fault that raters must see, or a reward model cannot know it.
        deed = say(MEETING if rng.random() < 0.2 * bad else rng.choice(group))
        if deed not in story or rng.random() < bad:
            story.append(deed)
    if rng.random() < 0.2 + 0.3 * quality:
        story.append(say(GRANTED))
    if story and rng.random() < 0.5 * bad:
        story.append(rng.choice(story))
    draw = rng.random()
    if draw < 0.1 + 0.7 * quality:
        story.append(say(rng.choice(HAPPY)))
    elif draw < 0.8:
        story.append(say(rng.choice(SAD)))
    return " ".join(story)


def loose_sentences(rng: random.Random, prompt: str) -> str:
    """Two to six sentences of the grammar about the hero and his wish, in no order: what the base model has read.

    They keep to the hero's name and to his wish: copying a word of the prompt is learned
    late and all at once, and the noisier stories alone do not teach it to a model this small.
    """
    opening = _OPENING.match(prompt)
    assert opening is not None
    every = (MEETING, *KIND, *MEAN, *NEUTRAL, GRANTED, GRANTED, *HAPPY, *SAD)
    return " ".join(
        rng.choice(every).format(h=opening["h"], s=rng.choice(STRANGERS), w=opening["w"])
        for _ in range(rng.randint(2, 6))
    )


def preference(rng: random.Random, prompt: str, *, label_noise: float) -> dict[str, Any]:
    """A pair of completions of different true quality; with chance `label_noise` the label is wrong.

    Returns:
      prompt, chosen, rejected and `flipped`.
    """
    while True:
        pair = [write_completion(rng, prompt, rng.random()) for _ in range(2)]
        rewards = [true_reward(f"{prompt} {completion}") for completion in pair]
        if rewards[0] != rewards[1]:
            break
    if rewards[0] < rewards[1]:
        pair.reverse()
    flipped = rng.random() < label_noise
    if flipped:
        pair.reverse()
    return {"prompt": prompt, "chosen": pair[0], "rejected": pair[1], "flipped": flipped}


@dataclass(frozen=True)
class WorldFiles:
    """The files of a world, JSON lines each.

    Attributes:
      loose: demonstrations of loose sentences, for the base model.
      stories: demonstrations of mixed quality.
      preferences: pairs with noisy labels.
      held_out_preferences: pairs of other prompts, with labels that are all right.
      prompts: openings to learn from.
      held_out_stories: one demonstration for each held-out opening, for perplexity.
      held_out_prompts: openings that no other training file holds.
    """

    loose: Path
    stories: Path
    preferences: Path
    held_out_preferences: Path
    prompts: Path
    held_out_stories: Path
    held_out_prompts: Path


def write_world(
    folder: Path,
    *,
    seed: int,
    stories: int = 6000,
    preferences: int = 6000,
    held_out: int = 200,
    label_noise: float = 0.05,
) -> WorldFiles:
    """Writes all files of a world; the same arguments write the same bytes.

    Args:
      folder: made where it is not there.
      seed: of everything random.
      stories: demonstrations, and loose ones.
      preferences: training pairs.
      held_out: openings kept apart.
      label_noise: chance that a training pair's label is wrong, in [0, 0.5).
    """
    rng = random.Random(seed)
    prompts = all_prompts(seed)
    apart, known = prompts[:held_out], prompts[held_out:]

    def demonstrations(pool: list[str], count: int) -> Iterator[dict[str, Any]]:
        for index in range(count):
            prompt = pool[index % len(pool)]
            yield {"prompt": prompt, "completion": write_completion(rng, prompt, rng.random())}

    def loose() -> Iterator[dict[str, Any]]:
        for index in range(stories):
            prompt = known[index % len(known)]
            yield {"prompt": prompt, "completion": loose_sentences(rng, prompt)}

    def pairs(pool: list[str], count: int, noise: float) -> Iterator[dict[str, Any]]:
        for index in range(count):
            yield preference(rng, pool[index % len(pool)], label_noise=noise)

    folder.mkdir(parents=True, exist_ok=True)
    return WorldFiles(
        loose=write_rows(folder / "loose.jsonl", loose()),
        stories=write_rows(folder / "stories.jsonl", demonstrations(known, stories)),
        preferences=write_rows(folder / "preferences.jsonl", pairs(known, preferences, label_noise)),
        held_out_preferences=write_rows(
            folder / "held_out_preferences.jsonl", pairs(apart, 2 * held_out, 0.0)
        ),
        prompts=write_rows(folder / "prompts.jsonl", ({"prompt": p} for p in known)),
        held_out_stories=write_rows(folder / "held_out_stories.jsonl", demonstrations(apart, held_out)),
        held_out_prompts=write_rows(folder / "held_out_prompts.jsonl", ({"prompt": p} for p in apart)),
    )


def write_rows(path: Path, rows: Iterator[dict[str, Any]]) -> Path:
    """One JSON object a line; the file appears whole or not at all."""
    temporary = path.with_name(f".{path.name}")
    with open(temporary, "w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")
    os.replace(temporary, path)
    return path


def vocabulary() -> list[str]:
    """Every word of the world, sorted."""
    templates = (OPENING, MEETING, GRANTED, *KIND, *MEAN, *NEUTRAL, *HAPPY, *SAD)
    words = {word for template in templates for word in template.split() if not word.startswith("{")}
    return sorted(words | set(NAMES) | set(ANIMALS) | set(STRANGERS) | set(WISHES))


def build_tokenizer() -> Any:
    """A word-level tokenizer of this world as `PreTrainedTokenizerFast`; its vocabulary never changes.

    Ids 0 to 3 are `<pad>`, `<s>`, `</s>` and `<unk>`; a text begins with `<s>`.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    from jaxalign.models.huggingface import transformers_module

    words = {word: index for index, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *vocabulary()])}
    fast = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    fast.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", words["<s>"])]
    )
    return transformers_module().PreTrainedTokenizerFast(
        tokenizer_object=fast,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


def readable(text: str) -> str:
    """A story as a person writes it: no space before a full stop."""
    return text.replace(" .", ".")
