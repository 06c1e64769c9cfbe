"""A taste taught to a real chat model: DPO with LoRA on pairs whose chosen answer has two sentences.

Run: python examples/demo_chat.py MODEL OUTPUT_FOLDER (make demo-chat fetches SmolLM2-135M-Instruct and runs it)

Prints answers to questions that are not among the pairs, before and after, and how many have two sentences at most.
"""

import re
import shutil
import sys
import textwrap
import time
from pathlib import Path

import jaxalign as ja
from jaxalign.inference.generate import GenerateConfig, generate

PAIRS = Path(__file__).with_name("data") / "two_sentences.jsonl"
QUESTIONS = (
    "Why do we yawn?",
    "How do I make a good sandwich?",
    "What is a volcano?",
    "Should I learn to play the guitar or the piano?",
    "How do I clean a keyboard?",
    "What is electricity?",
    "Can you suggest a gift for my grandmother?",
    "Why is exercise good for you?",
    "How do I write a poem?",
    "What do owls eat?",
    "How can I remember names better?",
    "What is a democracy?",
    "How do I get rid of ants in the kitchen?",
    "Why do stars twinkle?",
    "What is the largest animal on Earth?",
    "How do I prepare for a job interview?",
)


def sentences(text: str) -> int:
    """Sentences of an answer; an item of a list counts as one, and so does what was cut off."""
    return len([part for part in re.split(r"(?<=[.!?])\s+|\n+", text.strip()) if re.search(r"\w{2}", part)])


def answers(model: str, output: Path, new_tokens: int) -> list[str]:
    """Greedy answers to the questions."""
    sampling = ja.SamplingConfig(max_new_tokens=new_tokens, temperature=0.0)
    rows = generate(GenerateConfig(model=model, prompt=QUESTIONS, sampling=sampling, output=str(output)))
    return [row["completion"].strip() for row in rows]


def train(model: str, output: str, steps: int = 36, new_tokens: int = 96) -> tuple[list[str], list[str]]:
    """Answers before and after; the run is in OUTPUT/run."""
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    before = answers(model, folder / "before.jsonl", new_tokens)
    ja.train_dpo(
        ja.DPOConfig(
            run=ja.RunConfig(output=str(folder / "run"), sample_rows=0),
            model=ja.ModelSource(path=model),
            data=ja.DataConfig(train=(str(PAIRS),), validation_fraction=0.0),
            # Few pairs alone would make both answers less likely: a strong anchor and SFT hold them.
            loss=ja.DPOLossConfig(beta=0.5, sft_weight=2.0),
            lora=ja.LoraConfig(enabled=True, rank=16, alpha=32.0),
            train=ja.TrainConfig(batch_size=4, steps=steps),
            optimizer=ja.OptimizerConfig(learning_rate=5e-4, schedule="cosine", warmup_ratio=0.1),
            reference_logps="precomputed",
        )
    )
    return before, answers(str(folder / "run"), folder / "after.jsonl", new_tokens)


def side_by_side(left: str, right: str, width: int) -> str:
    """Two texts in columns."""
    columns = [
        [line for part in text.splitlines() or [""] for line in textwrap.wrap(part, width) or [""]]
        for text in (left, right)
    ]
    rows = max(map(len, columns))
    a, b = (lines + [""] * (rows - len(lines)) for lines in columns)
    return "\n".join(f"{x:<{width}} | {y}" for x, y in zip(a, b, strict=True))


def main(model: str, output: str) -> None:
    started = time.monotonic()
    before, after = train(model, output)
    width = (min(shutil.get_terminal_size().columns, 160) - 3) // 2
    for question, old, new in list(zip(QUESTIONS, before, after, strict=True))[:6]:
        print(f"\n== {question}\n" + side_by_side(f"BEFORE\n{old}", f"AFTER\n{new}", width))
    short = [sum(sentences(text) <= 2 for text in texts) for texts in (before, after)]
    words = [sum(len(text.split()) for text in texts) / len(texts) for texts in (before, after)]
    print(f"\nanswers of at most two sentences: {short[0]} of {len(before)} before, {short[1]} after")
    print(f"words an answer: {words[0]:.0f} before (cut off at 96 tokens), {words[1]:.0f} after")
    print(f"{time.monotonic() - started:.0f} s; all answers: {output}/before.jsonl and after.jsonl")
    print(f"Talk to it:  .venv/bin/jaxalign chat {output}/run")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python examples/demo_chat.py MODEL OUTPUT_FOLDER")
    main(*sys.argv[1:])
