"""The inputs of a case, the same for both sides: initial weights, and rows of token ids in the order they are seen."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from cases import PROMPT, SEED, Case
from shapes import dialogue_lengths, shape
from storage import read_json, write_json
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from jaxalign import models
from jaxalign.models import HeadConfig

ROWS = 640
# Tokens of all rows together at most, where rows are long.
TOKENS = 1 << 19


def write_inputs(case: Case, folder: Path) -> None:
    """Writes model/, scalar/ (where the task needs one), data.jsonl and rows.json; inputs.json says what they are for.

    What is there already and was made for the same (`needs`) is left as it is.
    """
    mark, wanted = folder / "inputs.json", needs(case)
    if read_json(mark) == wanted:
        return
    folder.mkdir(parents=True, exist_ok=True)
    # Written again at the end: inputs that are half there are for nothing.
    mark.unlink(missing_ok=True)
    tokenizer = words(case.shape["vocab"])
    model = models.create(shape(case.model), key=jax.random.key(SEED))
    models.save_pretrained(model, folder / "model", tokenizer=tokenizer)
    if case.task in ("reward", "ppo"):
        # A reward model begins at zero on both sides; in PPO the rewards, and the values, are to differ.
        head = HeadConfig(init_std=0.0) if case.task == "reward" else HeadConfig()
        scalar = models.create_scalar_model(model, head, key=jax.random.key(SEED + 1))
        models.save_reward_model(scalar, folder / "scalar", tokenizer=tokenizer)
    rows = make_rows(case)
    with open(folder / "data.jsonl", "w") as file:
        for row in rows:
            texts = {name: " ".join(f"w{i}" for i in ids) for name, ids in row.items()}
            # Completions are joined to their prompt as they are.
            texts |= {name: " " + texts[name] for name in ("chosen", "rejected") if name in texts}
            file.write(json.dumps(texts) + "\n")
    # jaxalign's own order of the first epoch, which the peer then reads from the first row to the last.
    order = np.random.default_rng((SEED, 0)).permutation(len(rows))
    (folder / "rows.json").write_text(json.dumps([rows[i] for i in order]))
    write_json(mark, wanted)


def needs(case: Case) -> dict[str, Any]:
    """All that a case's weights and rows are made from."""
    return {
        "task": case.task,
        "shape": case.shape,
        "lengths": dialogue_lengths() if case.chat else [],
        "seed": SEED,
        "rows": [ROWS, TOKENS, PROMPT],
    }


def words(vocabulary: int) -> PreTrainedTokenizerFast:
    """A tokenizer whose words w4, w5, ... are ids 4, 5, ..."""
    table = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3} | {f"w{i}": i for i in range(4, vocabulary)}
    tokenizer = Tokenizer(WordLevel(table, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    )


def make_rows(case: Case) -> list[dict[str, list[int]]]:
    """Random tokens; lengths full or as in real dialogues."""
    random = np.random.default_rng(SEED)
    length = case.shape["length"]

    def tokens(count: int) -> list[int]:
        return random.integers(4, case.shape["vocab"], count).tolist()

    def longest() -> int:
        if not case.chat:
            return length
        return int(np.clip(random.choice(dialogue_lengths()), 8, length))

    if case.task == "sft":
        return [{"text": tokens(longest())} for _ in range(min(ROWS, TOKENS // length))]
    if case.task in ("reward", "dpo"):
        # A prompt of a quarter of the row, as in the peers' scripts; completions of their own lengths.
        rows = []
        for _ in range(ROWS):
            whole = (longest(), longest())
            prompt = tokens(max(1, min(whole) // 4))
            chosen, rejected = (tokens(n - len(prompt)) for n in whole)
            rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
        return rows
    return [{"prompt": tokens(PROMPT)} for _ in range(ROWS)]
