"""Sheets for human raters: a csv file and a page (HTML) for each, and beside them the key, which no rater sees."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxalign.errors import ConfigError, DataError
from jaxalign.evaluation.human_sheet.answers import Said, common_prompts, read_all, read_model_answers, shown
from jaxalign.evaluation.human_sheet.key import COLUMN, Item, Key
from jaxalign.evaluation.human_sheet.page import PAIR_QUESTION, RATING_QUESTION, rater_page
from jaxalign.evaluation.human_sheet.plan import assign, items_to_rate, pair_items, sides
from jaxalign.runs.records import write_whole

# Of the prompts that lack an answer, so many are shown, so many characters of each.
SHOWN, LETTERS = 3, 60


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """What was exported.

    Attributes:
      key: the file that says which model is where.
      files: of the raters, csv and HTML in turn.
      sheet: its name, which every row of a rater carries.
      items: rated.
      left_out: items that the raters have no room for.
      loads: items of each rater.
      identical: items whose two answers are the same.
      missing: of each model the prompts that it has no answer to, and another has.
      doubled: of each model the prompts of its further answers, which are left out.
    """

    key: Path
    files: tuple[Path, ...]
    sheet: str
    items: int
    left_out: int
    loads: Mapping[str, int]
    identical: int
    missing: Mapping[str, tuple[str, ...]]
    doubled: Mapping[str, tuple[str, ...]]

    def lines(self) -> list[str]:
        """For the terminal."""
        loads = self.loads.values()
        each = f"{min(loads)}" if min(loads) == max(loads) else f"{min(loads)} to {max(loads)}"
        found = [
            f"sheet {self.sheet}: {self.items} items, {len(self.loads)} raters of {each} items; {self.key}"
        ]
        if self.left_out:
            found.append(f"{self.left_out} items are left out, as the raters have no room for them")
        if self.identical:
            found.append(f"{self.identical} items have the same answer on both sides")
        for model, prompts in self.missing.items():
            found += _told(f"{model}: no answer to", prompts)
        for model, prompts in self.doubled.items():
            found += _told(f"{model}: further answers are left out of", prompts)
        return found


def export_pair_sheet(
    files: Sequence[str],
    folder: str | Path,
    *,
    seed: int,
    names: Sequence[str] = (),
    questions: str = "",
    raters: int = 1,
    overlap: int = 1,
    items_per_rater: int = 0,
    question: str = PAIR_QUESTION,
) -> Sheet:
    """Writes sheets on which raters choose between two models' answers to a prompt, without knowing the models.

    An item is a prompt that all files answer, and two of the models. Sides are random, half of the items of two models
    each way; all raters of an item see the same.

    Args:
      files: of answers, one a model; see `answers.read_model_answers`.
      folder: where key.json and rater-1.csv, rater-1.html, ... are written; it may not hold a key yet.
      seed: of the sides, the raters' items and their order.
      names: of the models; none takes those in the files. They stand in the key alone.
      questions: MT-bench's questions, where an answer file is of that layout.
      raters: their number.
      overlap: raters of each item; agreement needs 2.
      items_per_rater: at most; 0 for as many as all items need. Where there are more items, prompts are chosen at
        random.
      question: what raters are asked, plain text.

    Raises:
      DataError: a file that is no answer file, no common prompt, or a folder that holds a key.
      ConfigError: fewer than two files, or numbers of raters and items that do not fit.
    """
    if len(files) < 2:
        raise ConfigError(f"files: expected the answers of two models or more, got {len(files)}")
    _check_free(folder)
    several = read_all(files, names=names, questions=questions)
    common, missing = common_prompts(several)
    rng = np.random.default_rng(seed)
    every = pair_items(len(common), len(several), rng)
    count = items_to_rate(len(every), raters=raters, overlap=overlap, items_per_rater=items_per_rater)
    compared = every[:count]
    flips = sides([(first, second) for _, first, second in compared], rng)
    items = []
    for (prompt, *two), flip in zip(compared, flips, strict=True):
        placed = [several[model] for model in (two[::-1] if flip else two)]
        items.append(
            Item(
                prompt=several[0].prompts[common[prompt]],
                models=tuple(one.model for one in placed),
                answers=tuple(one.answers[common[prompt]] for one in placed),
            )
        )
    key = Key(
        kind="pair",
        seed=seed,
        models=tuple(one.model for one in several),
        items=_named(items),
        raters=_raters(len(items), raters, overlap, rng),
    )
    doubled = {one.model: one.doubled for one in several}
    return _write(key, Path(folder), question, len(every) - count, missing, doubled)


def export_rating_sheet(
    file: str,
    folder: str | Path,
    *,
    seed: int,
    name: str = "",
    questions: str = "",
    raters: int = 1,
    overlap: int = 1,
    items_per_rater: int = 0,
    question: str = RATING_QUESTION,
) -> Sheet:
    """Writes sheets on which raters rate one model's answers from 1 to 5.

    Args:
      file: of answers; see `answers.read_model_answers`.
      name: of the model; empty takes that in the file.
      question: what raters are asked; it says what 1 and 5 mean.
      folder, seed, questions, raters, overlap, items_per_rater: see `export_pair_sheet`.

    Raises:
      DataError, ConfigError: as `export_pair_sheet`.
    """
    _check_free(folder)
    one = read_model_answers(file, name=name, questions=questions)
    rng = np.random.default_rng(seed)
    prompts = list(one.answers)
    count = items_to_rate(len(prompts), raters=raters, overlap=overlap, items_per_rater=items_per_rater)
    chosen = [prompts[i] for i in rng.permutation(len(prompts))[:count]]
    items = [Item(prompt=one.prompts[p], models=(one.model,), answers=(one.answers[p],)) for p in chosen]
    key = Key(
        kind="rating",
        seed=seed,
        models=(one.model,),
        items=_named(items),
        raters=_raters(len(items), raters, overlap, rng),
    )
    return _write(
        key, Path(folder), question, len(prompts) - count, {one.model: ()}, {one.model: one.doubled}
    )


def rater_table(key: Key, rater: str) -> str:
    """A rater's csv: the texts, and an empty column to fill. No model's name is in it."""
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    answers = ["answer_a", "answer_b"] if key.kind == "pair" else ["answer"]
    writer.writerow(["sheet", "rater", "item", "prompt", *answers, COLUMN[key.kind]])
    for name in key.raters[rater]:
        item = key.items[name]
        texts = [_cell(shown(said)) for said in (item.prompt, *item.answers)]
        writer.writerow([key.sheet, rater, name, *texts, ""])
    return file.getvalue()


def _cell(said: Said) -> str:
    """Turns as one text, which no spreadsheet takes for a formula."""
    parts = [said[0][1]] if len(said) == 1 else [f"{role}: {text}" for role, text in said]
    text = "\n\n".join(parts)
    return f"'{text}" if text[:1] in tuple("=+-@") else text


def _named(items: Sequence[Item]) -> dict[str, Item]:
    width = len(str(len(items)))
    return {f"item-{number:0{width}}": item for number, item in enumerate(items, 1)}


def _raters(items: int, raters: int, overlap: int, rng: np.random.Generator) -> dict[str, tuple[str, ...]]:
    width = len(str(items))
    given = assign(items, raters=raters, overlap=overlap, rng=rng)
    return {
        str(rater): tuple(f"item-{item + 1:0{width}}" for item in mine) for rater, mine in enumerate(given, 1)
    }


def _check_free(folder: str | Path) -> None:
    if (Path(folder) / "key.json").exists():
        raise DataError(
            f"{folder}: holds the key of a sheet already, without which its ratings are lost; give another folder"
        )


def _write(
    key: Key,
    folder: Path,
    question: str,
    left_out: int,
    missing: Mapping[str, Sequence[Said]],
    doubled: Mapping[str, Sequence[Said]],
) -> Sheet:
    idle = [rater for rater, names in key.raters.items() if not names]
    if idle:
        raise ConfigError(
            f"raters: {len(idle)} of {len(key.raters)} would get no item; expected fewer raters"
        )
    files = []
    for rater in key.raters:
        for suffix, text in ((".csv", rater_table(key, rater)), (".html", rater_page(key, rater, question))):
            path = folder / f"rater-{rater}{suffix}"
            # Spreadsheets take a csv without the mark for some older encoding.
            write_whole(path, "\ufeff" + text if suffix == ".csv" else text)
            files.append(path)
    # At last: where there is a key, the sheets are whole.
    write_whole(folder / "key.json", key.text())
    return Sheet(
        key=folder / "key.json",
        files=tuple(files),
        sheet=key.sheet,
        items=len(key.items),
        left_out=left_out,
        loads={rater: len(names) for rater, names in key.raters.items()},
        identical=sum(
            len(one.answers) == 2 and one.answers[0] == one.answers[1] for one in key.items.values()
        ),
        missing={model: tuple(map(_asked, prompts)) for model, prompts in missing.items()},
        doubled={model: tuple(map(_asked, prompts)) for model, prompts in doubled.items()},
    )


def _asked(prompt: Said) -> str:
    return prompt[-1][1]


def _told(what: str, prompts: Sequence[str]) -> list[str]:
    if not prompts:
        return []
    some = [" ".join(prompt.split())[:LETTERS] for prompt in prompts[:SHOWN]]
    more = f" and {len(prompts) - SHOWN} more" if len(prompts) > SHOWN else ""
    return [f"{what} {len(prompts)} prompts: {', '.join(map(repr, some))}{more}"]
