"""Which files to read, and how to turn their rows into tokens: the keys of the section `data`."""

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
    """Which files to read, and how to turn their rows into tokens.

    Attributes:
      train: training data: files, saved `datasets` folders or hub ids (owner/name:configuration@revision#split;
        everything after owner/name is optional).
      validation: validation data, in the same forms; empty holds out validation_fraction of train.
      format: layout of the rows by name; auto recognizes it from the columns.
      columns: jaxalign's column names mapped to those of the files, for any layout: {"prompt": "question", "chosen":
        "answers.0.text"}.
      ignore_columns: columns to leave unread although their names suggest part of a prompt, a label or a score.
      keep: keep only rows whose columns have the given value, or one of a list of values: {"is_safe": true}.
      weights: sampling weight of each training file, relative to its size; empty weights all by 1.
      validation_fraction: fraction of the prompts to hold out when `validation` is empty.
      limit: maximum number of rows to read from the training files, spread evenly over all of them, before filtering
        and tokenizing; 0 reads all.
      max_bytes: maximum size of a decompressed file in bytes; 0 allows 100 times the compressed size.
      workers: number of tokenizing processes; 0 uses one per core, at most 32. Small data sets use none.
      cache: folder for tokenized rows; empty uses $JAXALIGN_CACHE, or ~/.cache/jaxalign.
      streaming: tokenize while training and store nothing on disk; needs train.steps.
      window: number of rows of a stream to shuffle together.
      date: date that the chat template prints, as YYYY-MM-DD; empty uses the day the run started.
      max_length: maximum tokens of prompt and completion together; 0 uses 1024, or the model's context if that is
        shorter.
      max_prompt_length: maximum tokens of the prompt; 0 sets no separate limit.
      truncation: how to handle rows that are too long: cut_completion (cut the end of the completion; drop rows whose
        prompt alone is too long), cut_prompt_start (cut the start of the prompt) or filter (drop the row).
      prompt_tokens: number of leading tokens to treat as the prompt when rows are plain text.
      separator: text that ends each step of a solution, for rows with labeled steps.
      template: how messages become text: tokenizer (its chat template), markers (the turn markers below) or plain
        (concatenation); auto uses the chat template if there is one, else markers.
      human: marker that starts a user turn.
      assistant: marker that starts an assistant turn.
      end_token: token that ends a completion, as text or id; empty uses the tokenizer's (with a chat template, the
        template's own), none appends nothing.
      dimension: which PKU-SafeRLHF label decides the preference: better or safer.
      label_tokenizer: tokenizer of label files that store token ids.
      score_field: column with the score that min_score reads, as a number or as text that contains one.
      min_score: drop rows with a lower score, or with none; null keeps all.
      type_field: column that `types` reads.
      types: keep only rows whose type_field has one of these values; empty keeps all.
      deduplicate: drop rows that repeat an earlier one.
      on_bad_row: what to do with a malformed row: stop, or skip and count it.
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
