"""Prompts with an instruction that code can check, in IFEval's format: those to train on and others to test on."""

import random
from collections.abc import Sequence
from typing import Any

QUESTIONS = {
    "train": (
        "Name some animals that live on a farm.", "Why is the sky blue?", "How do I boil an egg?",
        "What is a library for?",
        "Tell me about the moon.", "How does a bicycle stay upright?", "What should I pack for a weekend at the beach?",
        "Why do leaves fall in autumn?", "What is bread made of?", "How can I sleep better?",
        "Describe a thunderstorm.",
        "What does a baker do?", "Tell me about elephants.", "How do plants drink?", "What makes a good friend?",
        "Why do cats purr?", "How do I plant a tree?", "What is the use of a map?", "Tell me about winter.",
        "What do bees do all day?", "How can I learn to swim?", "What is in a toolbox?", "Why do people dance?",
        "Describe a busy market.", "What is a river?", "How do I make lemonade?", "Tell me about trains.",
        "Why should I brush my teeth?", "What do doctors do?", "How do birds fly?",
    ),
    "test": (
        "Name some things in a kitchen.", "Why is the sea salty?", "How do I make tea?", "Tell me about the sun.",
        "What should I take on a hike?", "Why do dogs bark?", "What does a gardener do?", "Describe a snowy street.",
    ),
}  # fmt: skip

# What is asked, under IFEval's name and arguments. {word} is drawn for each prompt.
INSTRUCTIONS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "capitals": ("Write everything in capital letters.", "change_case:english_capital", {}),
    "lower case": ("Write everything in lower case letters.", "change_case:english_lowercase", {}),
    "three bullets": (
        "Answer with exactly three bullet points, each on a line that starts with *.",
        "detectable_format:number_bullet_lists",
        {"num_bullets": 3},
    ),
    "30 words": (
        "Use at most 30 words.",
        "length_constraints:number_words",
        {"num_words": 30, "relation": "at most"},
    ),
    "a word": ("Use the word {word}.", "keywords:existence", {"keywords": ["{word}"]}),
    "no comma": ("Do not use any commas.", "punctuation:no_comma", {}),
    "JSON": (
        'Answer with a JSON object that has one key, "answer".',
        "detectable_format:json_format",
        {},
    ),
    "quotation": ("Put your whole answer in double quotation marks.", "startend:quotation", {}),
}
WORDS = ("yellow", "river", "always", "seven", "happy", "window", "maybe", "garden")


def rows(part: str, seed: int = 0) -> list[dict[str, Any]]:
    """Every question of a part under every instruction, in a drawn order."""
    draw = random.Random(seed)
    found = [
        _row(question, name, draw.choice(WORDS)) for question in QUESTIONS[part] for name in INSTRUCTIONS
    ]
    draw.shuffle(found)
    return found


def _row(question: str, name: str, word: str) -> dict[str, Any]:
    said, instruction, arguments = INSTRUCTIONS[name]

    def filled(value: Any) -> Any:
        if isinstance(value, list):
            return [filled(one) for one in value]
        return value.replace("{word}", word) if isinstance(value, str) else value

    return {
        "prompt": [{"role": "user", "content": f"{question} {filled(said)}"}],
        "instruction_id_list": [instruction],
        "kwargs": [{key: filled(value) for key, value in arguments.items()}],
        "name": name,
    }


def columns(rows: Sequence[dict[str, Any]], samples: int = 1) -> dict[str, list[Any]]:
    """What the reward reads, of `samples` answers to each row."""
    return {
        key: [row[key] for row in rows for _ in range(samples)] for key in ("instruction_id_list", "kwargs")
    }
