"""Data: files to records, records to tokenized examples, examples to resumable batches."""

from jaxalign.data.batches import (
    BatchIterator,
    collate_comparisons,
    collate_demonstrations,
    collate_labels,
    collate_prompts,
    collate_rankings,
    collate_steps,
    counted_tokens,
    eval_batches,
    usual_width,
)
from jaxalign.data.chat import ChatFormat, chat_format
from jaxalign.data.config import DataConfig, check_separator
from jaxalign.data.examples import Example, make_example, make_examples
from jaxalign.data.formats import FORMATS, Options, detect
from jaxalign.data.packing import packed, packed_alike, with_loss_positions, with_loss_positions_alike
from jaxalign.data.pipeline import Dataset, chat_of, load_dataset
from jaxalign.data.readers import Counts, read_records
from jaxalign.data.records import (
    Comparison,
    Demonstration,
    Message,
    PromptRecord,
    Ranking,
    Rating,
    Stepwise,
    Text,
)
from jaxalign.data.token_batches import TokenBatches

__all__ = [
    "FORMATS",
    "BatchIterator",
    "ChatFormat",
    "Comparison",
    "Counts",
    "DataConfig",
    "Dataset",
    "Demonstration",
    "Example",
    "Message",
    "Options",
    "PromptRecord",
    "Ranking",
    "Rating",
    "Stepwise",
    "Text",
    "TokenBatches",
    "chat_format",
    "chat_of",
    "check_separator",
    "collate_comparisons",
    "collate_demonstrations",
    "collate_labels",
    "collate_prompts",
    "collate_rankings",
    "collate_steps",
    "counted_tokens",
    "detect",
    "eval_batches",
    "load_dataset",
    "make_example",
    "make_examples",
    "packed",
    "packed_alike",
    "read_records",
    "usual_width",
    "with_loss_positions",
    "with_loss_positions_alike",
]
