"""Writes lengths.json: how long real dialogues are, in tokens, as 64 quantiles.

usage: python benchmarks/lengths.py FILE TOKENIZER, for example HH-RLHF's harmless-base pairs and GPT-2's tokenizer
"""

import json
import sys
from pathlib import Path

import numpy as np

from jaxalign import models
from jaxalign.data import DataConfig, load_dataset


def main() -> None:
    """Reads the chosen side of the comparisons in a file."""
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    file, tokenizer = sys.argv[1:]
    config = DataConfig(train=(file,), max_length=1_000_000, template="markers", validation_fraction=0.0)
    data = load_dataset(config, "comparison", models.load_tokenizer(tokenizer), seed=0)
    counts = [len(example.rows[0]) for example in data.train]
    quantiles = np.quantile(counts, (np.arange(64) + 0.5) / 64).round().astype(int).tolist()
    result = {
        "file": Path(file).name,
        "rows": len(counts),
        "tokenizer": Path(tokenizer).name,
        "tokens": quantiles,
    }
    Path(__file__).with_name("lengths.json").write_text(json.dumps(result) + "\n")
    print(f"{len(counts)} dialogues, {min(counts)} to {max(counts)} tokens, mean {np.mean(counts):.0f}")


if __name__ == "__main__":
    main()
