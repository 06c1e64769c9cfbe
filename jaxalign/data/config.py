"""What is read, and how it becomes rows of tokens: the keys of the section `data`."""

import datetime
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from jaxalign.config_values import as_tuples

Kind = Literal["demonstration", "comparison", "ranking", "label", "stepwise", "prompt"]
Truncation = Literal["filter", "cut_completion", "cut_prompt_start"]
# Tokens of a row where data.max_length leaves it open, and the model reads as many.
USUAL_LENGTH = 1024


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is read, and how it becomes rows of tokens.

    Attributes:
      train: files, saved `datasets` folders or hub ids (owner/name:configuration@revision#split, of which all but
        owner/name may be left out).
      validation: held-out files; empty splits them off train.
      format: layout of the files, or auto.
      columns: ours to theirs, for files of any layout: {"prompt": "question", "chosen": "answers.0.text"}.
      ignore_columns: columns that may go unread, though their names say that they hold part of a prompt, a label or a
        score.
      keep: columns to a value or a list of values; rows with others are left out: {"is_safe": true}.
      weights: how often each train file counts, relative to its size; empty for 1 each.
      validation_fraction: part of the prompts held out, where validation is empty.
      limit: rows that are read of the training files at most, evenly from all of them, before anything is filtered or
        tokenized; 0 for all.
      max_bytes: bytes that a file may hold once it is decompressed; 0 lets a compressed file expand a hundredfold.
      workers: processes that tokenize; 0 for one a core, 32 at most. Few rows take none.
      cache: folder for tokenized rows; empty takes $JAXALIGN_CACHE, else ~/.cache/jaxalign.
      streaming: tokenize while training and keep nothing on the disk; needs train.steps.
      window: rows of a stream that are shuffled together.
      date: the day that a chat template prints, as YYYY-MM-DD; empty takes the day on which the run began.
      max_length: tokens of prompt and completion together; 0 takes 1024, or the model's context where that is less.
      max_prompt_length: tokens of the prompt; 0 for no limit of its own.
      truncation: what happens to longer rows: cut_completion (its end is cut off; rows whose prompt alone is too long
        are left out), cut_prompt_start (the prompt's beginning is) or filter (they are left out).
      prompt_tokens: leading tokens that make the prompt, where rows are plain text.
      separator: text that ends each step of a solution, where rows hold steps with labels.
      template: auto, tokenizer (its chat template), markers (turn markers) or plain (joined as they are).
      human: marker of the user's turns.
      assistant: marker of the assistant's turns.
      end_token: token that ends a completion, as text or id; empty takes the tokenizer's (with its chat
        template: the template's own end), none appends nothing.
      dimension: PKU-SafeRLHF: which label prefers, better or safer.
      label_tokenizer: tokenizer of label files that hold token ids.
      score_field: field with a score, a number or prose with one, for min_score.
      min_score: rows with a lower score are left out; unscored rows too.
      type_field: field that `types` looks at.
      types: keep only rows whose type_field is one of these; empty keeps all.
      deduplicate: leave out rows that repeat an earlier one.
      on_bad_row: stop at a bad row, or skip and count it.
    """

    train: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()
    format: str = "auto"
    columns: dict[str, str] = field(default_factory=dict)
    ignore_columns: tuple[str, ...] = ()
    keep: dict[str, Any] = field(default_factory=dict)
    weights: tuple[float, ...] = ()
    validation_fraction: float = 0.05
    limit: int = 0
    max_bytes: int = 0
    workers: int = 0
    cache: str = ""
    streaming: bool = False
    window: int = 10_000
    date: str = ""
    max_length: int = 0
    max_prompt_length: int = 0
    truncation: Truncation = "cut_completion"
    prompt_tokens: int = 0
    separator: str = "\n"
    template: Literal["auto", "tokenizer", "markers", "plain"] = "auto"
    human: str = "\n\nHuman:"
    assistant: str = "\n\nAssistant:"
    end_token: str = ""
    dimension: Literal["better", "safer"] = "better"
    label_tokenizer: str = ""
    score_field: str = "score"
    min_score: float | None = None
    type_field: str = "type"
    types: tuple[str, ...] = ()
    deduplicate: bool = True
    on_bad_row: Literal["stop", "skip"] = "stop"

    def __post_init__(self) -> None:
        as_tuples(self, "train", "validation", "ignore_columns", "types", "weights")
        if self.weights and len(self.weights) != len(self.train):
            raise ValueError(
                f"data.weights: expected one for each of the {len(self.train)} files in data.train"
            )
        if any(w <= 0 for w in self.weights):
            raise ValueError(f"data.weights must be positive, got {list(self.weights)}")
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(f"data.validation_fraction must lie in [0, 1), got {self.validation_fraction}")
        if self.min_score is not None and not self.score_field:
            raise ValueError("data.min_score needs data.score_field")
        for name in ("limit", "max_bytes", "workers", "max_prompt_length", "prompt_tokens"):
            if getattr(self, name) < 0:
                raise ValueError(f"data.{name} must not be negative, got {getattr(self, name)}")
        if self.window < 1:
            raise ValueError(f"data.window must be 1 or more, got {self.window}")
        if self.date:
            try:
                datetime.date.fromisoformat(self.date)
            except ValueError:
                raise ValueError(f"data.date: expected a day as YYYY-MM-DD, got {self.date!r}") from None
        if not self.separator:
            raise ValueError("data.separator must not be empty")
        check_separator("data.separator", self.separator)
        if self.max_length < 0 or self.max_length == 1:
            raise ValueError(f"data.max_length must be 2 or more, or 0 for the usual, got {self.max_length}")

    def within(self, context: int = USUAL_LENGTH) -> "DataConfig":
        """The same with a `max_length`, where it is left open, that a model of so many positions can read."""
        return self if self.max_length else replace(self, max_length=max(min(USUAL_LENGTH, context), 2))


def check_separator(key: str, separator: str) -> None:
    """Refuses a new line that a shell left as it was typed, which no text would hold.

    Raises:
      ValueError: naming the key.
    """
    if separator and not separator.replace("\\n", ""):
        raise ValueError(
            f"{key}: {separator} is a backslash and an n, not a new line; write $'{separator}' in the shell"
        )
