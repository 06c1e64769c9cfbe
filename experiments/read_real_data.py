"""Reads every real data file with the reader that detection picks, and prints the counts.

Claims: every row is used or counted under a reason; no file needs a converter of its own; a column that nothing reads
is named, and one that says how good a row is stops the file until it is ignored (`LEFT`).
Command: python experiments/read_real_data.py ../shared/data
Hardware, time: any CPU; 3 seconds, with --tokens about a minute and a half.
Expect: one line a file; `in` = `used` + the numbers behind `filtered`, which the reader checks itself.

With `--tokens` the rows are also tokenized (stories and sentiment with the story model's
tokenizer, the rest with GPT-2's, 1,024 tokens) and split, as a training run would.
"""

import argparse
from pathlib import Path
from typing import Any, Literal

from jaxalign.data import Comparison, DataConfig, Ranking, detect, load_dataset, read_records
from jaxalign.data.files import rows_of
from jaxalign.data.readers import Reading
from jaxalign.errors import UserError

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".csv", ".parquet")
FOLDERS = ("preferences", "sft", "sentiment", "stories")
# Labels and scores that this reading does not ask for.
LEFT = ("label", "judgment", "score")


def data_files(folder: Path) -> list[Path]:
    """The training files under `folder`."""
    files = [file for name in FOLDERS for file in sorted((folder / name).glob("*"))]
    return [file for file in files if file.name.endswith(SUFFIXES)]


def settings(file: Path) -> dict[str, Any]:
    """Columns to leave: those of `LEFT` that the file's format does not read by itself."""
    _, row = next(iter(rows_of(str(file))))
    if isinstance(row, UserError) or detect(row):
        return {}
    return {"ignore_columns": tuple(name for name in LEFT if name in row)}


def detected(file: Path) -> str:
    """Name of the format of a file's first row, and the columns that it is told to leave."""
    _, row = next(iter(rows_of(str(file))))
    if isinstance(row, UserError):
        return "malformed"
    left = settings(file).get("ignore_columns", ())
    name = detect({column: value for column, value in row.items() if column not in left}) or "none"
    return f"{name}, without {', '.join(left)}" if left else name


def tokenized(file: Path, data: Path, on_bad_row: Literal["stop", "skip"]) -> str:
    """Rows that a training run would get."""
    from jaxalign.models import load_tokenizer

    short = file.parent.name in ("stories", "sentiment")
    tokenizer = load_tokenizer(data / ("models/stories260K" if short else "tokenizers/gpt2"))
    reading = Reading(**settings(file))
    records, _ = read_records(str(file), on_bad_row=on_bad_row, reading=reading)
    first, kind = records[0], "demonstration"
    if isinstance(first, Comparison):
        kind = "comparison"
    elif isinstance(first, Ranking):
        kind = "ranking"
    config = DataConfig(
        train=(str(file),),
        **settings(file),
        on_bad_row=on_bad_row,
        max_length=512 if short else 1024,
        truncation="filter",
        template="plain" if short else "markers",
        end_token="<s>" if short else "",
    )
    found = load_dataset(config, kind, tokenizer, seed=0)
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(found.counts.filtered.items()))
    return f"{kind} | {len(found.train)} | {len(found.validation)} | {reasons or '-'}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "data", type=Path, help="the folder that holds preferences/, sft/, sentiment/, stories/"
    )
    parser.add_argument("--skip", action="store_true", help="count bad rows instead of stopping at the first")
    parser.add_argument("--tokens", action="store_true", help="tokenize and split as well")
    arguments = parser.parse_args()
    bad: Literal["stop", "skip"] = "skip" if arguments.skip else "stop"
    title = "kind | train | validation | filtered" if arguments.tokens else "in | used | filtered | unread"
    print(f"| file | format | {title} |")
    print("| --- " * (title.count("|") + 3) + "|")
    for file in data_files(arguments.data):
        try:
            if arguments.tokens:
                body = tokenized(file, arguments.data, bad)
            else:
                _, counts = read_records(str(file), on_bad_row=bad, reading=Reading(**settings(file)))
                reasons = ", ".join(f"{n} {reason}" for reason, n in sorted(counts.filtered.items()))
                unread = ", ".join(sorted(counts.unread))
                body = f"{counts.read} | {counts.used} | {reasons or '-'} | {unread or '-'}"
        except UserError as error:
            body = f"stopped: {str(error).replace(str(arguments.data), '...')}"
        print(f"| {file.relative_to(arguments.data)} | {detected(file)} | {body} |", flush=True)


if __name__ == "__main__":
    main()
