"""How long rows take to become batches, and what they cost in memory and on the disk.

    python benchmarks/data.py --tokenizer FOLDER --rows 10000 100000 1000000

Writes files of synthetic rows, of about 64 tokens each, and for each starts this script again: cold, so that the file
is tokenized, and warm, so that it is read from the cache. Seconds are from the start of the process to the first batch
of training, seconds of a processor (of the cold start) those of its workers too. Memory is the most that the process
itself has held in both, its workers left out: anonymous is its own, files are pages that the system may take back.
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

BATCH = 32
TOKENS = 64


def write_rows(path: Path, count: int, tokenizer: str, seed: int = 0) -> None:
    """Prompts and completions of words that the tokenizer knows, about `TOKENS` a row with its end."""
    from tokenizers import Tokenizer

    known = Tokenizer.from_file(str(Path(tokenizer) / "tokenizer.json"))
    words = sorted(
        word[1:]
        for word in known.get_vocab()
        if word[:1] == "\u0120" and word[1:].isalpha() and word.isalpha()
    )
    draw = random.Random(seed)
    draw.shuffle(words)
    # As often as in text: the n-th word every 1 / n.
    often = [1 / (n + 3) for n in range(len(words))]
    some = [" ".join(draw.choices(words, often, k=24)) for _ in range(4096)]
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            # A number of six digits makes each row new.
            row = {
                "prompt": f"{draw.choice(some)} {number:06d}?",
                "completion": f"{draw.choice(some)} {draw.choice(words)}.",
            }
            file.write(json.dumps(row) + "\n")


def first_batch(path: str, tokenizer: str, cache: str, workers: int, template: Any) -> dict[str, float]:
    """Loads a file and makes one batch; what it took."""
    from jaxalign import models
    from jaxalign.data import BatchIterator, DataConfig, collate_demonstrations, load_dataset

    peak = Peak()
    config = DataConfig(
        train=(path,),
        cache=cache,
        workers=workers,
        validation_fraction=0.01,
        template=template,
        max_length=512,
        truncation="filter",
    )
    data = load_dataset(config, "demonstration", models.load_tokenizer(tokenizer), seed=0)
    batches = BatchIterator(data.train, batch_size=BATCH, seed=0, collate=collate_demonstrations)
    batch = batches.next()
    ready = time.time() - float(os.environ["BEGUN"])
    begun = time.perf_counter()
    for _ in range(50):
        batches.next()
    peak.done.set()
    peak.join()
    return {
        "rows": data.counts.read,
        "examples": len(data.train) + len(data.validation),
        "tokens": float(batch["lengths"].mean()),
        "seconds": ready,
        "cpu": sum(
            resource.getrusage(who).ru_utime for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        ),
        "batch_ms": 20 * (time.perf_counter() - begun),
        "anonymous_mib": peak.most["RssAnon"] / 1024,
        "file_mib": peak.most["RssFile"] / 1024,
    }


class Peak(threading.Thread):
    """Watches what the process holds."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.done, self.most = threading.Event(), dict.fromkeys(("RssAnon", "RssFile"), 0)
        self.start()

    def run(self) -> None:
        """Looks twenty times a second."""
        while not self.done.wait(0.05):
            held = memory()
            self.most = {name: max(most, held[name]) for name, most in self.most.items()}


def memory() -> dict[str, int]:
    """KiB that the process holds now, by kind."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return {
        name: int(value.split()[0])
        for name, _, value in (line.partition(":") for line in lines)
        if "kB" in value
    }


def measured(*arguments: str) -> dict[str, float]:
    """One start of this script as a process of its own."""
    environment = os.environ | {"BEGUN": str(time.time()), "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokenizer", required=True, help="a folder with tokenizer.json")
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--template", default="auto")
    parser.add_argument("--folder", default="", help="of the files and the cache; empty for a temporary one")
    parser.add_argument("--one", nargs=2, metavar=("FILE", "CACHE"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        print(
            json.dumps(
                first_batch(asked.one[0], asked.tokenizer, asked.one[1], asked.workers, asked.template)
            )
        )
        return
    print(
        "      rows  tokens  cold s   cpu s  rows/s  warm s  batch ms  anonymous MiB  files MiB  disk B/row"
    )
    with tempfile.TemporaryDirectory() as temporary:
        for count in asked.rows:
            folder = Path(asked.folder or temporary) / str(count)
            folder.mkdir(parents=True, exist_ok=True)
            path, cache = folder / "rows.jsonl", folder / "cache"
            if not path.exists():
                write_rows(path, count, asked.tokenizer)
            for left in (cache / "data").glob("*.arrow"):
                left.unlink()
            options = [
                "--tokenizer",
                asked.tokenizer,
                "--workers",
                str(asked.workers),
                "--template",
                asked.template,
            ]
            cold, warm = (measured(*options, "--one", str(path), str(cache)) for _ in range(2))
            size = sum(file.stat().st_size for file in (cache / "data").glob("*.arrow"))
            anonymous, files = (max(cold[n], warm[n]) for n in ("anonymous_mib", "file_mib"))
            print(
                f"{count:10,d} {cold['tokens']:7.1f} {cold['seconds']:7.1f} {cold['cpu']:7.1f} "
                f"{count / cold['seconds']:7,.0f} {warm['seconds']:7.1f} {warm['batch_ms']:9.2f} {anonymous:14.0f} "
                f"{files:10.0f} {size / count:11.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
